public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
import Synchronization

/// The result of a restore.
public struct RestoreResult: Hashable, Sendable {
    /// The number of pages that were written into the guest.
    public let writtenPageCount: Int
    /// The number of stored page maps that were read: O(log n) for the n-th checkpoint.
    public let mapsRead: Int
    /// The number of bytes that were read from packs for pages.
    public let bytesRead: Int
    /// The checkpoint's root, which the guest's memory now has.
    public let root: PageDigest
}

extension Repository {
    /// Restores a checkpoint into a guest: its pages, each of which is verified, then its state.
    ///
    /// The guest must not run meanwhile; this neither pauses nor resumes it. Blocks. Packs are read
    /// sequentially on all processors, and pages are decompressed in the guest's memory where this
    /// process can access it. A page that fails verification there is cleared. When this throws,
    /// also because it was cancelled, the guest has a part of the checkpoint and must not run.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of this repository.
    ///   - guest: a new guest, or one that is not running.
    ///   - cancellation: ends the restore with `cancelled`.
    ///   - progress: called in phase `writing` with pages, on several threads at once.
    @discardableResult
    public func restore(
        _ checkpoint: Checkpoint, into guest: any WritableGuest,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> RestoreResult {
        let control = WorkControl(
            "the restore was cancelled; the guest holds part of the checkpoint and must not run",
            cancellation, progress)
        do {
            try control.check()
            let lease = try lease([checkpoint.id])
            defer { withExtendedLifetime(lease) {} }
            let (map, mapsRead) = try pageMap(of: checkpoint)
            let state = try state(of: checkpoint)
            let layout = map.layout
            try guest.checkState(state)
            try guest.adoptLayout(layout)
            let total = checkpoint.pageCount
            let target = RestoredGuest(guest, pageCount: total, control)
            var bytesRead = 0
            let supply = PageSupply(repository: self, checkpoint: checkpoint)
            try RestoreWindows.forEach(map, layout) { pages, zeros in
                if !guest.startsZeroed { try guest.writeZeros(zeros) }
                target.note(zeros.reduce(0) { $0 + $1.count })
                bytesRead += try supply.read(pages, into: target)
            }
            try guest.restoreState(state)
            try? control.report(.writing, .pages, total, of: total)
            let zeroPages = guest.startsZeroed ? checkpoint.zeroPageCount : 0
            return RestoreResult(
                writtenPageCount: total - zeroPages, mapsRead: mapsRead, bytesRead: bytesRead,
                root: checkpoint.root)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }
}

private enum RestoreWindows {
    /// Splits a map into windows that fit in memory.
    static func forEach(
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
}

extension WritableGuest {
    /// Writes zero pages.
    func writeZeros(_ runs: [PageRange]) throws(GuestError) {
        let zeros = [UInt8](repeating: 0, count: StagingPool.slotByteCount)
        for batch in StagedBatches.cut(runs) {
            let count = batch.reduce(0) { $0 + $1.byteCount }
            try writePages(batch.span, from: zeros.span.bytes.extracting(first: count))
        }
    }
}

/// A guest that is filled with a checkpoint's pages.
private final class RestoredGuest: PageTarget {
    private let guest: any WritableGuest
    private let pageCount: Int
    private let control: WorkControl
    private let done = Atomic(0)

    init(_ guest: any WritableGuest, pageCount: Int, _ control: WorkControl) {
        self.guest = guest
        self.pageCount = pageCount
        self.control = control
    }

    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? {
        guest.mappedMemory(of: range)
    }

    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) throws {
        if !isPlaced { try guest.writePages([range].span, from: bytes.bytes) }
        note(range.count)
        try control.report(.writing, .pages, done.load(ordering: .relaxed), of: pageCount)
    }

    /// Counts pages that are done.
    func note(_ count: Int) {
        done.add(count, ordering: .relaxed)
    }
}
