import CheckpointFormat
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import Synchronization

/// The result of a restore.
public struct RestoreResult: Hashable, Sendable {
    /// Pages written into the guest.
    public let writtenPageCount: Int
    /// Stored page maps that were read: O(log n) for the n-th checkpoint.
    public let mapsRead: Int
    /// Bytes read from packs for pages.
    public let bytesRead: Int
    /// The page map's root; the memory now has it.
    public let root: PageDigest
}

/// Fills new guests from checkpoints.
public enum Restore {
    /// Fills a guest with a checkpoint: its pages, each verified, then its state.
    ///
    /// Reads packs sequentially on all processors, and decompresses pages in the guest's memory
    /// where this process can access it. Pages that fail verification there are cleared. When it
    /// throws, the guest holds part of the checkpoint and must not run.
    ///
    /// - Parameters:
    ///   - checkpoint: the checkpoint to restore.
    ///   - repository: the repository that has it.
    ///   - guest: a new guest, or one that is not running.
    ///   - progress: called from time to time with pages done and in all, on any thread.
    public static func run(
        _ checkpoint: Checkpoint, from repository: Repository, into guest: any WritableGuest,
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) throws(CaptureError) -> RestoreResult {
        do {
            let lease = try repository.lease([checkpoint.id])
            defer { withExtendedLifetime(lease) {} }
            let (map, mapsRead) = try repository.pageMap(of: checkpoint)
            let state = try repository.state(of: checkpoint)
            let layout = map.layout
            try guest.checkState(state)
            try guest.adoptLayout(layout)
            let total = checkpoint.pageCount
            let target = RestoredGuest(guest, pageCount: total, progress: progress)
            var bytesRead = 0
            let supply = PageSupply(repository: repository, checkpoint: checkpoint)
            try forEachWindow(map, layout) { pages, zeros in
                if !guest.startsZeroed { try writeZeros(zeros, into: guest) }
                target.note(zeros.reduce(0) { $0 + $1.count })
                bytesRead += try supply.read(pages, into: target)
            }
            try guest.restoreState(state)
            progress?(total, total)
            let zeroPages = guest.startsZeroed ? checkpoint.zeroPageCount : 0
            return RestoreResult(
                writtenPageCount: total - zeroPages, mapsRead: mapsRead, bytesRead: bytesRead,
                root: checkpoint.root)
        } catch {
            throw CaptureError(wrapping: error)
        }
    }

    /// Splits a map into windows that fit in memory.
    private static func forEachWindow(
        _ map: PageMap, _ layout: GuestLayout,
        _ body: ([(frame: PageFrameNumber, digest: PageDigest)], _ zeros: [PageRange]) throws ->
            Void
    ) throws {
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        var zeros = DirtyBitmap()
        for run in layout.runs {
            for number in run.frames {
                let frame = PageFrameNumber(number)
                switch map[frame] {
                case .present(let digest): pages.append((frame, digest))
                case .zero: zeros.insert(frame)
                case .absent: break
                }
                if pages.count == PageSupply.windowPageCount {
                    try body(pages, zeros.runs())
                    pages.removeAll(keepingCapacity: true)
                    zeros.removeAll()
                }
            }
        }
        try body(pages, zeros.runs())
    }

    /// Writes zero pages.
    static func writeZeros(
        _ runs: [PageRange], into guest: any WritableGuest
    ) throws(GuestError) {
        let zeros = [UInt8](repeating: 0, count: StagingPool.slotByteCount)
        for batch in StagedBatches.cut(runs) {
            let count = batch.reduce(0) { $0 + $1.byteCount }
            try guest.writePages(batch.span, from: zeros.span.bytes.extracting(first: count))
        }
    }
}

/// A guest that is filled with a checkpoint's pages.
private final class RestoredGuest: PageTarget {
    private let guest: any WritableGuest
    private let pageCount: Int
    private let progress: (@Sendable (_ done: Int, _ total: Int) -> Void)?
    private let done = Atomic(0)

    init(
        _ guest: any WritableGuest, pageCount: Int,
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)?
    ) {
        self.guest = guest
        self.pageCount = pageCount
        self.progress = progress
    }

    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? {
        guest.mappedMemory(of: range)
    }

    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) throws {
        if !isPlaced { try guest.writePages([range].span, from: bytes.bytes) }
        note(range.count)
        progress?(done.load(ordering: .relaxed), pageCount)
    }

    /// Counts pages that are done.
    func note(_ count: Int) {
        done.add(count, ordering: .relaxed)
    }
}
