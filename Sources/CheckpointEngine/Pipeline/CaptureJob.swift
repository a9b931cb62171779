import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

/// One checkpoint on its way through the pipeline: what the capture thread submits, and the result.
final class CaptureJob: Sendable {
    /// What the capture thread passes when everything is submitted.
    struct Completion: Sendable {
        let layout: GuestLayout
        let state: GuestState
        let facts: CheckpointFacts
        /// The disks, all of the instant of the pause.
        var disks: (any DiskSource)?
        /// Pages to compare with the finished page map.
        var audit: AuditSample?
    }

    struct State: Sendable {
        var batches: [StagedBatch] = []
        /// Batches submitted and not yet encoded.
        var openBatchCount = 0
        var completion: Completion?
        /// True once the capture thread will submit nothing more.
        var isHandedOver = false
        /// True if the capture thread has ended it, which takes its pages back itself.
        var isAborted = false
        var failure: CheckpointError?
        var result: Result<Checkpoint, CheckpointError>?
        var audit: CaptureAudit?
        var machine = CaptureMachine()
        /// Called when the result is known.
        var waiting: [@Sendable () -> Void] = []

        /// True if no batch need be waited for: each was encoded, or none will be.
        var isDrained: Bool { failure != nil || openBatchCount == 0 }
    }

    let state = Monitor(State())
    /// What may end it before its checkpoint exists.
    let control: WorkControl
    private let registration = Mutex<Cancellation.Registration?>(nil)
    /// The session's failure count when the job began.
    let generation: UInt64
    /// Called on the pipeline's thread when it has ended, before any waiting thread is told.
    let ended: @Sendable (CaptureJob, Result<Checkpoint, CheckpointError>) -> Void

    init(
        generation: UInt64, control: WorkControl,
        ended: @escaping @Sendable (CaptureJob, Result<Checkpoint, CheckpointError>) -> Void
    ) {
        self.generation = generation
        self.control = control
        self.ended = ended
        let registration = control.cancellation?.register { [weak self] in
            self?.fail(control.cancelledCapture)
        }
        self.registration.withLock { $0 = registration }
    }

    /// Advances the state machine.
    func move(_ body: (inout CaptureMachine) -> Void) {
        state.change { body(&$0.machine) }
    }

    /// The current phase.
    var phase: CapturePhase { state.read { $0.machine.phase } }

    /// Submits a batch.
    ///
    /// Never blocks: taking the slot did.
    func submit(_ batch: StagedBatch) {
        state.change { state in
            // After a failure no worker encodes; dropping the batch frees its slot.
            guard state.failure == nil else { return }
            state.batches.append(batch)
            state.openBatchCount += 1
        }
    }

    /// Waits until every submitted batch was encoded; throws if one could not be.
    func drain() throws(CheckpointError) {
        state.wait { $0.isDrained ? () : nil }
        if let failure { throw failure }
    }

    /// Marks everything as submitted; the pipeline publishes.
    func complete(_ completion: Completion) {
        state.change { state in
            state.completion = completion
            state.isHandedOver = true
        }
    }

    /// Ends the job from the capture thread, which submits nothing more.
    func abort(_ error: CheckpointError) {
        fail(error)
        state.change { state in
            state.isHandedOver = true
            state.isAborted = true
        }
    }

    /// True if it was ended by `abort`: no later capture lacks its pages.
    var isAborted: Bool { state.read { $0.isAborted } }

    /// Ends the job with an error: what is staged is dropped.
    func fail(_ error: CheckpointError) {
        state.change { state in
            if state.failure == nil && state.result == nil { state.failure = error }
            state.openBatchCount -= state.batches.count
            state.batches.removeAll()
        }
    }

    /// The result of the audit.
    var audit: CaptureAudit? { state.read { $0.audit } }

    /// Throws if it has failed or is to end.
    func check() throws(CheckpointError) {
        if let failure { throw failure }
        try control.checkCapture()
    }

    /// Sets the result, and tells it to those who wait.
    func end(_ result: Result<Checkpoint, CheckpointError>) {
        let waiting = state.change { state in
            state.result = result
            // An audit's sample has slots of the pool, and callers may keep the job for long.
            state.completion = nil
            defer { state.waiting = [] }
            return state.waiting
        }
        registration.withLock { $0 = nil }
        for body in waiting { body() }
    }

    /// Waits for the end until a time; returns true if it has ended.
    ///
    /// - Parameter cancellation: ends the wait.
    func hasEnded(
        by time: ContinuousClock.Instant, until cancellation: Cancellation
    ) -> Bool {
        let registration = cancellation.register { [state] in state.change { _ in } }
        defer { withExtendedLifetime(registration) {} }
        _ = state.wait(atMost: time - ContinuousClock.now) { state in
            state.result != nil || cancellation.isCancelled ? () : nil
        }
        return state.read { $0.result != nil }
    }

    /// Calls `body` when the result is known: on the thread that sets it, or at once.
    func whenEnded(_ body: @escaping @Sendable () -> Void) {
        let isKnown = state.change { state in
            if state.result == nil { state.waiting.append(body) }
            return state.result != nil
        }
        if isKnown { body() }
    }

    /// The failure so far, if any.
    var failure: CheckpointError? { state.read { $0.failure } }

    /// Waits for the end.
    func wait() throws(CheckpointError) -> Checkpoint {
        try state.wait { $0.result }.get()
    }
}
