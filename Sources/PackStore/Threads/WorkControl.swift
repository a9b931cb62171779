package import GuestModel

/// The progress handler and the cancellation of one long call.
package struct WorkControl: Sendable {
    private let remains: String
    private let progress: ProgressHandler?
    package let cancellation: Cancellation?

    /// - Parameters:
    ///   - remains: the message of the error `cancelled`: what was cancelled, and what it left.
    package init(
        _ remains: String, _ cancellation: Cancellation?, _ progress: ProgressHandler? = nil
    ) {
        self.remains = remains
        self.cancellation = cancellation
        self.progress = progress
    }

    /// The control of a call that cannot be cancelled and reports nothing.
    package static let none = WorkControl("", nil)

    /// The error that a call throws when it is cancelled.
    package var cancelled: RepositoryError { RepositoryError(.cancelled, remains) }

    /// Throws `cancelled` if the call was cancelled.
    package func check() throws(RepositoryError) {
        if let cancellation, cancellation.isCancelled { throw cancelled }
    }

    /// Reports progress; throws `cancelled` if the call was cancelled or the handler throws.
    package func report(
        _ phase: Progress.Phase, _ unit: Progress.Unit, _ done: Int, of total: Int?
    ) throws(RepositoryError) {
        try check()
        guard let progress else { return }
        do {
            try progress(Progress(phase: phase, unit: unit, done: done, total: total))
        } catch {
            throw RepositoryError(.cancelled, "\(remains) (its progress handler threw: \(error))")
        }
    }
}

extension Monitor {
    /// Blocks until `body` returns a value, and returns that value; returns nil if the wait is
    /// cancelled first.
    ///
    /// `body` is called as by `wait`, and before the cancellation is checked.
    package func wait<T>(
        until cancellation: Cancellation?, _ body: (inout Value) -> T?
    ) -> T? {
        guard let cancellation else { return wait(body) }
        // Most calls need not wait, and register nothing.
        if let result = attempt(body) { return result }
        let registration = cancellation.register { self.change { _ in } }
        defer { withExtendedLifetime(registration) {} }
        return wait { value -> T?? in
            if let result = body(&value) { return .some(result) }
            return cancellation.isCancelled ? .some(nil) : nil
        }
    }
}
