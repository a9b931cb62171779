public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
import Synchronization

/// Captures one guest into one lineage, repeatedly.
///
/// Methods block and may be called from any thread; captures and reverts run one at a time. The
/// guest is resumed on every path, and a page that was taken from the dirty log is either in a
/// published checkpoint or taken again.
public final class CaptureSession: Sendable {
    /// What outlives a capture; separate from the session, because captures that end late still
    /// merge their pages back.
    final class Memory: Sendable {
        private let state = Mutex(State())

        func withLock<T: Sendable>(_ body: (inout State) -> T) -> T {
            state.withLock { body(&$0) }
        }

        /// Merges back the pages that a failed capture had taken.
        func mergeBack(_ pages: DirtyBitmap, comparesAll: Bool) {
            withLock { state in
                state.unsaved.formUnion(pages)
                state.comparesAll = state.comparesAll || comparesAll
            }
        }

        /// Gives the pages that are in no checkpoint to a capture.
        func takeUnsaved() -> UnsavedPages {
            withLock { state in
                defer {
                    state.unsaved = DirtyBitmap()
                    state.comparesAll = false
                }
                return UnsavedPages(pages: state.unsaved, comparesAll: state.comparesAll)
            }
        }
    }

    struct State: Sendable {
        /// The dirty log that the session began; nil if it has none.
        var log: DirtyLog?
        /// True if the next capture compares every page.
        var comparesAll = true
        /// Pages taken from the log that are in no checkpoint and in no capture in progress.
        var unsaved = DirtyBitmap()
        /// The layout of the last capture.
        var layout = GuestLayout.empty
        /// Pages per second that copying in pauses reaches: a moving average.
        var copyRate = 500_000.0
        var isClosed = false
    }

    /// The guest.
    public let guest: any Guest
    /// The lineage that checkpoints go to.
    public let lineage: LineageName
    let options: CaptureOptions
    let pipeline: CheckpointPipeline
    let keeper: RetentionKeeper?
    let state = Memory()
    private let claim: GuestClaim
    /// Taken by each capture and revert.
    let turn = Monitor(false)
    private let isCancelled = Atomic(false)

    /// Begins a session, which owns the guest until it is closed or dropped.
    ///
    /// Fails with the guest's `busy` while another session has the guest (`Guest.claim`).
    ///
    /// - Parameters:
    ///   - guest: the guest to capture.
    ///   - repository: the destination; opened for writing.
    ///   - lineage: the guest's history. The first checkpoint follows its newest one.
    ///   - parent: follow this checkpoint instead: a branch.
    ///   - options: sizes and limits.
    public init(
        of guest: any Guest, in repository: Repository, lineage: LineageName,
        parent: Checkpoint? = nil, options: CaptureOptions = CaptureOptions()
    ) throws(CaptureError) {
        do {
            try repository.checkNames(lineage: lineage, label: nil)
            claim = try guest.claim()
            var newest = parent
            if newest == nil { newest = try repository.newest(ofLineage: lineage) }
            try History.check(newest, of: repository, options) {
                guest.difference(fromHistory: $0)
            }
            pipeline = try CheckpointPipeline(
                repository: repository, parent: newest, options: options)
            do {
                keeper = try options.retention.map { (retention) throws(RepositoryError) in
                    try RetentionKeeper(
                        retention, of: repository, lineage: lineage, clock: options.clock)
                }
            } catch {
                pipeline.close()
                throw error
            }
        } catch {
            throw CaptureError(wrapping: error)
        }
        self.guest = guest
        self.lineage = lineage
        self.options = options
    }

    deinit {
        SessionLog(self)?.stop()
        pipeline.close()
        keeper?.close()
        claim.release()
    }

