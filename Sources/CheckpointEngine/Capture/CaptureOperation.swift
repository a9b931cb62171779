import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import Synchronization

/// One capture, on the caller's thread: from the dirty log to the pool.
///
/// See `CapturePhase` for the phases and the state in each.
struct CaptureOperation {
    private let session: CaptureSession
    private let label: Label?
    private let progress: (@Sendable (CaptureProgress) -> Void)?
    private let job: CaptureJob
    private let taken: Taken

    /// What the capture took from the log; the pipeline merges it back if the capture fails.
    private final class Taken: Sendable {
        struct Pages: Sendable {
            var pages = DirtyBitmap()
            var comparesAll = false
        }
        let pages = Mutex(Pages())
    }

    init(
        session: CaptureSession, label: Label?,
        progress: (@Sendable (CaptureProgress) -> Void)?
    ) {
        self.session = session
        self.label = label
        self.progress = progress
        let taken = Taken()
        self.taken = taken
        job = session.pipeline.begin {
            [memory = session.state, keeper = session.keeper] _, result in
            guard case .failure(let error) = result else {
                keeper?.checkpointPublished()
                return
            }
            let (pages, comparesAll) = taken.pages.withLock { ($0.pages, $0.comparesAll) }
            memory.mergeBack(pages, comparesAll: comparesAll || error.code == .auditMissed)
        }
    }

    /// Takes the checkpoint up to the point where the guest runs again.
    func run() throws(CaptureError) -> PendingCapture {
        do {
            let log = SessionLog(session)
            try log?.begin()
            job.move { $0.begin() }
            takeUnsaved()
            let facts =
                if let log {
                    try captureTracked(log)
                } else {
                    try captureUntracked()
                }
            return PendingCapture(job: job, facts: facts)
        } catch {
            let failure = CaptureError(wrapping: error)
            job.abort(failure)
            // Until the pipeline has merged the pages back, the next capture would lack them.
            _ = try? job.wait()
            throw failure
        }
    }

    /// Takes over the pages that earlier captures could not save.
    private func takeUnsaved() {
        let (unsaved, comparesAll) = session.state.withLock { state in
            defer {
                state.unsaved = DirtyBitmap()
                state.comparesAll = false
            }
            return (state.unsaved, state.comparesAll)
        }
        taken.pages.withLock { taken in
            taken.pages = unsaved
            taken.comparesAll = comparesAll
        }
    }

    // MARK: - With a dirty log

    private func captureTracked(_ log: SessionLog) throws -> PendingCapture.Facts {
        let comparesAll = taken.pages.withLock { $0.comparesAll }
        var facts = PendingCapture.Facts()
        var dirty = taken.pages.withLock { $0.pages }
        var seen = session.state.withLock { $0.layout }
        let layout = try currentLayout()
        dirty.formUnion(CaptureOperation.addedFrames(layout, since: &seen))
        if comparesAll {
            dirty = DirtyBitmap(layout)
            // What was logged so far is already in the set, which has every page.
            var forgotten = DirtyBitmap()
            _ = try take(log, into: &forgotten, isFinal: false)
        }
        var all = dirty
        var rounds = 0
        while true {
            var expected = 0
            (dirty, rounds, expected) = try precopy(log, dirty, rounds, &all, &facts)
            let attempt = try pauseAndCopy(log, dirty, expected, &seen, &all, &facts)
            switch attempt {
            case .copied(let completion):
                finish(completion, rounds: rounds, all: all, comparesAll: comparesAll, &facts)
                return facts
            case .tooMany(let set):
                job.move { $0.backOff(round: max(1, rounds)) }
                guard rounds < session.options.precopyRoundsMax else { throw poolTooSmall(set) }
                dirty = set
            }
        }
    }

    private func poolTooSmall(_ set: DirtyBitmap) -> CaptureError {
        CaptureError(
            .poolTooSmall,
            "\(counted(set.count, "page")) dirty in the pause, but the staging pool holds "
                + "\(session.pipeline.pool.pageCount); give the session a larger poolByteCount")
    }

    /// Copies while the guest runs, until what is left fits the pause.
    ///
    /// - Returns: pages left over, rounds in all, and pages expected in the pause. The log is
    ///   counted once a round: for a process each count is a walk over its page tables.
    private func precopy(
        _ log: SessionLog, _ first: DirtyBitmap, _ roundsSoFar: Int,
        _ all: inout DirtyBitmap, _ facts: inout PendingCapture.Facts
    ) throws -> (DirtyBitmap, Int, Int) {
        var dirty = first
        var rounds = roundsSoFar
        let limit = pausePageCountMax
        var previous = Int.max
        while rounds < session.options.precopyRoundsMax {
            let known = dirty.count
            let expected = known + (try log.peekCount())
            if expected <= limit || expected >= previous { return (dirty, rounds, expected) }
            previous = expected
            if try take(log, into: &dirty, isFinal: false) == .unknown {
                dirty = DirtyBitmap(try session.guest.layout())
                taken.pages.withLock { $0.comparesAll = true }
            }
            all.formUnion(dirty)
            rounds += 1
            job.move { $0.precopy() }
            dirty.formIntersection(DirtyBitmap(try session.guest.layout()))
            try copy(dirty, phase: .precopy(round: rounds), &facts)
            try job.drain()
            dirty = DirtyBitmap()
        }
        return (dirty, rounds, dirty.count + (try log.peekCount()))
    }

