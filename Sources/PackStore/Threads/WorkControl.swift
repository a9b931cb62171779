package import GuestModel

/// What a long call tells its caller, and what may end it early.
package struct WorkControl: Sendable {
    private let remains: String
    private let progress: ProgressHandler?
    package let cancellation: Cancellation?

    /// - Parameters:
    ///   - remains: the message of the error: what was cancelled, and what is left of it.
    package init(
        _ remains: String, _ cancellation: Cancellation?, _ progress: ProgressHandler? = nil
    ) {
        self.remains = remains
        self.cancellation = cancellation
        self.progress = progress
    }

    /// For a call that nothing ends.
    package static let none = WorkControl("", nil)

    /// The error of a call that was cancelled.
    package var cancelled: RepositoryError { RepositoryError(.cancelled, remains) }

    /// Throws `cancelled` if the call is to end.
    package func check() throws(RepositoryError) {
        if let cancellation, cancellation.isCancelled { throw cancelled }
    }

    /// Reports progress; throws `cancelled` if the call is to end.
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
    /// Blocks until `body` returns a value, and returns that; nil if the wait is cancelled first.
    ///
    /// `body` is called as by `wait`.
    package func wait<T>(
        until cancellation: Cancellation?, _ body: (inout Value) -> T?
    ) -> T? {
        guard let cancellation else { return wait(body) }
        let registration = cancellation.register { self.change { _ in } }
        defer { withExtendedLifetime(registration) {} }
        return wait { value -> T?? in
            if let result = body(&value) { return .some(result) }
            return cancellation.isCancelled ? .some(nil) : nil
        }
    }
}
