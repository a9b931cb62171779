public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
import Synchronization

/// Captures one guest into one lineage, repeatedly.
///
/// Methods block and may be called from any thread. Captures and reverts run one at a time. The
/// guest is resumed on every path, and a page that was taken from the dirty log is either in a
/// published checkpoint or taken again.
///
/// A session has a thread for each worker and three more, and one for retention. Close it: a
/// session that is dropped instead waits for nothing, completes the captures in progress, and frees
/// its guest for another session only then.
public final class CaptureSession: Sendable {
    /// What outlives a capture; separate from the session, because captures that end after the
    /// session was released still merge their pages back.
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

        /// Takes the pages that are in no checkpoint, for a capture.
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
    /// True while a capture, a revert or `close` runs: one at a time.
    let turn = Monitor(false)
    /// Cancels all calls that have begun; `cancel` replaces it.
    private let cancellation = Mutex(Cancellation())

    /// Begins a session, which owns the guest until the session is closed.
    ///
    /// Throws the guest's `busy` while another session has the guest (`Guest.claim`), the guest's
    /// `anotherGuest` if the lineage is another guest's, `invalidOption`, also if the lineage has
    /// disks and none are given, and the repository's `callFailed` if its threads cannot be
    /// started. Blocks: it reads the newest checkpoint, and its page map is read by the first
    /// capture. If the cut of that checkpoint still stands, the session takes it over; drop other
    /// leftovers (`JournaledDisks.dropLeftovers`) only afterwards. Nothing is done to the guest.
    ///
    /// - Parameters:
    ///   - guest: the guest to capture.
    ///   - repository: the destination; open for writing.
    ///   - lineage: the guest's history. The first checkpoint follows its newest one.
    ///   - parent: a checkpoint that the first one follows instead, which begins a branch.
    ///   - disks: the guest's disks, which each checkpoint then contains as of the same instant.
    ///   - options: sizes, limits and retention.
    public init(
        of guest: any Guest, in repository: Repository, lineage: LineageName,
        parent: Checkpoint? = nil, disks group: (any DiskGroup)? = nil,
        options: CaptureOptions = CaptureOptions()
    ) throws(CheckpointError) {
        do {
            try repository.checkNames(lineage: lineage, label: nil)
            claim = try guest.claim()
            var newest = parent
            if newest == nil { newest = try repository.newest(ofLineage: lineage) }
            try History.check(newest, of: repository, options) {
                guest.difference(fromHistory: $0)
            }
            try SessionDisks.check(newest, hasDisks: group != nil, options)
            let disks = try group.map { (group) throws(GuestError) in
                try SessionDisks(
                    group, parent: newest, noted: (guest as? any WritableGuest)?.notedRevert())
            }
            pipeline = try CheckpointPipeline(
                repository: repository, parent: newest, disks: disks, options: options)
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
            throw CheckpointError(wrapping: error)
        }
        self.guest = guest
        self.lineage = lineage
        self.options = options
    }

    deinit {
        // Waits for nothing. Captures in progress end by themselves, and only then can another
        // session have the guest: it would otherwise follow a checkpoint that is not the newest.
        SessionLog(self)?.stop()
        if pipeline.openJobCount == 0 { claim.release() }
        pipeline.requestClose { [claim, keeper, disks = pipeline.disks, options] in
            keeper?.requestClose()
            disks?.end(keepingLast: options.keepsDiskCut)
            claim.release()
        }
    }

