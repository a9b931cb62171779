import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import LinuxGuest
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// Failures in the middle of a capture: the guest runs, and no dirty page is lost.
@Suite struct FailureTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private static func page(_ value: Int) -> [UInt8] {
        var random = SeededGenerator(seed: UInt64(value))
        return (0..<Page.byteCount).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    private func make(
        pageCount: Int, options: CaptureOptions = CaptureOptions()
    ) throws -> (SimulatedGuest, FaultyFiles, Repository, CaptureSession) {
        try Repository.create(at: path).close()
        let files = FaultyFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        return (guest, files, repository, session)
    }

    private func expectEqual(
        _ checkpoint: Checkpoint, _ guest: SimulatedGuest, _ repository: Repository
    ) throws {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        let isEqual = restored.with { $0.pages } == guest.with { $0.pages }
        #expect(isEqual, "checkpoint \(checkpoint.id.short)")
    }

    /// A page is stored for one frame, another frame has the same content, and the first one
    /// changes again before the pause: the page map must refer to the stored page all the same.
    @Test func aPageOutlivesTheFrameItWasStoredFor() throws {
        var options = CaptureOptions()
        options.pauseBudget = .microseconds(10)
        options.workerCount = 1
        let (guest, _, repository, session) = try make(pageCount: 600, options: options)
        _ = try session.capture()
        guest.with { state in
            for frame in 0..<600 { state.write(UInt64(frame), FailureTests.page(frame % 100)) }
        }
        // Frames 0 to 99 are the first with each page; all of them change while they are copied.
        guest.setLive { state in
            for frame in 0..<100 { state.write(UInt64(frame), FailureTests.page(1000 + frame)) }
        }
        let result = try session.capture()
        guest.setLive(nil)
        #expect(result.checkpoint.precopyRounds > 0)
        try expectEqual(result.checkpoint, guest, repository)
        #expect(try repository.verify().isClean)
    }

    /// Each changing disk call fails in turn, with a full disk and with an I/O error.
    @Test(arguments: [28, 5] as [Int32])
    func everyFailedCallOfACaptureLosesNothing(errno: Int32) throws {
        let (guest, files, repository, session) = try make(pageCount: 50)
        _ = try session.capture()
        var failures = 0
        for call in 0..<40 {
            guest.with { $0.write(UInt64(call % 50), FailureTests.page(call)) }
            files.failCall(call % 8, errno: errno)
            do {
                _ = try session.capture()
            } catch {
                failures += 1
                #expect(error.code == .repository)
                #expect(errno != 28 || error.repositoryError?.code == .noSpace)
            }
            files.failCall(nil, errno: 0)
            #expect(guest.pausesOpen == 0)
            // The next capture has the pages of the failed one, without comparing every page.
            guest.with { $0.write(49, FailureTests.page(1000 + call)) }
            let result = try session.capture()
            #expect(!result.checkpoint.comparedAll)
            try expectEqual(result.checkpoint, guest, repository)
        }
        #expect(failures > 10, "the calls that a capture makes were failed")
        #expect(try repository.verify().isClean)
    }

    @Test func everyFailedCallOfTheGuestLosesNothing() throws {
        let (guest, _, repository, session) = try make(pageCount: 50)
        _ = try session.capture()
        var failures = 0
        for call in 0..<24 {
            guest.with { $0.write(UInt64(call), FailureTests.page(call)) }
            guest.failCall(call % 12)
            do {
                _ = try session.capture()
            } catch {
                failures += 1
                #expect(error.code == .guest)
            }
            guest.failCall(nil)
            #expect(guest.pausesOpen == 0, "the guest runs")
            guest.with { $0.write(30, FailureTests.page(2000 + call)) }
            try expectEqual(try session.capture().checkpoint, guest, repository)
        }
        #expect(failures > 6)
    }

