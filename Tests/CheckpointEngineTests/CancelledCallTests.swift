import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// Every call that takes a cancellation, ended at each of its checks: what it leaves is what its
/// documentation says, and the same call afterwards does the whole work.
@Suite struct CancelledCallTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    /// Cancelled at the n-th check.
    private final class Countdown: Sendable {
        private let left: Atomic<Int>
        let checkCount = Atomic(0)

        init(_ count: Int) { left = Atomic(count) }

        var cancellation: Cancellation {
            Cancellation(when: {
                self.checkCount.add(1, ordering: .relaxed)
                return self.left.subtract(1, ordering: .relaxed).newValue < 0
            })
        }
    }

    /// Runs `body` cancelled at its first check, its second one and so on, until it succeeds.
    ///
    /// - Parameters:
    ///   - checkCountMin: the least number of checks that it must make in all.
    ///   - left: checks what a cancelled call has left.
    private func atEveryCheck(
        _ checkCountMin: Int, _ body: (Cancellation) throws -> Void, left: () throws -> Void
    ) throws {
        var random = TestSeed.generator(1530)
        var count = 0
        while true {
            let countdown = Countdown(count)
            do {
                try body(countdown.cancellation)
                #expect(countdown.checkCount.load(ordering: .relaxed) <= count)
                break
            } catch {
                let isCancelled =
                    (error as? RepositoryError)?.code == .cancelled
                    || (error as? CheckpointError)?.code == .cancelled
                guard isCancelled else { throw error }
                #expect("\(error)".contains("cancelled"))
                try left()
            }
            // All of the first checks, and then fewer and fewer.
            count += 1 + Int.random(in: 0...count / 8, using: &random)
        }
        #expect(count >= checkCountMin, "it was cancelled at several places")
    }

    private func make(_ count: Int = 6) throws -> (SimulatedGuest, Repository, [Checkpoint]) {
        let repository = try Repository.create(at: path)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 3000))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        var random = TestSeed.generator(1531)
        var checkpoints: [Checkpoint] = []
        for _ in 0..<count {
            write(guest, 700, &random)
            checkpoints.append(try session.capture().checkpoint)
        }
        session.close()
        return (guest, repository, checkpoints)
    }

    private func write(
        _ guest: SimulatedGuest, _ count: Int, _ random: inout SeededGenerator
    ) {
        for _ in 0..<count {
            let words = (0..<Page.byteCount / 8).map { _ in random.next() }
            let frame = UInt64.random(in: 0..<3000, using: &random)
            guest.with { guest in guest.write(frame, words.withUnsafeBytes { Array($0) }) }
        }
    }

    private func isWhole(_ checkpoint: Checkpoint, _ repository: Repository) throws {
        let restored = SimulatedGuest(layout: .empty)
        try repository.restore(checkpoint, into: restored)
        #expect(try restored.memoryRoot() == checkpoint.memory.root)
    }

    @Test func verifyChangesNothing() throws {
        let (_, repository, checkpoints) = try make()
        try atEveryCheck(20) {
            let report = try repository.verify(cancellation: $0)
            #expect(report.isClean)
        } left: {
            let left = try repository.checkpoints()
            #expect(left == checkpoints)
        }
    }

    @Test func aCancelledRestoreCanBeDoneAgain() throws {
        let (_, repository, checkpoints) = try make()
        try atEveryCheck(5) {
            let guest = SimulatedGuest(layout: .empty)
            let result = try repository.restore(checkpoints[3], into: guest, cancellation: $0)
            let root = try guest.memoryRoot()
            #expect(root == result.root)
        } left: {
        }
    }

    @Test func aCancelledReadingDeliversAPart() throws {
        let (_, repository, checkpoints) = try make()
        let reader = try VolumeReader(checkpoints[5], from: repository)
        try atEveryCheck(1) {
            var pageCount = 0
            try reader.read(cancellation: $0) { runs, _ in
                pageCount += runs.reduce(0) { $0 + $1.count }
            }
            #expect(pageCount == 3000)
        } left: {
        }
    }

    @Test func aPruneCanBeCancelledAtAnyTime() throws {
        let (_, repository, checkpoints) = try make()
        try repository.forget(checkpoints[1...4].map(\.id))
        var freed = 0
        try atEveryCheck(3) { cancellation in
            let plan = try repository.planPrune(
                PruneOptions(unusedPercentMax: 0), cancellation: cancellation)
            freed += try plan.execute(cancellation: cancellation).freedByteCount
        } left: {
            let report = try repository.verify()
            #expect(report.isClean)
        }
        #expect(freed > 0)
        for checkpoint in [checkpoints[0], checkpoints[5]] { try isWhole(checkpoint, repository) }
        try repository.close()
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }

    @Test func aRepairCanBeCancelledAtAnyTime() throws {
        let (_, repository, checkpoints) = try make()
        try repository.close()
        let files = PosixFiles(root: path)
        let packs = try PackName.list(files)
        let pack = try files.open(PackName.path(packs[0]), .update)
        let middle = try pack.byteCount() / 2
        try pack.write([0xff, 0xfe, 0xfd], at: middle)
        var outcome: RepairOutcome?
        try atEveryCheck(5) { cancellation in
            let plan = try Repository.planRepair(at: path, cancellation: cancellation)
            outcome = try plan.execute(cancellation: cancellation)
        } left: {
        }
        #expect(outcome?.report.isClean == true)
        let reader = try Repository.open(at: path, .reading)
        for checkpoint in try reader.checkpoints() { try isWhole(checkpoint, reader) }
        #expect(try reader.checkpoints().count < checkpoints.count)
    }

    /// Pages of a cancelled capture are in the next one, also those that were already copied.
    @Test func aCancelledCaptureLosesNoPage() throws {
        let (guest, repository, _) = try make(1)
        var options = CaptureOptions()
        options.pauseBudget = .zero
        options.precopyRoundsMax = 2
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        _ = try session.capture()
        var random = TestSeed.generator(1532)
        for round in 0..<4 {
            try atEveryCheck(4) { cancellation in
                write(guest, 300, &random)
                let checkpoint = try session.capture(cancellation: cancellation).checkpoint
                let root = try guest.memoryRoot()
                #expect(root == checkpoint.memory.root, "round \(round)")
                #expect(!checkpoint.comparedAll)
            } left: {
                #expect(!guest.with { $0.isPaused })
            }
        }
        session.close()
        #expect(try repository.verify().isClean)
    }

    @Test func aCancelledRevertLeavesTheGuestAsItWas() throws {
        let (guest, repository, checkpoints) = try make()
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        _ = try session.capture()
        var random = TestSeed.generator(1533)
        write(guest, 300, &random)
        let before = guest.with { $0.pages }
        try atEveryCheck(4) { cancellation in
            try session.revert(to: checkpoints[2], cancellation: cancellation)
            let root = try guest.memoryRoot()
            #expect(root == checkpoints[2].memory.root)
        } left: {
            #expect(guest.with { $0.pages } == before)
            #expect(!guest.with { $0.isPaused })
        }
        // What was written after the revert is in the next checkpoint.
        write(guest, 10, &random)
        let next = try session.capture().checkpoint
        #expect(try guest.memoryRoot() == next.memory.root && next.parent == checkpoints[2].id)
        session.close()
    }

    /// Progress never goes backwards in a phase, ends at its total, and ends the call if it throws.
    @Test func progressIsOneTypeEverywhere() throws {
        let (guest, repository, checkpoints) = try make()
        struct Enough: Error {}
        func follow(
            _ phases: [Progress.Phase], _ body: (@escaping ProgressHandler) throws -> Void
        ) throws {
            let seen = Mutex<[Progress]>([])
            try body { progress in seen.withLock { $0.append(progress) } }
            let all = seen.withLock { $0 }
            #expect(Set(all.map(\.phase)) == Set(phases))
            for phase in phases {
                let own = all.filter { $0.phase == phase }
                #expect(own.allSatisfy { $0.done <= $0.total ?? .max && $0.unit == own[0].unit })
                if let total = own.last?.total { #expect(own.contains { $0.done == total }) }
            }
            let error = #expect(throws: (any Error).self) {
                try body { _ in throw Enough() }
            }
            let message = "\(error.map { "\($0)" } ?? "")"
            #expect(message.contains("cancelled") && message.contains("Enough"))
        }
        try follow([.verifying]) { progress in
            let report = try repository.verify(progress: progress)
            #expect(report.isClean)
        }
        try follow([.writing]) {
            try repository.restore(
                checkpoints[2], into: SimulatedGuest(layout: .empty), progress: $0)
        }
        var options = CaptureOptions()
        options.pauseBudget = .zero
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        try follow([.precopy]) { progress in
            guest.with { guest in
                for frame in UInt64(0)..<500 {
                    guest.write(frame, [UInt8](repeating: 7, count: Page.byteCount))
                }
            }
            _ = try session.capture(progress: progress)
        }
        try follow([.reading]) { try session.revert(to: checkpoints[1], progress: $0) }
        session.close()
        let other = SimulatedGuest(layout: GuestLayout(pageCount: 10), hasLog: false)
        let untracked = try CaptureSession(of: other, in: repository, lineage: "db")
        try follow([.pausedCopy]) { _ = try untracked.capture(progress: $0) }
        #expect(!other.with { $0.isPaused })
        untracked.close()
        try repository.forget(checkpoints[1...3].map(\.id))
        let prune = PruneOptions(unusedPercentMax: 0)
        #expect(throws: RepositoryError.self) {
            try repository.planPrune(prune).execute { _ in throw Enough() }
        }
        let seen = Mutex<[Progress]>([])
        try repository.planPrune(prune).execute { progress in seen.withLock { $0.append(progress) }
        }
        let last = seen.withLock { $0.last }
        #expect(last?.phase == .rewriting && last?.unit == .packs && last?.done == last?.total)
    }
}
