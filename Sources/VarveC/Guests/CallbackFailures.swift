import CVarve
import CheckpointEngine
import GuestModel
import Synchronization

/// What the callbacks of one guest have returned for failures, so that an error of the engine is
/// known to be theirs.
final class CallbackFailures: Sendable {
    private struct State {
        /// The last one since `forgetLast`.
        var last: (name: String, result: Int)?
        /// What each error stands for.
        var results: [GuestError: Int] = [:]
    }

    /// More different ones than these are not told apart: each is a name and a number.
    private static let countMax = 256
    private let state = Mutex(State())

    /// Calls a callback that returns 0 or a failure.
    func call(_ name: String, _ body: () -> Int32) throws(GuestError) {
        let result = inCallback(body)
        guard result == 0 else { throw note(name, Int(result)) }
    }

    /// The error for a callback that has failed.
    func note(_ name: String, _ result: Int) -> GuestError {
        let error = GuestError(
            code: .callFailed, message: "the guest's callback \(name) returned \(result)")
        state.withLock { state in
            state.last = (name, result)
            if state.results.count >= CallbackFailures.countMax { state.results = [:] }
            state.results[error] = result
        }
        return error
    }

    /// Begins a call: what failed before is not its failure.
    func forgetLast() {
        state.withLock { $0.last = nil }
    }

    /// A callback that was called again has succeeded: that it failed before is no failure.
    func forgive(_ name: String) {
        state.withLock { if $0.last?.name == name { $0.last = nil } }
    }

    /// The failure for an error of the engine; if a callback caused it, the failure names that.
    func failure(for error: any Error) -> Failure {
        let failure = Failure(error)
        guard let result = result(behind: error) else { return failure }
        return Failure(
            VARVE_CALLBACK_FAILED, failure.message, number: Int32(clamping: result))
    }

    private func result(behind error: any Error) -> Int? {
        let checkpointError = error as? CheckpointError
        if let cause = error as? GuestError ?? checkpointError?.guestError {
            return state.withLock { $0.results[cause] }
        }
        // A revert says in its own words what the guest's error left.
        guard checkpointError?.code == .guest else { return nil }
        return state.withLock { $0.last?.result }
    }
}
