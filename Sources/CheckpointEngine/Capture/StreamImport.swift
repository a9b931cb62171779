public import CheckpointIndex
public import CheckpointStore
public import GuestModel
package import PackStore

/// Imports memory that arrives as a stream of pages: one checkpoint after another.
///
/// The first checkpoint is compared with the lineage's newest one and has only the frames that
/// arrived. Each later one starts from the previous one. Needs memory for the page map and the
/// pool, whatever the stream's length. It may be used by one thread at a time. Calls block while
/// the workers or the disk cannot keep up.
///
/// After an error the import has ended: close it. Published checkpoints stay.
public final class StreamImport {
    private let lineage: LineageName
    private let omitsDisks: Bool
    private let clock: @Sendable () -> Int64
    private let pipeline: CheckpointPipeline
    private let control: WorkControl
    private var job: CaptureJob?
    private var publishedCount = 0
    private var slot: StagingPool.Slot?
    private var runs: [PageRange] = []
    private var filledCount = 0
    /// Frames that workers may still process: a second content for one of them must wait for the
    /// first.
    private var inFlight = DirtyBitmap()
    private var populated = DirtyBitmap()
    /// The checkpoint that the first one follows.
    let parent: Checkpoint?

    /// Begins an import, and starts its threads.
    ///
    /// - Parameters:
    ///   - repository: the destination; open for writing.
    ///   - lineage: the guest's history.
    ///   - options: sizes and limits.
    ///   - cancellation: ends calls with `cancelled`, with nothing of the next checkpoint stored.
    public convenience init(
        into repository: Repository, lineage: LineageName,
        options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil
    ) throws(CheckpointError) {
        try self.init(
            into: repository, lineage: lineage, options: options,
            StreamImport.control(cancellation))
    }

    package static func control(
        _ cancellation: Cancellation?, _ progress: ProgressHandler? = nil
    ) -> WorkControl {
        WorkControl(
            "the import was cancelled before its checkpoint was whole; nothing of it was stored",
            cancellation, progress)
    }

    package init(
        into repository: Repository, lineage: LineageName, options: CaptureOptions,
        hasDisks: Bool = false, _ control: WorkControl
    ) throws(CheckpointError) {
        let newest: Checkpoint?
        do throws(RepositoryError) {
            try repository.checkNames(lineage: lineage, label: nil)
            newest = try repository.newest(ofLineage: lineage)
        } catch {
            throw CheckpointError(error)
        }
        try SessionDisks.check(newest, hasDisks: hasDisks, options)
        parent = newest
        do throws(RepositoryError) {
            pipeline = try CheckpointPipeline(
                repository: repository, parent: parent, options: options)
        } catch {
            throw CheckpointError(error)
        }
        self.lineage = lineage
        self.control = control
        omitsDisks = options.omitsDisks
        clock = options.clock
    }

    deinit {
        // Waits for nothing: what is in progress ends by itself.
        job?.abort(control.cancelledCapture)
        slot = nil
        pipeline.requestClose()
    }

    /// Abandons what was submitted since the last checkpoint, ends the import's threads, and frees
    /// its memory.
    ///
    /// Blocks until that is done. No other method may be called afterwards; calling this again has
    /// no effect. An import that is dropped instead waits for nothing, and its threads end when
    /// they have no more work.
    public func close() {
        _ = abandon(control.cancelledCapture)
        slot = nil
        pipeline.close()
    }

    // MARK: - Frame contents

    /// Submits the contents of frames; if a frame is submitted again, its last content counts.
    ///
    /// - Parameters:
    ///   - frames: frames below 2^32, in any order.
    ///   - contents: 4096 bytes for each frame; they are copied.
    public func write(
        _ frames: Span<PageFrameNumber>, _ contents: RawSpan
    ) throws(CheckpointError) {
        try contents.withUnsafeBytes { (bytes) throws(CheckpointError) in
            precondition(bytes.count == frames.count * Page.byteCount, "4096 bytes for each frame")
            for index in frames.indices {
                let start = index * Page.byteCount
                let page = UnsafeRawBufferPointer(rebasing: bytes[start..<start + Page.byteCount])
                try append(frames[index], page)
            }
        }
    }

    /// Submits a frame whose content is zero.
    public func writeZero(_ frame: PageFrameNumber) throws(CheckpointError) {
        try append(frame, nil)
    }

    /// Records that a frame does not exist, or no longer exists.
    public func remove(_ frame: PageFrameNumber) {
        if populated.contains(frame) { populated.remove(PageRange(first: frame, count: 1)) }
    }

