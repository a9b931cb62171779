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
    ///   - body: is passed the cancellation that it has to obey.
    package static func run<Success: Sendable, Failure: Error>(
        _ cancellation: Cancellation?,
        _ body: @escaping @Sendable (Cancellation) throws(Failure) -> Success
    ) async throws(Failure) -> Success {
        let own = Cancellation()
        let work: @Sendable () -> Result<Success, Failure> = {
            guard let cancellation else { return Result { () throws(Failure) in try body(own) } }
            return cancellation.onCancel({ own.cancel() }) {
                Result { () throws(Failure) in try body(own) }
            }
        }
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                _ = Threads.Thread { continuation.resume(returning: work()) }
            }
        } onCancel: {
            own.cancel()
        }
        return try result.get()
    }
}