    /// Pages that can be copied within the pause budget.
    private var pausePageCountMax: Int {
        let (seconds, attoseconds) = session.options.pauseBudget.components
        let budget = Double(seconds) + Double(attoseconds) * 1e-18
        let pages = budget * session.state.withLock { $0.copyRate }
        return min(Int(pages), session.pipeline.pool.pageCount * 3 / 4)
    }

    /// Takes the log, and records what was taken so that it is merged back after a failure.
    private func take(
        _ log: SessionLog, into dirty: inout DirtyBitmap, isFinal: Bool
    ) throws -> DirtyKnowledge {
        do {
            let knowledge = try log.take(into: &dirty, isFinal: isFinal)
            taken.pages.withLock { taken in
                taken.pages.formUnion(dirty)
                taken.comparesAll = taken.comparesAll || knowledge == .unknown
            }
            return knowledge
        } catch {
            // The log may have been cleared: its content is unknown.
            taken.pages.withLock { $0.comparesAll = true }
            throw error
        }
    }

    private enum Attempt {
        case copied(Paused)
        case tooMany(DirtyBitmap)
    }

    /// What was found in the pause.
    private struct Paused {
        let layout: GuestLayout
        let state: GuestState
        let batches: [StagedBatch]
        let audit: AuditSample?
        let timeNanoseconds: Int64
        let pause: Duration
    }

    /// The pause: take the final set, copy it, capture the state.
    ///
    /// Nothing else: no call of the disk, and no allocation but a guest's own and an audit's,
    /// unless more pages are dirty than were expected. `varve-counts` holds it to that.
    private func pauseAndCopy(
        _ log: SessionLog, _ known: DirtyBitmap, _ expected: Int,
        _ seen: inout GuestLayout, _ all: inout DirtyBitmap, _ facts: inout PendingCapture.Facts
    ) throws -> Attempt {
        try session.checkCancelled()
        var room = try waitForRoom(expected + session.options.auditPageCount)
        let candidates = AuditCandidates(seen, count: session.options.auditPageCount)
        // What grows with the guest's size is allocated before the pause.
        var frames = DirtyBitmap(seen)
        var dirty = DirtyBitmap(frameEnd: seen.frameEnd)
        dirty.formUnion(known)
        taken.pages.withLock { $0.pages.reserveCapacity(frameEnd: seen.frameEnd) }
        let seenBefore = seen
        job.move { $0.pause() }
        let start = ContinuousClock.now
        let paused = try PausedGuest(pausing: session.guest)
        let time = session.options.clock()
        // The log first: it may name frames that were added since the layout was read.
        let knowledge = try take(log, into: &dirty, isFinal: true)
        let layout = try currentLayout()
        if knowledge == .unknown { dirty = DirtyBitmap(layout) }
        if layout != seenBefore {
            dirty.formUnion(CaptureOperation.addedFrames(layout, since: &seen))
            frames = DirtyBitmap(layout)
        }
        dirty.formIntersection(frames)
        guard room.cut(dirty) else {
            try paused.resume()
            all.formUnion(dirty)
            return .tooMany(dirty)
        }
        let copyStart = ContinuousClock.now
        try room.copyPages(from: session.guest)
        let copyTime = ContinuousClock.now - copyStart
        let audit = try stage(candidates, layout, outside: dirty)
        let state = try session.guest.captureState()
        job.move { $0.copied() }
        try paused.resume()
        let pause = ContinuousClock.now - start
        job.move { $0.resume() }
        all.formUnion(dirty)
        let batches = room.batches()
        let pages = batches.reduce(0) { $0 + $1.pageCount }
        learn(pages, copyTime)
        facts.copiedPageCount += pages
        facts.pausedPageCount = pages
        facts.pause = pause
        return .copied(
            Paused(
                layout: layout, state: state, batches: batches, audit: audit,
                timeNanoseconds: time, pause: pause))
    }

