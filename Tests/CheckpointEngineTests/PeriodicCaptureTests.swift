import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@Suite struct PeriodicCaptureTests {
    private let directory = TemporaryDirectory(inMemory: true)

    /// The outcomes that a handler received.
    private final class Journal: Sendable {
        struct Entries {
            var taken = 0
            var published: [Checkpoint] = []
            var failures: [CheckpointError] = []
        }

        let entries = Mutex(Entries())

        func note(_ event: PeriodicCapture.Event) {
            entries.withLock { entries in
                switch event {
                case .taken: entries.taken += 1
                case .published(let result, _): entries.published.append(result.checkpoint)
                case .failed(let error): entries.failures.append(error)
                }
            }
        }
    }

    /// Lets other threads run; the awaited condition decides, not the time.
    private func pauseBriefly() { usleep(1000) }

    private func make() throws -> (SimulatedGuest, CaptureSession, Repository) {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        // Each time it is resumed it writes another page.
        guest.setLive { state in
            let frame = UInt64(state.resumedPages.count + state.pages.count) % 64
            state.write(frame, [UInt8](repeating: UInt8.random(in: 1...255), count: Page.byteCount))
        }
        return (guest, try CaptureSession(of: guest, in: repository, lineage: "a"), repository)
    }

    @Test func asManyAsAskedAreTakenAndEachIsWhole() throws {
        let (_, session, repository) = try make()
        let journal = Journal()
        var schedule = CheckpointSchedule(every: .zero)
        schedule.countMax = 7
        let periodic = try PeriodicCapture(of: session, schedule) {
            journal.note($0)
            return .goOn
        }
        periodic.wait()
        #expect(!periodic.isRunning)
        session.close()
        let entries = journal.entries.withLock { $0 }
        #expect(entries.taken == 7 && entries.failures.isEmpty)
        #expect(try repository.checkpoints() == entries.published)
        #expect(entries.published.count == 7)
        #expect(try repository.verify().isClean)
    }

    @Test func stopReportsWhatIsUnderWay() throws {
        let (_, session, _) = try make()
        let journal = Journal()
        let periodic = try PeriodicCapture(of: session, .init(every: .milliseconds(1))) {
            journal.note($0)
            return .goOn
        }
        while journal.entries.withLock({ $0.taken }) < 3 { pauseBriefly() }
        periodic.stop()
        let entries = journal.entries.withLock { $0 }
        #expect(entries.published.count == entries.taken)
        periodic.stop()
        #expect(journal.entries.withLock { $0.taken } == entries.taken, "none after the end")
        session.close()
    }

    @Test func aDistantDueTimeDoesNotDelayStop() throws {
        let (_, session, _) = try make()
        let journal = Journal()
        let periodic = try PeriodicCapture(of: session, .init(every: .seconds(1 << 40))) {
            journal.note($0)
            return .goOn
        }
        while journal.entries.withLock({ $0.taken }) < 1 { pauseBriefly() }
        periodic.stop()
        #expect(journal.entries.withLock { $0.published.count } == 1)
        session.close()
    }

    @Test func theHandlerEndsIt() throws {
        let (_, session, _) = try make()
        let journal = Journal()
        let periodic = try PeriodicCapture(of: session, .init(every: .zero)) { event in
            journal.note(event)
            if case .published = event { return .stop }
            return .goOn
        }
        periodic.wait()
        let entries = journal.entries.withLock { $0 }
        #expect(entries.taken == entries.published.count && entries.taken >= 1)
        session.close()
    }

    @Test func aFailureIsToldAndLosesNothing() throws {
        let (guest, session, repository) = try make()
        let journal = Journal()
        var schedule = CheckpointSchedule(every: .zero)
        schedule.countMax = 4
        let periodic = try PeriodicCapture(of: session, schedule) { event in
            journal.note(event)
            if case .published(let result, _) = event, result.checkpoint.parent == nil {
                guest.failCall(2)
            }
            return .goOn
        }
        periodic.wait()
        guest.setLive(nil)
        let entries = journal.entries.withLock { $0 }
        #expect(entries.failures.count == 1 && entries.published.count == 3)
        let last = try session.capture().checkpoint
        #expect(try guest.memoryRoot() == last.memory.root)
        session.close()
        #expect(try repository.verify().isClean)
    }

    @Test func aClosedSessionEndsIt() throws {
        let (_, session, _) = try make()
        session.close()
        let journal = Journal()
        let periodic = try PeriodicCapture(of: session, .init(every: .zero)) {
            journal.note($0)
            return .goOn
        }
        periodic.wait()
        #expect(journal.entries.withLock { $0.failures.map(\.code) } == [.closed])
    }

    @Test func theLastReferenceStopsIt() throws {
        let (_, session, _) = try make()
        let journal = Journal()
        var periodic: PeriodicCapture? = try PeriodicCapture(of: session, .init(every: .zero)) {
            journal.note($0)
            return .goOn
        }
        while journal.entries.withLock({ $0.taken }) < 2 { pauseBriefly() }
        withExtendedLifetime(periodic) {}
        periodic = nil
        while journal.entries.withLock({ $0.published.count != $0.taken }) {
            pauseBriefly()
        }
        session.close()
    }
}
