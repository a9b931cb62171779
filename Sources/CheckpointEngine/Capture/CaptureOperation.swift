import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

/// One capture, on the caller's thread: from the dirty log to the pool.
///
/// See `CapturePhase` for the phases and the state in each.
struct CaptureOperation: ~Copyable {
    private let session: CaptureSession
    private let label: Label?
    private let control: WorkControl
    private let job: CaptureJob
    /// Every page of this capture: what goes back if it fails.
    private let taken: TakenPages
    /// Those that are to be copied next.
    private var dirty = DirtyBitmap()
    /// The guest's layout as it was looked at last; at first, that of the last capture.
    private var layout: GuestLayout
    /// Its frames.
    private var frames: DirtyBitmap
    /// Rounds of copying so far.
    private var round = 0
    private var facts = PendingCapture.Facts()
    /// The cut of the disks, prepared or made.
    private let disks: JobDisks?

    /// Takes a checkpoint up to the point where the guest runs again.
    static func run(
        _ session: CaptureSession, label: Label?, _ control: WorkControl
    ) throws(CheckpointError) -> PendingCapture {
        let taken = TakenPages()
        let disks = session.pipeline.disks.map { JobDisks($0) }
        let job = session.pipeline.begin(control) {
            [memory = session.state, keeper = session.keeper] job, result in
            disks?.end(result)
            switch result {
            case .success: keeper?.checkpointPublished()
            case .failure(let error):
                guard !job.isAborted else { return }
                let unsaved = taken.pages(after: error)
                memory.mergeBack(unsaved.pages, comparesAll: unsaved.comparesAll)
            }
        }
        var operation = CaptureOperation(session, label, control, job, taken, disks)
        do {
            try operation.capture()
            return PendingCapture(job: job, facts: operation.facts)
        } catch {
            // The pages go back now: the pipeline may not get to this job for long, if the disk of
            // an earlier one stalls.
            let failure = CheckpointError(wrapping: error)
            let unsaved = taken.pages(after: failure)
            session.state.mergeBack(unsaved.pages, comparesAll: unsaved.comparesAll)
            job.abort(failure)
            throw failure
        }
    }

    private init(
        _ session: CaptureSession, _ label: Label?, _ control: WorkControl, _ job: CaptureJob,
        _ taken: TakenPages, _ disks: JobDisks?
    ) {
        self.session = session
        self.label = label
        self.control = control
        self.job = job
        self.taken = taken
        self.disks = disks
        layout = session.state.withLock { $0.layout }
        frames = DirtyBitmap(layout)
    }

    private mutating func capture() throws {
        let log = SessionLog(session)
        try log?.begin()
        job.move { $0.begin() }
        takeUnsaved()
        if let log {
            try captureTracked(log)
        } else {
            try captureUntracked()
        }
    }

    /// Takes over the pages that earlier captures could not save.
    private mutating func takeUnsaved() {
        let unsaved = session.state.takeUnsaved()
        dirty.formUnion(unsaved.pages)
        taken.merge(unsaved)
    }

    // MARK: - With a dirty log

    private mutating func captureTracked(_ log: SessionLog) throws {
        try takeFirst(log)
        while true {
            let expected = try precopy(log)
            if let paused = try pauseAndCopy(log, expecting: expected) { return finish(paused) }
            job.move { $0.backOff(round: max(1, round)) }
            guard round < session.options.precopyRoundsMax else { throw poolTooSmall() }
        }
    }

    /// Decides what to copy first: pages left by earlier captures and new frames, or every page.
    private mutating func takeFirst(_ log: SessionLog) throws {
        see(try currentLayout())
        guard taken.comparesAll else { return }
        // What was logged so far is in the set that replaces it, which has every page.
        _ = try take(log, isFinal: false)
        takeAll()
    }

    private func poolTooSmall() -> CheckpointError {
        CheckpointError(
            .poolTooSmall,
            "\(counted(dirty.count, "page")) dirty in the pause, but the staging pool holds "
                + "\(session.pipeline.pool.pageCount); give the session a larger poolByteCount")
    }

    /// Copies while the guest runs, until what is left fits the pause.
    ///
    /// The log is counted once a round: for a process each count is a walk over its page tables.
    ///
    /// - Returns: pages expected in the pause.
    private mutating func precopy(_ log: SessionLog) throws -> Int {
        let limit = pausePageCountMax
        var previous = Int.max
        while true {
            let expected = dirty.count + (try log.peekCount())
            guard round < session.options.precopyRoundsMax, expected > limit, expected < previous
            else { return expected }
            previous = expected
            try copyRound(log)
        }
    }