    private func append(
        _ frame: PageFrameNumber, _ page: UnsafeRawBufferPointer?
    ) throws(CheckpointError) {
        guard frame.rawValue < PageMap.frameEndMax else {
            throw CheckpointError(
                .sizeMismatch,
                "the guest has frame \(frame), but only frames below 2^32 can be checkpointed")
        }
        if inFlight.contains(frame) {
            flush()
            try openJob().drain()
            inFlight.removeAll()
        }
        let slot = try takeSlot()
        let start = filledCount * Page.byteCount
        let place = UnsafeMutableRawBufferPointer(
            rebasing: slot.bytes[start..<start + Page.byteCount])
        if let page {
            place.copyMemory(from: page)
        } else {
            place.initializeMemory(as: UInt8.self, repeating: 0)
        }
        inFlight.insert(frame)
        populated.insert(frame)
        runs.appendJoining(PageRange(first: frame, count: 1))
        filledCount += 1
        if filledCount == StagingPool.slotPageCount {
            flush()
            if let failure = openJob().failure { throw failure }
        }
    }

    private func takeSlot() throws(CheckpointError) -> StagingPool.Slot {
        if let slot { return slot }
        let taken = try pipeline.pool.take(control)
        slot = taken
        return taken
    }

    private func flush() {
        guard let slot, filledCount > 0 else { return }
        openJob().submit(StagedBatch(slot: slot, runs: runs))
        self.slot = nil
        runs.removeAll(keepingCapacity: true)
        filledCount = 0
    }

    /// Fills a slot directly: a source that reads needs no copy.
    ///
    /// - Parameter fill: fills the slot's memory and returns the frames it filled.
    /// - Returns: the number of pages filled.
    func submit(
        _ fill: (UnsafeMutableRawBufferPointer) throws -> PageRange?
    ) throws -> Int {
        if let failure = openJob().failure { throw failure }
        let slot = try pipeline.pool.take(control)
        guard let range = try fill(slot.bytes) else { return 0 }
        populated.insert(range)
        openJob().submit(StagedBatch(slot: slot, runs: [range]))
        return range.count
    }

    /// Submits frames that a worker reads.
    ///
    /// - Parameters:
    ///   - range: at most 256 frames, none submitted before.
    ///   - filling: reads some of them into memory.
    func submit(
        _ range: PageRange, filling: @escaping StagedBatch.Filling
    ) throws(CheckpointError) {
        if let failure = openJob().failure { throw failure }
        let slot = try pipeline.pool.take(control)
        populated.insert(range)
        openJob().submit(StagedBatch(slot: slot, runs: [range], filling: filling))
    }

    /// Submits zero frames, none submitted before.
    func submitZeros(_ range: PageRange) throws(CheckpointError) {
        if let failure = openJob().failure { throw failure }
        populated.insert(range)
        // Frames that were never submitted are already zero.
        guard parent != nil else { return try control.checkCapture() }
        openJob().submit(StagedBatch(slot: try pipeline.pool.take(control), zeros: range))
    }

    /// Waits until workers have processed everything that was submitted.
    func drain() throws(CheckpointError) {
        try openJob().drain()
    }

    // MARK: - Checkpoints

    /// Publishes what was submitted as a checkpoint, which is durable when this returns.
    ///
    /// Blocks.
    ///
    /// - Parameters:
    ///   - label: a label for this checkpoint.
    ///   - state: the guest's state other than memory.
    public func publish(
        label: Label? = nil, state: GuestState = .empty
    ) throws(CheckpointError) -> Checkpoint {
        try publish(label: label, state: state, disks: nil)
    }

    func publish(
        label: Label?, state: GuestState = .empty, disks: (any DiskSource)?
    ) throws(CheckpointError) -> Checkpoint {
        try check(label: label)
        flush()
        let job = openJob()
        self.job = nil
        inFlight.removeAll()
        job.move { machine in
            machine.copied()
            machine.resume()
        }
        var facts = CheckpointFacts(
            lineage: lineage, label: label, timeNanoseconds: clock(),
            comparedAll: publishedCount == 0)
        facts.omitsDisks = omitsDisks && disks == nil
        job.complete(
            CaptureJob.Completion(
                layout: GuestLayout(runs: populated.runs()), state: state, facts: facts,
                disks: disks))
        let checkpoint = try job.wait()
        publishedCount += 1
        return checkpoint
    }

    /// Abandons what was submitted since the last checkpoint, and returns the reason.
    ///
    /// - Returns: the first failure: the pipeline's own, if that came earlier.
    func abandon(_ error: any Error) -> CheckpointError {
        let failure = CheckpointError(wrapping: error)
        guard let job else { return failure }
        self.job = nil
        job.abort(failure)
        do throws(CheckpointError) {
            _ = try job.wait()
            return failure
        } catch {
            return error
        }
    }

    /// Throws unless a checkpoint of this import may have a label; called before anything is
    /// submitted.
    package func check(label: Label?) throws(CheckpointError) {
        do throws(RepositoryError) {
            try pipeline.repository.checkNames(lineage: lineage, label: label)
        } catch {
            throw CheckpointError(error)
        }
    }

    private func openJob() -> CaptureJob {
        if let job { return job }
        let opened = pipeline.begin(control) { _, _ in }
        opened.move { machine in
            machine.begin()
            machine.pause()
        }
        job = opened
        return opened
    }
}
