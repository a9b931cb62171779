import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import Varve
@testable import XenGuest

/// Checkpoints on a schedule, of either kind of domain, by one type.
@Suite struct XenCheckpointerTests {
    /// A domain: PVH, PV in a live stream, and PV in one stream for each checkpoint.
    enum Kind: CaseIterable {
        case pvh
        case livePV
        case plainPV
    }

    private struct GaveUp: Error {}

    private let directory = TemporaryDirectory(inMemory: true)

    private func make(
        _ kind: Kind, _ change: (inout XenCheckpointer.Options) -> Void = { _ in }
    ) throws -> (XenCheckpointer, FakeXen, Repository) {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let xen = FakeXen()
        var options = XenCheckpointer.Options()
        change(&options)
        if kind == .pvh {
            xen.add(FakeDomain(Scene.number, frames: [0..<90], seed: 3))
            let domain = try XenDomain(Scene.number, calls: xen, options: options.domain)
            return (
                try XenCheckpointer(
                    of: domain, in: repository, lineage: "web", options: options), xen, repository
            )
        }
        xen.add(FakeDomain(Scene.number, frames: [0..<300], seed: 3, isHVM: false))
        xen.with { $0.epochs = PVStream.epochs(isCheckpointed: kind == .livePV) }
        options.domain.comparesAll = kind == .plainPV
        let domain = try XenPVDomain(Scene.number, calls: xen, options: options.domain)
        return (
            try XenCheckpointer(of: domain, in: repository, lineage: "web", options: options), xen,
            repository
        )
    }

    private func schedule(_ count: Int?) -> CheckpointSchedule {
        var schedule = CheckpointSchedule(every: .zero)
        schedule.countMax = count
        return schedule
    }

    @Test(arguments: Kind.allCases) func everyCheckpointOfAScheduleIsReportedOnce(
        kind: Kind
    ) throws {
        let (checkpointer, xen, repository) = try make(kind)
        let taken = Mutex<[XenCheckpointer.Taken]>([])
        try checkpointer.run(schedule(3)) { event in
            guard case .taken(let one) = event else { return }
            taken.withLock { $0.append(one) }
        }
        checkpointer.close()
        let all = taken.withLock { $0 }
        #expect(all.map(\.checkpoint) == (try repository.checkpoints()))
        #expect(all.count == 3)
        #expect(all.allSatisfy { $0.pauseTimes.downtime > .zero && $0.lateness >= .zero })
        #expect(all.allSatisfy { $0.dirtyPageCount > 0 } || kind == .pvh)
        #expect(xen.complaints(Scene.number, isLogOn: kind == .pvh ? false : nil) == [])
        #expect(try repository.verify().isClean)
    }

