package import GuestModel

/// Runs blocking calls for `async` ones, on threads of the library: no task of the program could
/// use a thread of Swift's cooperative pool that a call blocks.
package enum BlockingWork {
    /// Runs `body` on a thread of its own, and returns its result.
    ///
    /// The task that waits blocks no thread. Cancelling it cancels the cancellation that `body`
    /// gets; this returns when `body` returns.
    ///
    /// - Parameters:
    ///   - cancellation: also cancels the one that `body` gets.
    ///   - wrap: converts the error that is thrown if no thread can be started.
    ///   - body: gets the cancellation that ends it.
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
