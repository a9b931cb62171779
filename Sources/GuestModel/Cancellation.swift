import Synchronization

/// Ends calls early, from any thread.
///
/// A call to which it was passed, and which is then cancelled, throws an error with the code
/// `cancelled` at its next step. A call that waits is woken. A read or write of the disk, a pause
/// of a guest, and a closure of the caller's are not interrupted. The documentation of each call
/// says what it leaves. A call whose work is already done returns its result.
///
/// One cancellation may be passed to any number of calls. It cannot be reset: calls that have it
/// and begin later fail at once. The `async` forms of calls are also cancelled with their task.
public final class Cancellation: Sendable {
    private struct State {
        var handlers: [UInt64: @Sendable () -> Void] = [:]
        var next: UInt64 = 0
    }

    /// A handler that is called when its cancellation is cancelled, until this is released.
    package final class Registration: Sendable {
        private let cancellation: Cancellation
        private let key: UInt64

        fileprivate init(_ cancellation: Cancellation, _ key: UInt64) {
            self.cancellation = cancellation
            self.key = key
        }

        deinit {
            // Released outside the lock: it may own what removes handlers in its turn.
            let handler = cancellation.state.withLock { $0.handlers.removeValue(forKey: key) }
            withExtendedLifetime(handler) {}
        }
    }

    private let flag = Atomic(false)
    private let state = Mutex(State())
    private let condition: (@Sendable () -> Bool)?
    private let links = Mutex<[Registration]>([])

    /// A cancellation that is not cancelled yet.
    public init() {
        condition = nil
    }

    /// A cancellation that is also cancelled when one of `others` is.
    package init(linkedTo others: [Cancellation]) {
        condition = others.first { $0.condition != nil }?.condition
        let registrations = others.compactMap { other in
            other.register { [weak self] in self?.cancel() }
        }
        links.withLock { $0 = registrations }
    }

    /// A cancellation that also counts as cancelled once `condition` has returned true.
    ///
    /// - Parameter condition: called by each check. When it becomes true no waiting call is woken.
    package init(when condition: @escaping @Sendable () -> Bool) {
        self.condition = condition
    }

    /// Cancels the calls to which this cancellation was passed, and those to which it will be.
    ///
    /// Returns before the calls have ended. Calling it again has no effect. It takes a lock, so it
    /// must not be called by a signal handler.
    public func cancel() {
        let handlers = state.withLock { state in
            flag.store(true, ordering: .relaxed)
            defer { state.handlers = [:] }
            return state.handlers.values
        }
        for handler in handlers { handler() }
    }

    /// True if it was cancelled.
    public var isCancelled: Bool {
        if flag.load(ordering: .relaxed) { return true }
        guard let condition, condition() else { return false }
        // Without waking: the caller may hold the lock that a handler takes.
        flag.store(true, ordering: .relaxed)
        return true
    }

    /// Registers a handler that is called once, by the thread that cancels this.
    ///
    /// If this is cancelled already, the handler is called before `register` returns. It may also
    /// be called shortly after the registration was released.
    ///
    /// - Returns: the registration, which keeps the handler; nil if the handler was called.
    package func register(_ handler: @escaping @Sendable () -> Void) -> Registration? {
        let key = state.withLock { state -> UInt64? in
            if flag.load(ordering: .relaxed) { return nil }
            state.next += 1
            state.handlers[state.next] = handler
            return state.next
        }
        guard let key else {
            handler()
            return nil
        }
        return Registration(self, key)
    }
}
