import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

/// One checkpoint on its way through the pipeline: what the capture thread hands in, and what
/// becomes of it.
final class CaptureJob: Sendable {
    /// What the capture thread says when everything is handed in.
    struct Completion: Sendable {
        let layout: GuestLayout
        let state: GuestState
        let facts: CheckpointFacts
        /// Pages to compare with the finished page map.
        var audit: AuditSample?
    }

    struct State: Sendable {
        var batches: [StagedBatch] = []
        /// Batches handed in and not yet encoded.
        var openBatchCount = 0
        var completion: Completion?
        /// True once the capture thread will hand in nothing more.
        var isHandedOver = false
        var failure: CaptureError?
        var result: Result<Checkpoint, CaptureError>?
        var audit: CaptureAudit?
        var machine = CaptureMachine()
    }

    let state = Monitor(State())
    /// Which failures of the session had happened when it began.
    let generation: UInt64
    /// Called on the pipeline's thread when it has ended, before anyone who waits is told.
    let ended: @Sendable (CaptureJob, Result<Checkpoint, CaptureError>) -> Void

    init(
        generation: UInt64,
        ended: @escaping @Sendable (CaptureJob, Result<Checkpoint, CaptureError>) -> Void
    ) {
        self.generation = generation
        self.ended = ended
    }

    /// Moves the state machine.
    func move(_ body: (inout CaptureMachine) -> Void) {
        state.change { body(&$0.machine) }
    }

    /// The phase now.
    var phase: CapturePhase { state.read { $0.machine.phase } }

    /// Hands in a batch.
    ///
    /// It never blocks: the pool did that.
    func submit(_ batch: StagedBatch) {
        state.change { state in
            // After a failure nobody encodes; dropping the batch gives its slot back.
            guard state.failure == nil else { return }
            state.batches.append(batch)
            state.openBatchCount += 1
        }
    }

    /// Waits until every batch handed in was encoded; throws if one could not be.
    func drain() throws(CaptureError) {
        let failure = state.wait(wakes: false) { state -> CaptureError?? in
            if let failure = state.failure { return .some(failure) }
            return state.openBatchCount == 0 ? .some(nil) : nil
        }
        if let failure { throw failure }
    }

    /// Waits until every batch handed in was encoded; fails if the import is to end.
    func drain(_ interruption: Interruption) throws(CaptureError) {
        while true {
            let end = state.wait(atMost: Interruption.interval) { state -> CaptureError?? in
                if let failure = state.failure { return .some(failure) }
                return state.openBatchCount == 0 ? .some(nil) : nil
            }
            if let failure = end ?? nil { throw failure }
            try interruption.check()
            if end != nil { return }
        }
    }

    /// Says that everything was handed in; the pipeline publishes.
    func complete(_ completion: Completion) {
        state.change { state in
            state.completion = completion
            state.isHandedOver = true
        }
    }

    /// Gives it up from the capture thread, which hands in nothing more.
    func abort(_ error: CaptureError) {
        fail(error)
        state.change { $0.isHandedOver = true }
    }

    /// Gives it up: what is staged is dropped.
    func fail(_ error: CaptureError) {
        state.change { state in
            if state.failure == nil && state.result == nil { state.failure = error }
            state.openBatchCount -= state.batches.count
            state.batches.removeAll()
        }
    }

    /// What the audit came to.
    var audit: CaptureAudit? { state.read { $0.audit } }

    /// The failure so far, if there is one.
    var failure: CaptureError? { state.read { $0.failure } }

    /// Waits for the end.
    func wait() throws(CaptureError) -> Checkpoint {
        try state.wait(wakes: false) { $0.result }.get()
    }
}
