import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@Suite struct RevertTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private static func page(_ value: UInt8) -> [UInt8] {
        [UInt8](repeating: value, count: Page.byteCount)
    }

    private static func fill(_ guest: SimulatedGuest, _ frames: Range<UInt64>, _ value: UInt8) {
        guest.with { state in
            for frame in frames { state.write(frame, page(value)) }
        }
    }

    /// The session and its guest, and two checkpoints with some writes in between.
    private func make() throws -> (SimulatedGuest, CaptureSession, Repository, [Checkpoint]) {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        let session = try CaptureSession(of: guest, in: repository, lineage: "a")
        RevertTests.fill(guest, 0..<32, 1)
        let first = try session.capture().checkpoint
        RevertTests.fill(guest, 8..<48, 2)
        return (guest, session, repository, [first, try session.capture().checkpoint])
    }

    /// A revert's own writes need not be in the log: a later capture lacks none of them.
    @Test func aGuestThatWillNotGoOnIsComparedAfterwards() throws {
        let (guest, session, repository, checkpoints) = try make()
        guest.with { $0.failingResumeCount = 2 }
        #expect(throws: CheckpointError.self) { try session.revert(to: checkpoints[0]) }
        try guest.resume()
        #expect(try guest.memoryRoot() == checkpoints[0].memory.root)
        var log = DirtyBitmap()
        _ = try guest.takeDirty(try #require(session.dirtyLog), into: &log, isFinal: true)
        let next = try session.capture().checkpoint
        #expect(next.memory.root == checkpoints[0].memory.root)
        session.close()
        #expect(try repository.verify().isClean)
    }

    /// Pages that a revert wrote are not captured again; pages that the guest writes as soon as it
    /// resumes are captured.
    @Test(arguments: [true, false])
    func ownWritesAreForgottenAndOthersAreNot(writesAtOnce: Bool) throws {
        let (guest, session, _, checkpoints) = try make()
        if writesAtOnce { guest.setLive { $0.write(10, RevertTests.page(9)) } }
        let result = try session.revert(to: checkpoints[0])
        #expect(result.writtenPageCount == 40)
        guest.setLive(nil)
        let next = try session.capture()
        #expect(next.dirtyPageCount == (writesAtOnce ? 1 : 0))
        #expect(next.checkpoint.changedPageCount == (writesAtOnce ? 1 : 0))
        #expect(try guest.memoryRoot() == next.checkpoint.memory.root)
        #expect((next.checkpoint.memory.root == checkpoints[0].memory.root) == !writesAtOnce)
    }

    /// A guest that keeps writing: its new pages are staged in rounds, and the pause reads only
    /// those that were written after the last round.
    @Test func pagesWrittenMeanwhileAreReadBeforeThePause() throws {
        var random = TestSeed.generator(0x2e7e27)
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4096))
        for frame in 0..<4096 as Range<UInt64> {
            let contents = (0..<Page.byteCount).map { _ in UInt8.random(in: 0...255, using: &random)
            }
            guest.with { $0.write(frame, contents) }
        }
        let session = try CaptureSession(of: guest, in: repository, lineage: "busy")
        let first = try session.capture().checkpoint
        RevertTests.fill(guest, 0..<8, 3)
        _ = try session.capture()
        // Fewer in each round, never a page twice, and nothing after the revert's pause.
        guest.with { state in
            let pauseCount = state.pauseCount
            state.afterRead = { state in
                guard state.pauseCount == pauseCount else { return }
                let count = [1024, 512, 128, 64, 4].first { size in
                    state.pages[UInt64(4095 - size * 2)] != RevertTests.page(7)
                }
                guard let count else { return }
                for frame in 0..<count {
                    state.write(UInt64(4095 - count * 2 + frame), RevertTests.page(7))
                }
            }
        }
        let result = try session.revert(to: first)
        guest.with { $0.afterRead = nil }
        #expect(result.writtenPageCount > 1700)
        // Four pages, and the blocks of up to 16 pages that contain them.
        #expect(result.pausedReadByteCount <= 4 * 16 * Page.byteCount)
        #expect(try session.capture().checkpoint.memory.root == first.memory.root)
        #expect(try guest.memoryRoot() == first.memory.root)
        session.close()
    }
}