    /// Takes a checkpoint and returns when it is durable.
    ///
    /// - Parameters:
    ///   - label: a name for this one checkpoint.
    ///   - progress: called on this thread from time to time.
    public func capture(
        label: Label? = nil, progress: (@Sendable (CaptureProgress) -> Void)? = nil
    ) throws(CaptureError) -> CaptureResult {
        do {
            return try begin(label: label, progress: progress).wait()
        } catch {
            guard let audit = error.audit else { throw error }
            // The log cannot be relied on: retry, comparing every page.
            var result = try begin(label: label, progress: progress).wait()
            result.audit = audit
            return result
        }
    }

    /// Takes a checkpoint and returns as soon as the guest runs again; the checkpoint exists when
    /// `wait` of the result returns.
    ///
    /// Blocks before the pause while the pool or the disk cannot keep up.
    public func begin(
        label: Label? = nil, progress: (@Sendable (CaptureProgress) -> Void)? = nil
    ) throws(CaptureError) -> PendingCapture {
        if let label {
            do throws(RepositoryError) {
                try pipeline.repository.checkNames(lineage: lineage, label: label)
            } catch {
                throw CaptureError(error)
            }
        }
        takeTurn()
        defer { endTurn() }
        guard !state.withLock({ $0.isClosed }) else { throw CaptureSession.closed }
        isCancelled.store(false, ordering: .relaxed)
        pipeline.waitForJobs(atMost: max(1, options.overlappingCapturesMax) - 1)
        return try CaptureOperation.run(self, label: label, progress: progress)
    }

    /// Makes the capture in progress fail with `cancelled`, unless it has reached its pause.
    public func cancel() {
        isCancelled.store(true, ordering: .relaxed)
    }

    /// What `CaptureOptions.retention` has done so far; nil without one.
    public var retentionReport: RetentionReport? { keeper?.report }

    /// The dirty log that this session began; nil before its first capture, and for a guest without
    /// one.
    ///
    /// For inspection with `DirtyTracking.peekDirtyCount`. Pages that are taken from it are missing
    /// from the next checkpoint, unless they are written again.
    public var dirtyLog: DirtyLog? { state.withLock { $0.log } }

    /// The checkpoint that the next one will follow.
    public var parent: Checkpoint? { pipeline.parent }

    /// Waits for captures in progress, stops the dirty log, and frees the guest for another
    /// session.
    ///
    /// The guest continues to run. Harmless when called again.
    public func close() {
        takeTurn()
        defer { endTurn() }
        pipeline.waitForJobs(atMost: 0)
        pipeline.release()
        SessionLog(self)?.stop()
        keeper?.close()
        state.withLock { state in
            state.isClosed = true
            state.comparesAll = true
        }
        claim.release()
    }

    static let closed = CaptureError(.closed, "the session is closed; begin another one")

    func checkCancelled() throws(CaptureError) {
        if isCancelled.load(ordering: .relaxed) {
            throw CaptureError(.cancelled, "the capture was cancelled; the guest runs")
        }
    }

    func takeTurn() {
        turn.wait { isTaken -> Void? in
            guard !isTaken else { return nil }
            isTaken = true
            return ()
        }
    }

    func endTurn() {
        turn.change { $0 = false }
    }
}

/// A capture whose guest runs again and whose checkpoint does not exist yet.
public final class PendingCapture: Sendable {
    private let job: CaptureJob
    private let facts: Facts

    struct Facts: Sendable {
        var dirtyPageCount = 0
        var copiedPageCount = 0
        var pausedPageCount = 0
        var pause = Duration.zero
    }

    init(job: CaptureJob, facts: Facts) {
        self.job = job
        self.facts = facts
    }

    /// How long the guest was paused.
    public var pause: Duration { facts.pause }

    /// The capture's phase now.
    public var phase: CapturePhase { job.phase }

    /// Waits until the checkpoint is durable, or the capture failed and its pages are merged back.
    public func wait() throws(CaptureError) -> CaptureResult {
        CaptureResult(
            checkpoint: try job.wait(), dirtyPageCount: facts.dirtyPageCount,
            copiedPageCount: facts.copiedPageCount, pausedPageCount: facts.pausedPageCount,
            pause: facts.pause, audit: job.audit)
    }
}
