import CheckpointStore
import Glibc
import GuestModel
import PackStore

/// Memory between the guest and the workers: slots of 256 pages, handed out and given back.
///
/// Its size is the bound on what captures hold in memory beside the page map. The memory is
/// touched only as far as it was ever needed at once: the slot given back last is used first.
final class StagingPool: Sendable {
    /// Pages in a slot.
    static let slotPageCount = 256
    /// Bytes in a slot.
    static let slotByteCount = slotPageCount * Page.byteCount

    private struct Free: Sendable {
        var slots: [Int]
        /// Slots whose memory the kernel has given.
        var isTouched: [Bool]
    }

    private let free: Monitor<Free>
    // Never moves and is freed in deinit; each slot belongs to whoever took it.
    private nonisolated(unsafe) let memory: UnsafeMutableRawBufferPointer
    /// Slots in all.
    let slotCount: Int

    /// Reserves memory for at least `byteCount` bytes, and at least four slots.
    ///
    /// Fails if this process may not have so much.
    init(byteCount: Int) throws(RepositoryError) {
        slotCount = max(4, (byteCount + StagingPool.slotByteCount - 1) / StagingPool.slotByteCount)
        let size = slotCount * StagingPool.slotByteCount
        guard let memory = PageMemory.allocateIfPossible(byteCount: size) else {
            throw RepositoryError(
                .callFailed,
                "there is no memory for a staging pool of \(size) bytes; give a smaller "
                    + "poolByteCount", errno: ENOMEM)
        }
        self.memory = memory
        free = Monitor(
            Free(
                slots: Array((0..<slotCount).reversed()),
                isTouched: Array(repeating: false, count: slotCount)))
    }

    deinit {
        PageMemory.deallocate(memory)
    }

    /// Pages in all slots.
    var pageCount: Int { slotCount * StagingPool.slotPageCount }

    /// Slots that nobody has.
    var freeSlotCount: Int { free.read { $0.slots.count } }

    /// Takes a slot; blocks until one is free.
    func take() -> Slot {
        Slot(index: free.wait(wakes: false) { $0.slots.popLast() }, pool: self)
    }

    /// Takes slots that are free now.
    func takeFree(atMost count: Int) -> [Slot] {
        free.wait(wakes: false) { free in
            let taken = free.slots.suffix(count)
            free.slots.removeLast(taken.count)
            return taken.reversed()
        }.map { Slot(index: $0, pool: self) }
    }

    /// Takes a slot; blocks until one is free, and fails if the import is to end.
    func take(_ interruption: Interruption) throws(CaptureError) -> Slot {
        try interruption.check()
        while true {
            let index = free.wait(atMost: Interruption.interval) { $0.slots.popLast() }
            if let index { return Slot(index: index, pool: self) }
            try interruption.check()
        }
    }

    /// Blocks until so many slots are free; at most all are asked for.
    ///
    /// Those that are taken next have memory then: a page that the kernel must give and clear first
    /// costs more than copying into it, and that is not for the pause.
    func waitForFree(_ count: Int) {
        free.wait(wakes: false) { free -> Void? in
            guard free.slots.count >= min(count, slotCount) else { return nil }
            for index in free.slots.suffix(count) where !free.isTouched[index] {
                touch(index)
                free.isTouched[index] = true
            }
            return ()
        }
    }

    private func touch(_ index: Int) {
        let start = index * StagingPool.slotByteCount
        let end = start + StagingPool.slotByteCount
        for offset in stride(from: start, to: end, by: Page.byteCount) {
            memory.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self)
        }
    }

    /// A slot that somebody has; it goes back to the pool when it is released.
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

    /// Where the pages are, run after run.
    let slot: StagingPool.Slot
    /// Which frames they are, ascending; at most 256 together, or any number if all are zero.
    let runs: [PageRange]
    /// True if all of them are zero; the slot holds nothing then.
    let isZero: Bool
    /// How the worker has to fill the slot; nil: it holds the pages.
    let filling: Filling?

    init(slot: StagingPool.Slot, runs: [PageRange], filling: Filling? = nil) {
        precondition(filling == nil || runs.count == 1, "what a worker reads is one run")
        self.slot = slot
        self.runs = runs
        self.filling = filling
        isZero = false
    }

    /// Pages that are zero; the slot only bounds how many batches wait.
    init(slot: StagingPool.Slot, zeros range: PageRange) {
        self.slot = slot
        runs = [range]
        filling = nil
        isZero = true
    }

    /// Pages in the batch.
    var pageCount: Int { runs.reduce(0) { $0 + $1.count } }
}

/// Cuts ascending runs into batches that fit a slot.
enum StagedBatches {
    /// Groups of runs of at most 256 pages each.
    static func cut(_ runs: [PageRange]) -> [[PageRange]] {
        var result: [[PageRange]] = []
        var batch: [PageRange] = []
        batch.reserveCapacity(min(runs.count, StagingPool.slotPageCount))
        var room = StagingPool.slotPageCount
        for run in runs {
            var first = run.first
            var rest = run.count
            while rest > 0 {
                let count = min(rest, room)
                batch.append(PageRange(first: first, count: count))
                first = PageFrameNumber(first.rawValue + UInt64(count))
                rest -= count
                room -= count
                if room == 0 {
                    result.append(batch)
                    batch = []
                    batch.reserveCapacity(min(runs.count, StagingPool.slotPageCount))
                    room = StagingPool.slotPageCount
                }
            }
        }
        if !batch.isEmpty { result.append(batch) }
        return result
    }
}
