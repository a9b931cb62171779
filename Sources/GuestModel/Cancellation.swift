import Synchronization

/// Ends calls early, from any thread.
///
/// Pass one to a call that waits or runs long, and cancel it: the call fails with its error's code
/// `cancelled` at its next step, and a call that waits is woken. The documentation of each call
/// says what it leaves. One cancellation may be passed to any number of calls; it stays cancelled.
/// A call whose work is already done returns its result.
///
/// The `async` variants of calls are also cancelled with their task.
public final class Cancellation: Sendable {
    private struct State {
        var handlers: [UInt64: @Sendable () -> Void] = [:]
        var next: UInt64 = 0
    }

    private let flag = Atomic(false)
    private let state = Mutex(State())
    private let condition: (@Sendable () -> Bool)?

    /// A cancellation that is not cancelled yet.
    public init() {
        condition = nil
    }

    /// One that also counts as cancelled once `condition` has returned true.
    ///
    /// - Parameter condition: called by each check; nothing wakes a call that waits for it.
    package init(when condition: @escaping @Sendable () -> Bool) {
        self.condition = condition
    }

    /// Cancels the calls that have this cancellation, now and later.
    ///
    /// Does not wait for them. Harmless when called again. Takes a lock: not for signal handlers.
    public func cancel() {
        let handlers = state.withLock { state in
            flag.store(true, ordering: .relaxed)
            defer { state.handlers = [:] }
            return state.handlers.values
        }
        for handler in handlers { handler() }
    }

    /// True once it was cancelled.
    public var isCancelled: Bool {
        if flag.load(ordering: .relaxed) { return true }
        guard let condition, condition() else { return false }
        // Without waking: the caller may hold the lock that a handler takes.
        flag.store(true, ordering: .relaxed)
        return true
    }

    /// Runs `body`; if this is cancelled meanwhile, or was before, calls `wake` on the cancelling
    /// thread.
    ///
    /// `wake` may also be called shortly after `body` has returned.
    package func onCancel<Result: ~Copyable, Failure: Error>(
        _ wake: @escaping @Sendable () -> Void, while body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let key = state.withLock { state -> UInt64? in
            if flag.load(ordering: .relaxed) { return nil }
            state.next += 1
            state.handlers[state.next] = wake
            return state.next
        }
        if key == nil { wake() }
        defer { if let key { state.withLock { $0.handlers[key] = nil } } }
        return try body()
    }
}
