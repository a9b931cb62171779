package import CheckpointIndex
import CheckpointStore
package import GuestModel
import PackStore

extension CaptureSession {
    /// Puts the disks back to a checkpoint while their guest is ended and begun again by the
    /// caller; its memory is the caller's matter.
    ///
    /// The new contents are prepared before `body` is called, with a function that exchanges them:
    /// it is called once the guest has ended. If `body` throws before it has, the disks are as they
    /// were. This session's guest is no more afterwards: close it.
    ///
    /// - Parameter body: ends the guest, exchanges the disks, and begins it again.
    package func exchangeDisks(
        to checkpoint: Checkpoint, cancellation: Cancellation? = nil,
        around body: (_ exchange: () throws -> Void) throws -> Void
    ) throws(CheckpointError) {
        try reverting(to: checkpoint, cancellation) { disks, control in
            var isBegun = false
            // Until then the disks are the guest's, and captures go on.
            defer { if isBegun { disks?.leaveHalfway() } }
            let lease = try pipeline.repository.leaseForSession(checkpoint)
            try disks?.prepare(try pipeline.repository.pageMap(of: checkpoint).map, control)
            try body {
                isBegun = true
                try disks?.exchange()
            }
            withExtendedLifetime(lease) {}
        }
    }

    /// Calls `body` for a revert: with this session's turn, and no capture in progress.
    func reverting<T>(
        to checkpoint: Checkpoint, _ cancellation: Cancellation?,
        _ progress: ProgressHandler? = nil,
        _ body: (_ disks: (any RevertedDisks)?, _ control: WorkControl) throws -> T
    ) throws(CheckpointError) -> T {
        let disks = try diskRevert(to: checkpoint)
        let control = control(
            "the revert was cancelled; the guest continues unchanged", cancellation, progress)
        try takeTurn(control)
        defer { endTurn() }
        guard !state.withLock({ $0.isClosed }) else { throw CheckpointError.closed }
        try pipeline.waitForJobs(atMost: 0, control)
        defer { disks?.end() }
        do {
            return try body(disks, control)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }
}
