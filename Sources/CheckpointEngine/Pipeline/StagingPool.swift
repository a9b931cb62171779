import CheckpointStore
import Glibc
import GuestModel
import PackStore

/// Memory between the guest and the workers: slots of 256 pages, taken and returned.
///
/// Its size bounds what captures hold in memory, apart from the page map. Only as much memory is
/// touched as was ever needed at once: the slot that was returned last is used first.
final class StagingPool: Sendable {
    /// Pages in a slot.
    static let slotPageCount = 256
    /// Bytes in a slot.
    static let slotByteCount = slotPageCount * Page.byteCount

    private struct Free: Sendable {
        var slots: [Int]
        /// True for slots whose memory the kernel has allocated.
        var isTouched: [Bool]
        /// True once there is no memory any more.
        var isReleased = false
    }

    private let free: Monitor<Free>
    // Never moves and is freed once, when no slot is in use; each slot belongs to its taker.
    private nonisolated(unsafe) let memory: UnsafeMutableRawBufferPointer
    /// Slots in all.
    let slotCount: Int

    /// Reserves memory for at least `byteCount` bytes, and at least four slots.
    ///
    /// Fails if this process cannot have this much memory.
    init(byteCount: Int) throws(RepositoryError) {
        slotCount = max(4, (byteCount + StagingPool.slotByteCount - 1) / StagingPool.slotByteCount)
        let size = slotCount * StagingPool.slotByteCount
        guard let memory = PageMemory.allocateIfPossible(byteCount: size) else {
            throw RepositoryError(
                .callFailed,
                "cannot reserve memory for a staging pool of \(size) bytes; give a smaller "
                    + "poolByteCount", errno: ENOMEM)
        }
        self.memory = memory
        free = Monitor(
            Free(
                slots: Array((0..<slotCount).reversed()),
                isTouched: Array(repeating: false, count: slotCount)))
    }

    deinit {
        releaseMemory()
    }

    /// Gives the memory back.
    ///
    /// No slot may be in use or be taken afterwards.
    func releaseMemory() {
        let isFirst = free.change { free in
            precondition(free.slots.count == slotCount || free.isReleased, "no slot is in use")
            defer { free.isReleased = true }
            return !free.isReleased
        }
        if isFirst { PageMemory.deallocate(memory) }
    }

    /// Pages in all slots.
    var pageCount: Int { slotCount * StagingPool.slotPageCount }

    /// Slots that are free.
    var freeSlotCount: Int { free.read { $0.slots.count } }

    /// Takes a slot; blocks until one is free.
    func take() -> Slot {
        Slot(index: free.wait { $0.slots.popLast() }, pool: self)
    }

    /// Takes slots that are free now.
    func takeFree(atMost count: Int) -> [Slot] {
        free.wait { free in
            let taken = free.slots.suffix(count)
            free.slots.removeLast(taken.count)
            return taken.reversed()
        }.map { Slot(index: $0, pool: self) }
    }

    /// Takes a slot; blocks until one is free, and fails if the work is to end.
    func take(_ control: WorkControl) throws(CheckpointError) -> Slot {
        try control.checkCapture()
        let index = free.wait(until: control.cancellation) { $0.slots.popLast() }
        guard let index else { throw control.cancelledCapture }
        return Slot(index: index, pool: self)
    }

    /// Blocks until `count` slots are free, or all if there are fewer.
    ///
    /// The slots taken next then have memory: a page that the kernel must first allocate and clear
    /// costs more than copying into it, and that must not happen in the pause.
    func waitForFree(_ count: Int, _ control: WorkControl) throws(CheckpointError) {
        let isFree: Void? = free.wait(until: control.cancellation) { free -> Void? in
            guard free.slots.count >= min(count, slotCount) else { return nil }
            for index in free.slots.suffix(count) where !free.isTouched[index] {
                touch(index)
                free.isTouched[index] = true
            }
            return ()
        }
        if isFree == nil { throw control.cancelledCapture }
    }

    private func touch(_ index: Int) {
        let start = index * StagingPool.slotByteCount
        let end = start + StagingPool.slotByteCount
        for offset in stride(from: start, to: end, by: Page.byteCount) {
            memory.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self)
        }
    }

    /// A slot in use; it returns to the pool when it is released.
    final class Slot: Sendable {
        fileprivate let index: Int
        fileprivate let pool: StagingPool

        fileprivate init(index: Int, pool: StagingPool) {
            self.index = index
            self.pool = pool
        }

        deinit {
            let index = index
            pool.free.change { $0.slots.append(index) }
        }

        /// The slot's memory: 1 MiB, page-aligned.
        var bytes: UnsafeMutableRawBufferPointer {
            let start = index * StagingPool.slotByteCount
            return UnsafeMutableRawBufferPointer(
                rebasing: pool.memory[start..<start + StagingPool.slotByteCount])
        }
    }
}

/// Pages of one slot on their way to a worker.
struct StagedBatch: Sendable {
    /// Reads pages of one run into a part of the slot; called by one worker, ascending.
    typealias Filling = @Sendable (PageRange, UnsafeMutableRawBufferPointer) throws -> Void

    /// Where the pages are, one run after another.
    let slot: StagingPool.Slot
    /// Their frames, ascending; at most 256 in all, or any number if all are zero.
    let runs: [PageRange]
    /// True if all of them are zero; the slot holds nothing then.
    let isZero: Bool
    /// How the worker fills the slot; nil: it holds the pages.
    let filling: Filling?

    init(slot: StagingPool.Slot, runs: [PageRange], filling: Filling? = nil) {
        self.slot = slot
        self.runs = runs
        self.filling = filling
        isZero = false
    }

    /// Pages that are zero; the slot only limits how many batches wait.
    init(slot: StagingPool.Slot, zeros range: PageRange) {
        self.slot = slot
        runs = [range]
        filling = nil
        isZero = true
    }

    /// Pages in the batch.
    var pageCount: Int { runs.reduce(0) { $0 + $1.count } }
}

/// Splits ascending runs into batches that fit in a slot.
enum StagedBatches {
    /// Groups of runs of at most 256 pages each.
    static func cut(_ runs: [PageRange]) -> [[PageRange]] {
        var result: [[PageRange]] = []
        var batch: [PageRange] = []
        batch.reserveCapacity(min(runs.count, StagingPool.slotPageCount))
        var room = StagingPool.slotPageCount
        for run in runs {
            cut(run, room: &room) { piece, fillsSlot in
                batch.append(piece)
                guard fillsSlot else { return }
                result.append(batch)
                batch = []
                batch.reserveCapacity(min(runs.count, StagingPool.slotPageCount))
            }
        }
        if !batch.isEmpty { result.append(batch) }
        return result
    }

    /// Cuts a run where slots end, and calls `body` with each piece.
    ///
    /// - Parameter room: pages for which the slot that is being filled has room; never 0.
    static func cut(
        _ run: PageRange, room: inout Int, _ body: (PageRange, _ fillsSlot: Bool) -> Void
    ) {
        var (first, rest) = (run.first.rawValue, run.count)
        while rest > 0 {
            let count = min(rest, room)
            room -= count
            body(PageRange(first: PageFrameNumber(first), count: count), room == 0)
            if room == 0 { room = StagingPool.slotPageCount }
            first += UInt64(count)
            rest -= count
        }
    }
}