    @Test(arguments: Kind.allCases) func itStopsCleanlyWhenItIsCancelled(kind: Kind) throws {
        let (checkpointer, xen, repository) = try make(kind)
        let cancellation = Cancellation()
        let count = Atomic(0)
        try checkpointer.run(schedule(nil), cancellation: cancellation) { _ in
            if count.add(1, ordering: .relaxed).newValue == 2 { cancellation.cancel() }
        }
        checkpointer.close()
        // What was in progress is completed and reported.
        #expect(try repository.checkpoints().count == count.load(ordering: .relaxed))
        #expect((2...3).contains(count.load(ordering: .relaxed)))
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test(arguments: Kind.allCases) func aHandlerThatThrowsEndsIt(kind: Kind) throws {
        let (checkpointer, xen, _) = try make(kind)
        let callCount = Atomic(0)
        let error = #expect(throws: CheckpointError.self) {
            try checkpointer.run(schedule(nil)) { _ in
                callCount.add(1, ordering: .relaxed)
                throw GaveUp()
            }
        }
        #expect(error?.code == .callerFailed && error?.cause is GaveUp)
        #expect(callCount.load(ordering: .relaxed) == 1)
        checkpointer.close()
        let closed = #expect(throws: CheckpointError.self) {
            try checkpointer.capture() as XenCheckpointer.Taken
        }
        #expect(closed?.code == .closed)
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test(arguments: Kind.allCases) func oneIsTakenAtATime(kind: Kind) async throws {
        // libxenguest writes a whole stream for a single one, also where it could log writes.
        let (checkpointer, xen, repository) = try make(kind == .livePV ? .plainPV : kind)
        let first = try await checkpointer.capture(label: "one")
        #expect(first.checkpoint.label == "one" && first.pauseTimes.downtime > .zero)
        let cancelled = Cancellation()
        cancelled.cancel()
        let error = #expect(throws: CheckpointError.self) {
            try checkpointer.capture(cancellation: cancelled) as XenCheckpointer.Taken
        }
        #expect(error?.code == .cancelled)
        #expect(xen.complaints(Scene.number) == [])
        _ = try await checkpointer.capture()
        checkpointer.close()
        #expect(try repository.checkpoints().map(\.label) == ["one", nil])
    }

    /// Also a checkpoint long before the next one is due is reported when it is durable.
    @Test func aScheduleEndsWithItsTask() async throws {
        let (checkpointer, xen, repository) = try make(.pvh)
        let reported = Atomic(0)
        let task = Task {
            try await checkpointer.run(CheckpointSchedule(every: .seconds(3600))) { _ in
                reported.add(1, ordering: .relaxed)
            }
        }
        while reported.load(ordering: .relaxed) == 0 {
            try await Task.sleep(for: .milliseconds(5))
        }
        task.cancel()
        try await task.value
        checkpointer.close()
        #expect(try repository.checkpoints().count == 1)
        #expect(xen.complaints(Scene.number, isLogOn: false) == [])
    }

    /// The writing thread's failure is the one that is reported, not the stream that it cut short.
    @Test func aGuestThatDoesNotSuspendIsTheCause() throws {
        let (checkpointer, xen, _) = try make(.plainPV) {
            $0.domain.suspendTimeout = .milliseconds(40)
        }
        xen.with(Scene.number) { $0.answer = .never }
        let error = #expect(throws: CheckpointError.self) {
            try checkpointer.capture() as XenCheckpointer.Taken
        }
        #expect(error?.guestError?.code == .timedOut)
        checkpointer.close()
        #expect(xen.complaints(Scene.number) == [])
    }

    /// What is reported is the cause, not the failure of a capture that began after it.
    @Test func aFullDiskIsReportedAsItself() throws {
        let store = directory.path.appending("store")
        try Repository.create(at: store).close()
        let files = FaultyFiles(PosixFiles(root: store))
        let repository = try Repository.open(at: store, .writing, files: files)
        let xen = FakeXen()
        xen.add(FakeDomain(Scene.number, frames: [0..<90], seed: 3))
        let domain = try XenDomain(
            Scene.number, calls: xen, options: XenCheckpointer.Options().domain)
        let checkpointer = try XenCheckpointer(
            of: domain, in: repository, lineage: "web", options: XenCheckpointer.Options())
        let count = Atomic(0)
        let error = #expect(throws: CheckpointError.self) {
            try checkpointer.run(schedule(nil)) { _ in
                if count.add(1, ordering: .relaxed).newValue == 2 {
                    files.failCalls(from: 0, .growth)
                }
            }
        }
        #expect(error?.repositoryError?.code == .noSpace, "\(error.map { "\($0)" } ?? "none")")
        checkpointer.close()
        #expect(xen.complaints(Scene.number, isLogOn: false) == [])
    }

    @Test func retentionAppliesToEachKind() throws {
        for kind in [Kind.pvh, .plainPV] {
            let (checkpointer, _, repository) = try make(kind) {
                $0.capture.retention = Retention(RetentionPolicy(keepLast: 1))
            }
            try checkpointer.run(schedule(3)) { _ in }
            checkpointer.close()
            #expect(try repository.checkpoints().count == 1)
            #expect(checkpointer.retentionReport?.forgottenCount == 2)
            try repository.close()
            try removeStore()
        }
    }

    private func removeStore() throws {
        let store = directory.path.appending("store")
        try FileManager.default.removeItem(atPath: store.string)
    }
}