    /// Copies what is dirty now, while the guest runs.
    private mutating func copyRound(_ log: SessionLog) throws {
        let knowledge = try take(log, isFinal: false)
        // Frames that are new are left to the pause, which finds them by the layout.
        let present = DirtyBitmap(try session.guest.layout())
        if knowledge == .unknown { add(present) }
        round += 1
        job.move { $0.precopy() }
        dirty.formIntersection(present)
        try copyDirty(.precopy)
        try job.drain()
        dirty.removeAll()
    }

    /// Pages that can be copied within the pause budget.
    private var pausePageCountMax: Int {
        let pages = session.options.pauseBudget.inSeconds * session.state.withLock { $0.copyRate }
        return min(Int(pages), session.pipeline.pool.pageCount * 3 / 4)
    }

    // MARK: - The set

    /// Takes the log into the set.
    private mutating func take(_ log: SessionLog, isFinal: Bool) throws -> DirtyKnowledge {
        do {
            let knowledge = try log.take(into: &dirty, isFinal: isFinal)
            taken.insert(dirty)
            if knowledge == .unknown { taken.compareAll() }
            return knowledge
        } catch {
            // The log may have been cleared: its content is unknown.
            taken.compareAll()
            throw error
        }
    }

    private mutating func takeAll() {
        add(frames)
    }

    private mutating func add(_ pages: DirtyBitmap) {
        dirty.formUnion(pages)
        taken.insert(pages)
    }

    /// Notes the guest's layout.
    ///
    /// Frames that it has and the one before had not are added to the set: new memory is copied
    /// whatever the log says of it.
    private mutating func see(_ current: GuestLayout) {
        guard current != layout else { return }
        var added = DirtyBitmap(current)
        added.subtract(frames)
        add(added)
        layout = current
        frames = DirtyBitmap(current)
    }

    // MARK: - The pause

    /// What was found in the pause.
    private struct Paused {
        let state: GuestState
        let batches: [StagedBatch]
        let audit: AuditSample?
        let timeNanoseconds: Int64
    }

    /// The pause: take the final set, copy it, capture the state.
    ///
    /// Between pause and resume there is no call of the disk but those of the cut of the guest's
    /// disks, and no allocation but a guest's own, an audit's and the cut's, unless the layout has
    /// changed, the log is unknown, or more pages are dirty than were expected. `varve-counts`
    /// holds it to that.
    ///
    /// - Returns: nil if more pages are dirty than the pool has room for.
    private mutating func pauseAndCopy(
        _ log: SessionLog, expecting expected: Int
    ) throws -> Paused? {
        var room = try makeRoom(for: expected)
        let candidates = AuditCandidates(layout, count: session.options.auditPageCount)
        try disks?.prepare()
        job.move { $0.pause() }
        let start = ContinuousClock.now
        let guest = try PausedGuest(pausing: session.guest)
        let paused = ContinuousClock.now
        let time = session.options.clock()
        try takeFinal(log)
        guard room.cut(dirty) else {
            try guest.resume()
            return nil
        }
        try cutDisks()
        let copyTime = try room.copyPages(from: session.guest)
        let audit = try stage(candidates)
        let state = try session.guest.captureState()
        job.move { $0.copied() }
        try guest.resume()
        facts.times = times(start, paused)
        job.move { $0.resume() }
        let batches = room.batches()
        note(batches, copyTime)
        return Paused(state: state, batches: batches, audit: audit, timeNanoseconds: time)
    }

    /// How long the pause took that has just ended.
    private func times(
        _ start: ContinuousClock.Instant, _ paused: ContinuousClock.Instant
    ) -> PauseTimes {
        session.guest.pauseTimes
            ?? PauseTimes(request: paused - start, downtime: ContinuousClock.now - paused)
    }

    /// Cuts the disks, in the pause.
    private mutating func cutDisks() throws(GuestError) {
        guard let disks else { return }
        facts.diskTimes = try disks.cut(within: session.options.diskCutBudget)
    }

    /// Waits until the pool has room for what is expected in the pause and some more, and allocates
    /// what grows with the guest's size.
    private mutating func makeRoom(for expected: Int) throws(CheckpointError) -> PauseRoom {
        let wanted = expected + session.options.auditPageCount
        let pages = wanted + wanted / 4 + 2 * StagingPool.slotPageCount
        try session.pipeline.pool.waitForFree(pages / StagingPool.slotPageCount + 1, control)
        try job.check()
        dirty.reserveCapacity(frameEnd: layout.frameEnd)
        taken.reserveCapacity(frameEnd: layout.frameEnd)
        return PauseRoom(session.pipeline.pool, pageCount: pages)
    }

    /// Takes what the log has now that the guest is paused.
    private mutating func takeFinal(_ log: SessionLog) throws {
        // The log first: it may name frames that were added since the layout was read.
        let knowledge = try take(log, isFinal: true)
        see(try currentLayout())
        if knowledge == .unknown { takeAll() }
        dirty.formIntersection(frames)
    }

