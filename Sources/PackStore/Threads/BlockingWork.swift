package import GuestModel

/// Runs blocking calls for `async` ones: on threads of the library, because a blocked thread of
/// Swift's cooperative pool is missing to every task of the program.
package enum BlockingWork {
    /// Runs `body` on a thread of its own, and returns its result.
    ///
    /// The task that waits blocks no thread. If it is cancelled, the cancellation passed to `body`
    /// is, and this returns when `body` does.
    ///
    /// - Parameters:
    ///   - cancellation: also cancels `body`.
    ///   - wrap: makes the error of a thread that cannot be started.
    ///   - body: is passed the cancellation that it has to obey.
    package static func run<Success: Sendable, Failure: Error>(
        _ cancellation: Cancellation?, wrap: @escaping @Sendable (RepositoryError) -> Failure,
        _ body: @escaping @Sendable (Cancellation) throws(Failure) -> Success
    ) async throws(Failure) -> Success {
        let own = Cancellation(linkedTo: cancellation.map { [$0] } ?? [])
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                do throws(RepositoryError) {
                    _ = try Threads.Thread {
                        continuation.resume(
                            returning: Result { () throws(Failure) in try body(own) })
                    }
                } catch {
                    continuation.resume(returning: Result<Success, Failure>.failure(wrap(error)))
                }
            }
        } onCancel: {
            own.cancel()
        }
        return try result.get()
    }

    /// The same for calls that throw the repository's errors.
    package static func run<Success: Sendable>(
        _ cancellation: Cancellation?,
        _ body: @escaping @Sendable (Cancellation) throws(RepositoryError) -> Success
    ) async throws(RepositoryError) -> Success {
        try await run(cancellation, wrap: { $0 }, body)
    }
}
