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
    /// The root of the restored volume, which the guest's pages now have.
    public let root: PageDigest
}

extension Repository {
    /// Restores a volume of a checkpoint into a guest: its pages, each of which is verified, then,
    /// for the memory, the guest's state.
    ///
    /// The guest must not run meanwhile; this neither pauses nor resumes it. The blocks of a disk
    /// are the pages of a guest that stands for it, such as an `ImageFile`. Blocks. Packs are read
    /// sequentially on all processors, and pages are decompressed in the guest's memory where this
    /// process can access it. A page that fails verification there is cleared. When this throws,
    /// also because it was cancelled, the guest has a part of the checkpoint and must not run.
    ///
    /// The memory of a checkpoint with disks (`Checkpoint.disks`, `omitsDisks`) must run only with
    /// these disks: a guest that continues over a disk of another instant destroys its file
    /// systems.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of this repository.
    ///   - volume: `memory`, or a disk's name.
    ///   - guest: a new guest, or one that is not running.
    ///   - cancellation: ends the restore with `cancelled`.
    ///   - progress: called in phase `writing` with pages, on several threads at once.
    @discardableResult
    public func restore(
        _ checkpoint: Checkpoint, volume name: String = "memory", into guest: any WritableGuest,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> RestoreResult {
        let control = WorkControl(
            "the restore was cancelled; the guest holds part of the checkpoint and must not run",
            cancellation, progress)
        do {
            try control.check()
            let lease = try lease([checkpoint.id])
            defer { withExtendedLifetime(lease) {} }
            let volume = try checkpoint.volume(named: name)
            let (maps, mapsRead) = try pageMap(of: checkpoint, volumes: [volume.number])
            let map = maps[volume.number]
            let state = volume.isDisk ? .empty : try state(of: checkpoint)
            let blockCount = volume.disk.map { Int($0.blockCount) }
            let layout = blockCount.map { GuestLayout(pageCount: $0) } ?? map.layout
            try guest.checkState(state)
            try guest.adoptLayout(layout)
            let total = volume.pageCount
            let target = RestoredGuest(guest, pageCount: total, control)
            var bytesRead = 0
            var zeroCount = 0
            let supply = PageSupply(
                repository: self, checkpoint: checkpoint, volume: volume.number)
            try RestoreWindows.forEach(map, blockCount: blockCount) { pages, zeros in
                if !guest.startsZeroed {
                    try guest.writeZeros(zeros)
                    zeroCount += zeros.reduce(0) { $0 + $1.count }
                }
                if !volume.isDisk { target.note(zeros.reduce(0) { $0 + $1.count }) }
                bytesRead += try supply.read(pages, into: target)
            }
            try guest.restoreState(state)
            try? control.report(.writing, .pages, total, of: total)
            return RestoreResult(
                writtenPageCount: total - volume.zeroPageCount + zeroCount, mapsRead: mapsRead,
                bytesRead: bytesRead, root: volume.root)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }
}

/// Splits a map into windows that fit in memory.
private struct RestoreWindows {
    /// Most runs of zeros in one window.
    private static let zeroRunCountMax = 1 << 16

    private var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
    private var zeros: [PageRange] = []

    /// Calls `body` with the pages of a map and the frames that are zero, window by window.
    ///
    /// - Parameter blockCount: of a disk, whose other blocks are all zero; nil for the memory.
    static func forEach(
        _ map: VolumeMap, blockCount: Int?,
        _ body: ([(frame: PageFrameNumber, digest: PageDigest)], _ zeros: [PageRange]) throws ->
            Void
    ) throws {
        var windows = RestoreWindows()
        var end: UInt64 = 0
        func addGap(to next: UInt64) {
            guard blockCount != nil, next > end else { return }
            windows.zeros.appendJoining(
                PageRange(first: PageFrameNumber(end), count: Int(next - end)))
        }
        try map.forEachLeaf { leaf, mask in
            var rest = mask
            while rest != 0 {
                let number = UInt64(leaf) * 64 + UInt64(rest.trailingZeroBitCount)
                rest &= rest - 1
                let frame = PageFrameNumber(number)
                addGap(to: number)
                end = number + 1
                if case .present(let digest) = map[frame] {
                    windows.pages.append((frame, digest))
                } else {
                    windows.zeros.appendJoining(PageRange(first: frame, count: 1))
                }
            }
            if windows.isFull { try windows.empty(body) }
        }
        addGap(to: UInt64(blockCount ?? 0))
        try windows.empty(body)
    }

    private var isFull: Bool {
        pages.count + 64 > PageSupply.windowPageCount
            || zeros.count > RestoreWindows.zeroRunCountMax
    }

    private mutating func empty(
        _ body: ([(frame: PageFrameNumber, digest: PageDigest)], [PageRange]) throws -> Void
    ) throws {
        try body(pages, zeros)
        pages.removeAll(keepingCapacity: true)
        zeros.removeAll(keepingCapacity: true)
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