    /// Memory that came just before the pause of a failed capture, and that no log names, is in the
    /// next one.
    @Test func newMemoryOutlivesAFailedCapture() throws {
        var options = CaptureOptions()
        options.pauseBudget = .microseconds(10)
        let (guest, files, repository, session) = try make(pageCount: 50, options: options)
        guest.with { $0.unloggedFrames = Set(50..<2000) }
        _ = try session.capture()
        // It grows by a page while pages are copied before the pause.
        guest.setLive { state in
            let frame = state.pages.count
            if frame < 2000 { state.write(UInt64(frame), FailureTests.page(frame)) }
        }
        var failures = 0
        for call in 0..<16 {
            guest.with { state in
                for frame in 0..<50 { state.write(UInt64(frame), FailureTests.page(call + frame)) }
            }
            files.failCall(call % 8, errno: 5)
            do {
                _ = try session.capture()
            } catch {
                failures += 1
            }
            files.failCall(nil, errno: 0)
            let result = try session.capture()
            #expect(!result.checkpoint.comparedAll)
            let restored = SimulatedGuest(layout: .empty)
            try repository.restore(result.checkpoint, into: restored)
            let isEqual = restored.with { $0.pages } == guest.with { $0.resumedPages }
            #expect(isEqual, "after call \(call) failed")
        }
        #expect(failures > 4)
        #expect(guest.with { $0.pages.count } < 2000, "it grew all the time")
    }

    @Test func capturesBegunBeforeAFailureFailToo() throws {
        let (guest, files, repository, session) = try make(pageCount: 2000)
        _ = try session.capture()
        for round in 0..<20 {
            guest.with { state in
                for frame in 0..<600 {
                    state.write(UInt64(frame), FailureTests.page(round + frame))
                }
            }
            files.failCall(round % 5, errno: 5)
            // The first disk call checks whether the store is still at its path.
            let first = Result { try session.begin() }
            guest.with { $0.write(1999, FailureTests.page(5000 + round)) }
            let second = Result { try session.begin() }
            let outcome = Result { try first.get().wait() }
            let later = Result { try second.get().wait() }
            files.failCall(nil, errno: 0)
            if case .failure = outcome, case .success(let result) = later {
                // Only a capture that began after the failure was known may succeed: it has all
                // pages.
                try expectEqual(result.checkpoint, guest, repository)
            }
            #expect(guest.pausesOpen == 0)
            try expectEqual(try session.capture().checkpoint, guest, repository)
        }
    }

    @Test func anUnknownSetComparesEveryPageAndSaysSo() throws {
        let (guest, _, repository, session) = try make(pageCount: 300)
        #expect(try session.capture().checkpoint.comparedAll)
        guest.with { $0.write(5, FailureTests.page(5)) }
        #expect(try !session.capture().checkpoint.comparedAll)
        guest.with { state in
            state.write(6, FailureTests.page(6))
            state.knowledge = .unknown
        }
        let result = try session.capture()
        #expect(result.checkpoint.comparedAll)
        #expect(result.checkpoint.changedPageCount == 1)
        try expectEqual(result.checkpoint, guest, repository)
    }

    @Test func aDirtyPageThatDidNotChangeCostsNothing() throws {
        let (guest, _, _, session) = try make(pageCount: 300)
        guest.with { $0.write(5, FailureTests.page(5)) }
        _ = try session.capture()
        guest.with { $0.write(5, FailureTests.page(5)) }
        let result = try session.capture()
        #expect(result.dirtyPageCount == 1)
        #expect(result.checkpoint.changedPageCount == 0)
        guest.with { $0.write(7, FailureTests.page(5)) }
        let copy = try session.capture().checkpoint
        #expect(copy.changedPageCount == 1 && copy.storedPageCount == 0, "the page is known")
    }

    @Test func moreDirtyPagesThanThePoolHoldsIsAnErrorAndNoLoss() throws {
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.precopyRoundsMax = 2
        let (guest, _, repository, session) = try make(pageCount: 3000, options: options)
        _ = try session.capture()
        // Each time it is copied it dirties 2,000 pages: more than the pool's 1,024.
        let round = Atomic(0)
        guest.setLive { state in
            let number = round.add(1, ordering: .relaxed).newValue
            for frame in 0..<2000 { state.write(UInt64(frame), FailureTests.page(number % 3)) }
        }
        guest.with { state in
            for frame in 0..<2000 { state.write(UInt64(frame), FailureTests.page(9)) }
        }
        let error = #expect(throws: CheckpointError.self) { try session.capture() }
        #expect(error?.code == .poolTooSmall)
        #expect(error?.message.contains("poolByteCount") == true)
        #expect(guest.pausesOpen == 0)
        guest.setLive(nil)
        try expectEqual(try session.capture().checkpoint, guest, repository)
    }

