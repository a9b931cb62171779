import CheckpointFormat
import CheckpointStore
import GuestModel
import PackStore

// The disks of a job are read after its memory was encoded, by the workers that compare them: from
// a cut, while the guest runs. They have a pool of their own, because captures that began later may
// hold all of the staging pool until this job has ended.

extension CheckpointPipeline {
    /// What the manifest says of a job's disks before they are read.
    func volumes(
        of source: (any DiskSource)?, _ table: inout VolumeTable
    ) throws(RepositoryError) -> [VolumeRecord] {
        guard let source else { return try table.adopt([]) }
        let disks = source.disks
        var volumes = try table.adopt(disks)
        for position in volumes.indices {
            let name = volumes[position].name
            guard let index = disks.firstIndex(where: { NameForm.areSame($0.name, name) }) else {
                preconditionFailure("each volume has a disk")
            }
            volumes[position].requestsUnderWay = source.requestsUnderWay(ofDisk: index)
        }
        return volumes
    }

    /// Compares a job's disks with the draft, and stores what is new.
    ///
    /// - Parameters:
    ///   - volumes: the disks' numbers.
    ///   - known: those that the parent has, too.
    func encodeDisks(
        _ source: any DiskSource, as volumes: [VolumeRecord], known: Set<VolumeNumber>,
        _ job: CaptureJob, _ draft: CheckpointDraft, _ transaction: CheckpointTransaction
    ) throws(CheckpointError) {
        do {
            let pool = try diskPool()
            for (index, disk) in source.disks.enumerated() {
                let found = volumes.first { NameForm.areSame($0.name, disk.name) }
                guard let volume = found?.number else {
                    preconditionFailure("each disk has a volume")
                }
                let work = DiskWork(
                    source: source, index: index, disk: disk, volume: volume, pool: pool)
                try work.forEachBatch(isKnown: known.contains(volume), job.control) { batch in
                    try job.check()
                    submit(batch, of: job, draft, transaction)
                }
            }
            try waitForBatches(of: job)
            try source.checkUnchanged()
        } catch {
            job.fail(CheckpointError(wrapping: error))
            try waitForBatches(of: job)
        }
    }

    /// Waits until all batches of a job are encoded; throws if it has failed.
    private func waitForBatches(of job: CaptureJob) throws(CheckpointError) {
        job.state.wait { $0.openBatchCount == 0 ? () : nil }
        if let failure = job.failure { throw failure }
    }
}

/// One disk of a job.
private struct DiskWork {
    let source: any DiskSource
    let index: Int
    let disk: GuestDisk
    let volume: VolumeNumber
    let pool: StagingPool

    /// Maximum number of blocks in one batch of zeros: it costs a step for each 64.
    private static let zeroBlockCountMax: UInt64 = 1 << 24

    /// Calls `body` with batches of the blocks that may differ from the parent's.
    func forEachBatch(
        isKnown: Bool, _ control: WorkControl, _ body: (StagedBatch) throws -> Void
    ) throws {
        if isKnown, let changed = try source.changedBlocks(ofDisk: index) {
            try read(try checked(changed), control, body)
            return
        }
        let stored = try checked(source.storedBlocks(ofDisk: index))
        if isKnown {
            var end: UInt64 = 0
            for range in stored + [disk.blockCount..<disk.blockCount] {
                try zero(end..<range.lowerBound, control, body)
                end = range.upperBound
            }
        }
        try read(stored, control, body)
    }

    /// Ranges as a provider returned them, cut off at the disk's end; throws if they do not ascend.
    private func checked(_ ranges: [BlockRange]) throws(GuestError) -> [BlockRange] {
        var end: UInt64 = 0
        var result: [BlockRange] = []
        for range in ranges {
            guard range.lowerBound >= end else {
                throw GuestError(
                    code: .invalidRange,
                    message: "the provider of disk '\(disk.name)' named blocks that do not ascend "
                        + "at block \(range.lowerBound); mend it (ConformanceSuite.runDisks "
                        + "checks a provider)")
            }
            end = range.upperBound
            let cut = range.clamped(to: 0..<disk.blockCount)
            if !cut.isEmpty { result.append(cut) }
        }
        return result
    }

    private func zero(
        _ blocks: BlockRange, _ control: WorkControl, _ body: (StagedBatch) throws -> Void
    ) throws {
        var first = blocks.lowerBound
        while first < blocks.upperBound {
            let count = min(blocks.upperBound - first, DiskWork.zeroBlockCountMax)
            let range = PageRange(first: PageFrameNumber(first, in: volume), count: Int(count))
            try body(StagedBatch(slot: try pool.take(control), zeros: range))
            first += count
        }
    }

    private func read(
        _ ranges: [BlockRange], _ control: WorkControl, _ body: (StagedBatch) throws -> Void
    ) throws {
        var runs: [PageRange] = []
        var room = StagingPool.slotPageCount
        func flush() throws {
            guard !runs.isEmpty else { return }
            let (source, index) = (source, index)
            let batch = StagedBatch(slot: try pool.take(control), runs: runs) { pages, memory in
                let first = pages.first.inVolume.rawValue
                try source.read(
                    first..<first + UInt64(pages.count), ofDisk: index, into: memory)
            }
            runs = []
            room = StagingPool.slotPageCount
            try body(batch)
        }
        for range in ranges {
            var first = range.lowerBound
            while first < range.upperBound {
                let count = min(Int(range.upperBound - first), room)
                runs.append(PageRange(first: PageFrameNumber(first, in: volume), count: count))
                first += UInt64(count)
                room -= count
                if room == 0 { try flush() }
            }
        }
        try flush()
    }
}