    /// Copies those of an audit's frames that are clean, as far as the pool has room.
    private func stage(_ candidates: AuditCandidates) throws -> AuditSample? {
        guard session.options.auditPageCount > 0 else { return nil }
        var batches: [StagedBatch] = []
        for runs in StagedBatches.cut(candidates.runs(in: layout, outside: dirty))
        where session.pipeline.pool.freeSlotCount > 0 {
            batches.append(try stage(runs))
        }
        return AuditSample(batches: batches, cleanPageCount: layout.pageCount - dirty.count)
    }

    /// Notes what a pause copied, and learns from it how fast copying is.
    private mutating func note(_ batches: [StagedBatch], _ copyTime: Duration) {
        let pages = batches.reduce(0) { $0 + $1.pageCount }
        facts.pausedPageCount = pages
        facts.copiedPageCount += pages
        let seconds = copyTime.inSeconds
        guard pages >= 256, seconds > 0 else { return }
        session.state.withLock { state in
            state.copyRate = 0.75 * state.copyRate + 0.25 * Double(pages) / seconds
        }
    }

    /// Hands over what the pause copied: the rest is the pipeline's.
    private mutating func finish(_ paused: Paused) {
        for batch in paused.batches { job.submit(batch) }
        facts.dirtyPageCount = taken.count(within: frames)
        let layout = layout
        session.state.withLock { $0.layout = layout }
        let source = disks?.source(after: session.pipeline.parent?.id)
        var stored = CheckpointFacts(
            lineage: session.lineage, label: label, timeNanoseconds: paused.timeNanoseconds,
            pause: facts.times.downtime, precopyRounds: round, comparedAll: taken.comparesAll)
        stored.diskTimes = facts.diskTimes
        stored.omitsDisks = session.options.omitsDisks && source == nil
        stored.cutName = source?.name ?? ""
        job.complete(
            CaptureJob.Completion(
                layout: layout, state: paused.state, facts: stored, disks: source,
                audit: paused.audit))
    }

    /// The guest's layout; throws if a page map cannot hold it.
    private func currentLayout() throws(GuestError) -> GuestLayout {
        let layout = try session.guest.layout()
        guard layout.frameEnd <= PageMap.frameEndMax else {
            throw GuestError(
                code: .unsupported,
                message: "the guest has frame \(layout.frameEnd - 1), but only frames below 2^32 "
                    + "can be checkpointed; number its frames from 0")
        }
        let pageCount = layout.pageCount
        guard MapBounds.allow(frameEnd: layout.frameEnd, pageCount: UInt64(pageCount)) else {
            throw GuestError(
                code: .unsupported,
                message: "the guest has \(pageCount) pages and one at frame "
                    + "\(layout.frameEnd - 1); holes this large are possible only below frame "
                    + "\(MapBounds.holeEndMax); number its frames from 0")
        }
        return layout
    }

    // MARK: - Without a dirty log

    /// Pauses the guest and hands every page to the workers, which compare it.
    ///
    /// The guest is paused for the whole time, because without a log nothing else is correct.
    private mutating func captureUntracked() throws {
        taken.compareAll()
        try disks?.prepare()
        job.move { $0.pause() }
        let start = ContinuousClock.now
        let guest = try PausedGuest(pausing: session.guest)
        let paused = ContinuousClock.now
        let time = session.options.clock()
        see(try currentLayout())
        dirty = frames
        taken.insert(dirty)
        try cutDisks()
        try copyDirty(.pausedCopy)
        let state = try session.guest.captureState()
        job.move { $0.copied() }
        try guest.resume()
        facts.times = times(start, paused)
        job.move { $0.resume() }
        facts.pausedPageCount = facts.copiedPageCount
        finish(Paused(state: state, batches: [], audit: nil, timeNanoseconds: time))
    }

    // MARK: - Copying

    /// Copies the set and hands it to the workers immediately.
    private mutating func copyDirty(_ phase: Progress.Phase) throws {
        let total = dirty.count
        var done = 0
        for runs in StagedBatches.cut(dirty.runs()) {
            try job.check()
            let batch = try stage(runs)
            done += batch.pageCount
            job.submit(batch)
            try control.report(phase, .pages, done, of: total)
        }
        facts.copiedPageCount += done
    }

    /// Copies runs of at most 256 pages into a slot.
    private func stage(_ runs: [PageRange]) throws -> StagedBatch {
        let slot = try session.pipeline.pool.take(control)
        let batch = StagedBatch(slot: slot, runs: runs)
        let bytes = slot.bytes[..<(batch.pageCount * Page.byteCount)]
        var destination = UnsafeMutableRawBufferPointer(rebasing: bytes).mutableBytes
        try session.guest.copyPages(runs.span, into: &destination)
        return batch
    }
}
