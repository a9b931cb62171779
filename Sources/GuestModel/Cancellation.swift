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

    /// One that is also cancelled when one of others is.
    package init(linkedTo others: [Cancellation]) {
        condition = others.first { $0.condition != nil }?.condition
        let registrations = others.compactMap { other in
            other.register { [weak self] in self?.cancel() }
        }
        links.withLock { $0 = registrations }
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

    /// Has a handler called, once, by the thread that cancels this; at once if it is cancelled.
    ///
    /// The handler may also be called shortly after the registration was released.
    ///
    /// - Returns: what keeps the handler; nil if it was called at once.
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
