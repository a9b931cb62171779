import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// The audit of the dirty log: a tracker that loses writes is detected, a correct one is not
/// accused.
@Suite struct AuditTests {
    private let directory = TemporaryDirectory()

    private func make(
        pageCount: Int, auditPageCount: Int
    ) throws -> (SimulatedGuest, Repository, CaptureSession) {
        let path = directory.path.appending("store")
        let repository = try Repository.create(at: path)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
        var options = CaptureOptions()
        options.auditPageCount = auditPageCount
        options.poolByteCount = 16 << 20
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        return (guest, repository, session)
    }

    private func expectEqual(
        _ checkpoint: Checkpoint, _ guest: SimulatedGuest, _ repository: Repository
    ) throws {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        #expect(restored.with { $0.pages } == guest.with { $0.pages })
    }

    @Test func aTrackerThatLiesIsCaught() throws {
        let (guest, repository, session) = try make(pageCount: 1000, auditPageCount: 1000)
        let first = try session.capture()
        #expect(first.audit?.missedPageCount == 0)
        guest.with { state in
            state.unloggedFrames = [7, 300]
            for frame in [3, 7, 300] as [UInt64] { state.write(frame, CrashWorld.page(1)) }
        }
        let result = try session.capture()
        let audit = try #require(result.audit)
        #expect(audit.missedPageCount == 2)
        #expect(audit.sampledPageCount == 999 && audit.cleanPageCount == 999)
        #expect(result.checkpoint.comparedAll && result.checkpoint.changedPageCount == 3)
        #expect(guest.pausesOpen == 0)
        try expectEqual(result.checkpoint, guest, repository)
        // The failed attempt left no checkpoint.
        #expect(try repository.checkpoints().count == 2)
        #expect(try session.capture().audit?.missedPageCount == 0)
    }

    @Test func aMissWithoutARetryIsAnErrorAndTheNextCaptureComparesEveryPage() throws {
        let (guest, repository, session) = try make(pageCount: 600, auditPageCount: 600)
        _ = try session.capture()
        guest.with { state in
            state.unloggedFrames = [5]
            state.write(5, CrashWorld.page(2))
        }
        let pending = try session.begin()
        let error = #expect(throws: CheckpointError.self) { try pending.wait() }
        #expect(error?.code == .auditMissed && error?.audit?.missedPageCount == 1)
        let next = try session.capture()
        #expect(next.checkpoint.comparedAll)
        try expectEqual(next.checkpoint, guest, repository)
    }

    /// A capture that its caller still refers to keeps nothing of the pool.
    @Test func anEndedCaptureReturnsItsSlots() throws {
        let (guest, _, session) = try make(pageCount: 600, auditPageCount: 600)
        _ = try session.capture()
        guest.with { $0.write(5, CrashWorld.page(2)) }
        let pending = try session.begin()
        #expect(try pending.wait().audit?.missedPageCount == 0)
        let pool = session.pipeline.pool
        #expect(pool.freeSlotCount == pool.slotCount)
        session.close()
        withExtendedLifetime(pending) {}
    }

    /// Pages that the guest writes as soon as it resumes are not counted as missed.
    @Test func anHonestTrackerIsNotAccused() throws {
        let (guest, repository, session) = try make(pageCount: 2000, auditPageCount: 300)
        var random = TestSeed.generator(51)
        for round in 0..<30 {
            guest.with { state in
                for _ in 0..<40 {
                    state.write(.random(in: 0..<2000, using: &random), CrashWorld.page(round))
                }
            }
            let pending = try session.begin()
            let late = CrashWorld.page(round + 1000)
            guest.with { state in
                for frame in 0..<200 { state.write(UInt64(frame), late) }
            }
            let result = try pending.wait()
            let audit = try #require(result.audit)
            #expect(audit.missedPageCount == 0)
            // In the first capture every page is dirty.
            #expect(audit.sampledPageCount > 200 || round == 0)
            #expect(!result.checkpoint.comparedAll || round == 0)
        }
        try expectEqual(try session.capture().checkpoint, guest, repository)
    }

    /// Compares the formula with counting.
    @Test func aSampleFindsMissesAsOftenAsItSays() throws {
        let (guest, _, session) = try make(pageCount: 200, auditPageCount: 40)
        _ = try session.capture()
        var hits = 0
        var expected = 0.0
        for round in 0..<200 {
            guest.with { state in
                state.unloggedFrames = [10, 20, 30]
                for frame in state.unloggedFrames { state.write(frame, CrashWorld.page(round)) }
            }
            let audit = try #require(try session.capture().audit)
            if audit.missedPageCount > 0 { hits += 1 }
            expected += audit.probabilityOfFinding(missedPages: 3)
        }
        // 0.49 each: 98 are expected, and five standard deviations are 35.
        #expect(abs(Double(hits) - expected) < 36, "\(hits) hits, \(expected) expected")
        let some = CaptureAudit(sampledPageCount: 2, cleanPageCount: 5, missedPageCount: 0)
        #expect(abs(some.probabilityOfFinding(missedPages: 2) - 0.7) < 1e-12)
        #expect(some.probabilityOfFinding(missedPages: 0) == 0)
        #expect(some.probabilityOfFinding(missedPages: 4) == 1)
    }
}
