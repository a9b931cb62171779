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

/// A page with contents, a hole, a page, and so on; the first read may be made to wait.
private struct HoledImage: ImageSource {
    let byteCount: Int
    /// Bytes from one page with contents to the next.
    let stride: Int
    /// The seed of the contents.
    let seed: UInt64
    /// Called before each read.
    var willRead: @Sendable () -> Void = {}

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        willRead()
        for start in Swift.stride(from: 0, to: buffer.count, by: Page.byteCount) {
            let page = UnsafeMutableRawBufferPointer(
                rebasing: buffer[start..<start + Page.byteCount])
            let number = UInt64((offset + start) / Page.byteCount)
            let isHole = (offset + start) % stride != 0
            var random = SeededGenerator(seed: isHole ? 0 : seed ^ number)
            for word in Swift.stride(from: 0, to: page.count, by: 8) {
                page.storeBytes(
                    of: isHole ? 0 : random.next(), toByteOffset: word, as: UInt64.self)
            }
        }
    }

    func nextData(from offset: Int) throws -> Range<Int>? {
        let start = (offset + stride - 1) / stride * stride
        guard start < byteCount else { return nil }
        return start..<start + Page.byteCount
    }

    func checkUnchanged() throws {}
}

/// An import can be cancelled at any step, and its submitted pages never exceed its bound.
@Suite struct InterruptedImportTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    private static var options: CaptureOptions {
        var options = CaptureOptions()
        options.workerCount = 1
        // Four slots: the minimum.
        options.poolByteCount = 1
        return options
    }

    /// Eight parts of a page map.
    private static func image(_ seed: UInt64) -> HoledImage {
        HoledImage(byteCount: 4 << 30, stride: 128 << 20, seed: seed)
    }

    /// Imports until the `last`-th interruption check; nil: to the end.
    ///
    /// - Returns: the number of checks, and the checkpoint; nil if the import was cancelled.
    private func importImage(
        _ seed: UInt64, into repository: Repository, endingAt last: Int?
    ) throws -> (askedCount: Int, checkpoint: Checkpoint?) {
        let asked = Mutex(0)
        let cancellation = Cancellation(when: {
            let count = asked.withLock { count in
                count += 1
                return count
            }
            return last.map { count >= $0 } ?? false
        })
        do throws(CheckpointError) {
            let checkpoint = try repository.importImage(
                InterruptedImportTests.image(seed), lineage: "web",
                options: InterruptedImportTests.options, cancellation: cancellation)
            return (asked.withLock { $0 }, checkpoint)
        } catch {
            guard error.code == .cancelled else { throw error }
            #expect(error.message.contains("nothing of it was stored"))
            return (asked.withLock { $0 }, nil)
        }
    }

    @Test(arguments: [false, true]) func leavesNothingAtAnyStep(hasParent: Bool) throws {
        var random = TestSeed.generator(1501)
        let repository = try Repository.create(at: path)
        if hasParent {
            _ = try importImage(1, into: repository, endingAt: nil)
        }
        let before = try PackBytes.all(in: path)
        // The cost of an import that is not cancelled, in a store of its own.
        let other = try Repository.create(at: directory.path.appending("other"))
        if hasParent { _ = try importImage(1, into: other, endingAt: nil) }
        let whole = try importImage(2, into: other, endingAt: nil)
        #expect(whole.askedCount > 64, "by stretch, and by part of the page map")
        let drawn = (0..<(TestSeed.isLong ? 60 : 8)).map { _ in
            Int.random(in: 1...whole.askedCount, using: &random)
        }
        // The last checks come when all pages are submitted and the page map is written.
        var endedCount = 0
        for last in [1] + drawn + (0..<8).map({ whole.askedCount - $0 }) {
            let result = try importImage(2, into: repository, endingAt: last)
            guard result.checkpoint == nil else {
                // It waited less often than the first one did, and had fewer checks.
                #expect(result.askedCount < last, "\(last)")
                return
            }
            endedCount += 1
            #expect(try PackBytes.all(in: path) == before, "ended at question \(last)")
            #expect(try repository.checkpoints().count == (hasParent ? 1 : 0))
        }
        print("ended at \(endedCount) of \(whole.askedCount) questions, seed \(TestSeed.value)")
        #expect(try repository.verify().isClean)
        let taken = try importImage(2, into: repository, endingAt: nil)
        #expect(taken.checkpoint?.root == whole.checkpoint?.root)
        #expect(try repository.verify().isClean)
    }

    /// While a worker is blocked, no more is submitted than the pool has slots.
    @Test func whatWaitsIsBounded() throws {
        let repository = try Repository.create(at: path)
        _ = try importImage(1, into: repository, endingAt: nil)
        struct Watch: Sendable {
            var handedIn = 0
            var isOpen = false
        }
        let watch = Monitor(Watch())
        var image = InterruptedImportTests.image(2)
        image.willRead = { watch.wait { $0.isOpen ? () : nil } }
        // Opens when nothing more is submitted: the import waits for a slot.
        let mostWaiting = Mutex(0)
        let opener = try Threads.Thread {
            var seen = 0
            while seen == 0 || watch.read({ $0.handedIn }) != seen {
                seen = watch.read { $0.handedIn }
                WallClock.sleep(milliseconds: 200)
            }
            mostWaiting.withLock { [seen] in $0 = seen }
            watch.change { $0.isOpen = true }
        }
        let checkpoint = try repository.importImage(
            image, lineage: "web", options: InterruptedImportTests.options,
            progress: { _ in watch.change { $0.handedIn += 1 } })
        opener.join()
        let found = watch.read { $0 }
        #expect(found.handedIn > 64)
        #expect(mostWaiting.withLock { $0 > 0 && $0 <= 4 })
        #expect(checkpoint.pageCount == 1 << 20)
        #expect(checkpoint.zeroPageCount == (1 << 20) - 32)
    }
}
