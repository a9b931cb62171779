import GuestModel

/// Where a pause copies pages to: slots and lists that are ready before the guest is paused, so
/// that nothing is allocated while it is.
///
/// If more pages are dirty than were expected, the lists grow and slots are taken in the pause.
struct PauseRoom: ~Copyable {
    private let pool: StagingPool
    private var slots: [StagingPool.Slot]
    /// What is to be copied; no run goes on in the next slot.
    private var runs: [PageRange] = []
    /// For each slot, the end of its runs.
    private var ends: [Int] = []

    /// Takes free slots for a number of pages, or all that are free.
    init(_ pool: StagingPool, pageCount: Int) {
        self.pool = pool
        let slotCount = pageCount / StagingPool.slotPageCount + 1
        slots = pool.takeFree(atMost: slotCount)
        // A slot more: pages may be cut otherwise than they are counted.
        runs.reserveCapacity(pageCount + StagingPool.slotPageCount)
        ends.reserveCapacity(slotCount + 1)
    }

    /// Decides which pages go to which slot.
    ///
    /// - Returns: false if there are not slots enough.
    mutating func cut(_ pages: DirtyBitmap) -> Bool {
        runs.removeAll(keepingCapacity: true)
        ends.removeAll(keepingCapacity: true)
        var room = StagingPool.slotPageCount
        pages.forEachRun { run in
            StagedBatches.cut(run, room: &room) { piece, fillsSlot in
                runs.append(piece)
                if fillsSlot { ends.append(runs.count) }
            }
        }
        if room < StagingPool.slotPageCount { ends.append(runs.count) }
        return ends.count <= slots.count + pool.freeSlotCount
    }

    /// Copies the pages that were cut.
    ///
    /// - Returns: how long that took.
    mutating func copyPages(from guest: any Guest) throws(GuestError) -> Duration {
        let clockStart = ContinuousClock.now
        var start = 0
        for index in ends.indices {
            if index == slots.count { slots.append(pool.take()) }
            let batch = runs.span.extracting(start..<ends[index])
            var count = 0
            for position in batch.indices { count += batch[position].byteCount }
            let bytes = UnsafeMutableRawBufferPointer(rebasing: slots[index].bytes[..<count])
            var destination = bytes.mutableBytes
            try guest.copyPages(batch, into: &destination)
            start = ends[index]
        }
        return ContinuousClock.now - clockStart
    }

    /// The copies, as the workers take them; slots that were not needed go back to the pool.
    consuming func batches() -> [StagedBatch] {
        var start = 0
        return ends.indices.map { index in
            defer { start = ends[index] }
            return StagedBatch(slot: slots[index], runs: Array(runs[start..<ends[index]]))
        }
    }
}