    /// Takes a checkpoint and returns when it is durable.
    ///
    /// Blocks. When it throws, also because it was cancelled, there is no checkpoint, the guest
    /// runs, and the next capture takes the pages of this one too. Cancelling wakes it wherever it
    /// waits, but does not interrupt the pause. Once the checkpoint's manifest is being written,
    /// cancelling has no effect and the checkpoint is returned.
    ///
    /// If an audit finds that the dirty log missed a page, the checkpoint is taken a second time,
    /// with every page compared.
    ///
    /// - Parameters:
    ///   - label: a label for this checkpoint.
    ///   - cancellation: ends the capture with `cancelled`.
    ///   - progress: called on this thread, in phase `precopy` (without a dirty log: `pausedCopy`),
    ///     with pages.
    public func capture(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> CaptureResult {
        try retryingAfterAudit { () throws(CheckpointError) in
            try begin(label: label, cancellation: cancellation, progress: progress).ended()
        }
    }

    /// Begins a checkpoint, and returns as soon as the guest runs again.
    ///
    /// The checkpoint exists when `wait` of the result returns. This blocks until the pause is
    /// over. Before that it also waits until no other `begin` or revert of this session runs, until
    /// fewer than `overlappingCapturesMax` captures are in progress, and until the pool has room.
    /// It fails and is cancelled as `capture` is. `cancellation` ends the capture also after this
    /// has returned.
    public func begin(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> PendingCapture {
        let control = control(
            "the capture was cancelled; the guest runs, and the next capture takes its pages",
            cancellation, progress)
        if let label {
            do throws(RepositoryError) {
                try pipeline.repository.checkNames(lineage: lineage, label: label)
            } catch {
                throw CheckpointError(error)
            }
        }
        try takeTurn(control)
        defer { endTurn() }
        guard !state.withLock({ $0.isClosed }) else { throw CheckpointError.closed }
        let hasDisks = pipeline.disks?.hasDisks ?? false
        let overlapping = hasDisks ? 1 : max(1, options.overlappingCapturesMax)
        try pipeline.waitForJobs(atMost: overlapping - 1, control)
        return try CaptureOperation.run(self, label: label, control)
    }

    /// Cancels all captures and reverts of this session that have begun, as their cancellations
    /// would; returns before they have ended.
    public func cancel() {
        let cancellation = cancellation.withLock { current in
            defer { current = Cancellation() }
            return current
        }
        cancellation.cancel()
    }

    /// The control of one call, which is also cancelled by `cancel`.
    func control(
        _ remains: String, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) -> WorkControl {
        let own = self.cancellation.withLock { $0 }
        return WorkControl(
            remains, Cancellation(linkedTo: [own] + (cancellation.map { [$0] } ?? [])), progress)
    }

    /// Runs `capture`, and a second time if an audit found that the log missed a page; the second
    /// capture compares every page.
    private func retryingAfterAudit(
        _ capture: () throws(CheckpointError) -> CaptureResult
    ) throws(CheckpointError) -> CaptureResult {
        do {
            return try capture()
        } catch {
            guard let audit = error.audit else { throw error }
            var result = try capture()
            result.audit = audit
            return result
        }
    }

    /// Why a cut of the disks could not be dropped the last time that happened; nil if it never
    /// did.
    ///
    /// The provider's journal has what is left.
    public var diskReleaseFailure: GuestError? { pipeline.disks?.failure }

    /// What retention has done so far; nil without `CaptureOptions.retention`.
    public var retentionReport: RetentionReport? { keeper?.report }

    /// The dirty log that this session began; nil before the first capture, and for a guest without
    /// a dirty log.
    ///
    /// Only for `DirtyTracking.peekDirtyCount`: a page that is taken from the log is missing from
    /// the next checkpoint, unless the guest writes it again.
    public var dirtyLog: DirtyLog? { state.withLock { $0.log } }

    /// The checkpoint that the next one will follow.
    public var parent: Checkpoint? { pipeline.parent }

    /// Ends the session: waits for captures in progress, stops the dirty log, ends the session's
    /// threads, frees its memory, and frees the guest for another session.
    ///
    /// Blocks until all of that is done. The guest runs. Captures in progress are completed; call
    /// `cancel` first to end them. Later captures throw `closed`. Calling it again has no effect.
    public func close() { end() }

    func end() {
        turn.wait { isTaken -> Void? in
            guard !isTaken else { return nil }
            isTaken = true
            return ()
        }
        defer { endTurn() }
        pipeline.waitForJobs()
        pipeline.release()
        SessionLog(self)?.stop()
        state.withLock { state in
            state.isClosed = true
            state.comparesAll = true
        }
        pipeline.close()
        pipeline.disks?.end(keepingLast: options.keepsDiskCut)
        keeper?.close()
        claim.release()
    }

    func takeTurn(_ control: WorkControl) throws(CheckpointError) {
        try control.checkCapture()
        let isMine: Void? = turn.wait(until: control.cancellation) { isTaken -> Void? in
            guard !isTaken else { return nil }
            isTaken = true
            return ()
        }
        if isMine == nil { throw control.cancelledCapture }
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
        var times = PauseTimes()
        var diskTimes = DiskCutTimes()
    }

    init(job: CaptureJob, facts: Facts) {
        self.job = job
        self.facts = facts
    }

    /// How long the guest took to pause, and how long it was paused.
    public var pauseTimes: PauseTimes { facts.times }

    /// The capture's phase now.
    public var phase: CapturePhase { job.phase }

    /// Cancels the capture; returns before it has ended.
    ///
    /// The next capture takes its pages. Captures that were begun after it fail with
    /// `predecessorFailed`. It has no effect once the checkpoint's manifest is being written. A
    /// cancellation that was passed to `begin` is not cancelled by this.
    public func cancel() {
        job.control.cancellation?.cancel()
    }

    /// Waits until the checkpoint is durable, or until the capture has failed and its pages are
    /// merged back.
    ///
    /// Blocks. Each call has the same result.
    public func wait() throws(CheckpointError) -> CaptureResult { try ended() }

    /// `wait` without blocking a thread; cancelling the task cancels the capture.
    public func wait() async throws(CheckpointError) -> CaptureResult {
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                job.whenEnded { continuation.resume() }
            }
        } onCancel: {
            cancel()
        }
        return try ended()
    }

    /// Waits for its end until a time, or until the wait is cancelled.
    ///
    /// - Returns: true if it has ended.
    package func hasEnded(
        by time: ContinuousClock.Instant, until cancellation: Cancellation
    ) -> Bool {
        job.hasEnded(by: time, until: cancellation)
    }

    /// Calls `body` once the capture has ended: on the thread that ends it, or at once.
    package func whenEnded(_ body: @escaping @Sendable () -> Void) {
        job.whenEnded(body)
    }

    /// Blocks until the capture has ended.
    func ended() throws(CheckpointError) -> CaptureResult {
        CaptureResult(
            checkpoint: try job.wait(), dirtyPageCount: facts.dirtyPageCount,
            copiedPageCount: facts.copiedPageCount, pausedPageCount: facts.pausedPageCount,
            pauseTimes: facts.times, diskTimes: facts.diskTimes, audit: job.audit)
    }
}