    @Test func aCancelledCaptureLosesNothing() throws {
        var options = CaptureOptions()
        options.pauseBudget = .microseconds(10)
        let (guest, _, repository, session) = try make(pageCount: 2000, options: options)
        guest.with { state in
            for frame in 0..<2000 { state.write(UInt64(frame), FailureTests.page(frame)) }
        }
        guest.setLive { [weak session] _ in session?.cancel() }
        let error = #expect(throws: CheckpointError.self) { try session.capture() }
        #expect(error?.code == .cancelled)
        #expect(guest.pausesOpen == 0)
        guest.setLive(nil)
        try expectEqual(try session.capture().checkpoint, guest, repository)
    }

    @Test func frameNumbersThatNoMapHoldsAreRefused() throws {
        let (guest, _, repository, session) = try make(pageCount: 10)
        let far = PageRange(first: PageFrameNumber(1 << 33), count: 1)
        guest.with { $0.statedLayout = GuestLayout(runs: [far]) }
        let error = #expect(throws: CheckpointError.self) { try session.capture() }
        #expect(error?.guestError?.code == .unsupported)
        #expect(guest.pausesOpen == 0)
        guest.with { $0.statedLayout = nil }
        try expectEqual(try session.capture().checkpoint, guest, repository)
    }

    @Test func anImageFileIsAGuestToo() throws {
        let (_, _, repository, _) = try make(pageCount: 1)
        let image = directory.path.appending("image")
        func save(_ values: [Int]) throws {
            let file = try ImageFile(creating: image, replacing: true)
            try file.adoptLayout(GuestLayout(pageCount: values.count))
            for (frame, value) in values.enumerated() where value != 0 {
                let run = PageRange(first: PageFrameNumber(UInt64(frame)), count: 1)
                try file.writePages([run].span, from: FailureTests.page(value).span.bytes)
            }
            try file.finish()
        }
        try save([1, 0, 2, 3, 3])
        let first = try CaptureSession(
            of: try ImageFile(reading: image), in: repository, lineage: "image"
        ).capture().checkpoint
        #expect(first.comparedAll && first.zeroPageCount == 1 && first.storedPageCount == 3)
        try save([1, 0, 4, 3, 0])
        let second = try CaptureSession(
            of: try ImageFile(reading: image), in: repository, lineage: "image"
        ).capture().checkpoint
        #expect(second.parent == first.id && second.changedPageCount == 2)
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(first, into: restored)
        #expect(restored.with { $0.pages[2] } == FailureTests.page(2))
        #expect(try ImageFile(reading: image).memoryRoot() == second.memory.root)
    }

    @Test func aDamagedRepositoryLeavesTheGuestAsItWas() throws {
        let (guest, _, repository, session) = try make(pageCount: 300)
        guest.with { state in
            for frame in 0..<300 { state.write(UInt64(frame), FailureTests.page(frame)) }
        }
        let first = try session.capture().checkpoint
        guest.with { state in
            for frame in 0..<300 { state.write(UInt64(frame), FailureTests.page(frame + 1000)) }
        }
        _ = try session.capture()
        let before = guest.with { $0.pages }
        let pack = try PosixFiles(root: path).open("packs/00000001.pack", .update)
        try pack.write([1, 2, 3], at: 100_000)
        let error = #expect(throws: CheckpointError.self) { try session.revert(to: first) }
        #expect(error?.repositoryError?.code == .corrupted)
        #expect(guest.with { $0.pages } == before)
        #expect(guest.pausesOpen == 0)
        #expect(try !repository.verify().isClean)
    }
}