    /// Copies those of an audit's frames that are clean, as far as the pool has room.
    private func stage(
        _ candidates: AuditCandidates, _ layout: GuestLayout, outside dirty: DirtyBitmap
    ) throws(GuestError) -> AuditSample? {
        guard session.options.auditPageCount > 0 else { return nil }
        var batches: [StagedBatch] = []
        for runs in StagedBatches.cut(candidates.runs(in: layout, outside: dirty))
        where session.pipeline.pool.freeSlotCount > 0 {
            batches.append(try stage(runs))
        }
        return AuditSample(batches: batches, cleanPageCount: layout.pageCount - dirty.count)
    }

    private func finish(
        _ paused: Paused, rounds: Int, all: DirtyBitmap, comparesAll: Bool,
        _ facts: inout PendingCapture.Facts
    ) {
        for batch in paused.batches { job.submit(batch) }
        facts.dirtyPageCount = all.count
        session.state.withLock { $0.layout = paused.layout }
        let comparedAll = comparesAll || taken.pages.withLock { $0.comparesAll }
        job.complete(
            CaptureJob.Completion(
                layout: paused.layout, state: paused.state,
                facts: CheckpointFacts(
                    lineage: session.lineage, label: label,
                    timeNanoseconds: paused.timeNanoseconds, pause: paused.pause,
                    precopyRounds: rounds, comparedAll: comparedAll), audit: paused.audit))
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
                    + "\(MapBounds.holeEndMax) only; number its frames from 0")
        }
        return layout
    }

    /// Frames that a layout has and the previous one had not: new memory is copied whatever the log
    /// says of it.
    private static func addedFrames(
        _ layout: GuestLayout, since seen: inout GuestLayout
    ) -> DirtyBitmap {
        guard seen != layout else { return DirtyBitmap() }
        var added = DirtyBitmap(layout)
        added.subtract(DirtyBitmap(seen))
        seen = layout
        return added
    }

    /// Waits, before the pause, until the pool has room for what is expected and some more.
    private func waitForRoom(_ expected: Int) throws(CaptureError) -> PauseRoom {
        let pages = expected + expected / 4 + 2 * StagingPool.slotPageCount
        session.pipeline.pool.waitForFree(pages / StagingPool.slotPageCount + 1)
        if let failure = job.failure { throw failure }
        return PauseRoom(session.pipeline.pool, pageCount: pages)
    }

    private func learn(_ pages: Int, _ time: Duration) {
        let (seconds, attoseconds) = time.components
        let elapsed = Double(seconds) + Double(attoseconds) * 1e-18
        guard pages >= 256, elapsed > 0 else { return }
        session.state.withLock { state in
            state.copyRate = 0.75 * state.copyRate + 0.25 * Double(pages) / elapsed
        }
    }

    // MARK: - Without a dirty log

    /// Pauses the guest and hands every page to the workers, which compare it.
    ///
    /// The guest is paused for the whole time, because without a log nothing else is correct.
    private func captureUntracked() throws -> PendingCapture.Facts {
        var facts = PendingCapture.Facts()
        job.move { $0.pause() }
        let start = ContinuousClock.now
        let paused = try PausedGuest(pausing: session.guest)
        let time = session.options.clock()
        let layout = try currentLayout()
        let all = DirtyBitmap(layout)
        try copy(all, phase: .paused, &facts)
        let state = try session.guest.captureState()
        job.move { $0.copied() }
        try paused.resume()
        job.move { $0.resume() }
        facts.pause = ContinuousClock.now - start
        facts.pausedPageCount = facts.copiedPageCount
        let completion = Paused(
            layout: layout, state: state, batches: [], audit: nil, timeNanoseconds: time,
            pause: facts.pause)
        finish(completion, rounds: 0, all: all, comparesAll: true, &facts)
        return facts
    }

    // MARK: - Copying

    /// Copies pages and hands them to the workers immediately.
    private func copy(
        _ pages: DirtyBitmap, phase: CapturePhase, _ facts: inout PendingCapture.Facts
    ) throws {
        let total = pages.count
        var done = 0
        for runs in StagedBatches.cut(pages.runs()) {
            try session.checkCancelled()
            if let failure = job.failure { throw failure }
            let batch = try stage(runs)
            done += batch.pageCount
            job.submit(batch)
            progress?(CaptureProgress(phase: phase, pagesDone: done, pagesTotal: total))
        }
        facts.copiedPageCount += done
    }

    /// Copies runs of at most 256 pages into a slot.
    private func stage(_ runs: [PageRange]) throws(GuestError) -> StagedBatch {
        let slot = session.pipeline.pool.take()
        let batch = StagedBatch(slot: slot, runs: runs)
        let bytes = slot.bytes[..<(batch.pageCount * Page.byteCount)]
        var destination = UnsafeMutableRawBufferPointer(rebasing: bytes).mutableBytes
        try session.guest.copyPages(runs.span, into: &destination)
        return batch
    }
}
