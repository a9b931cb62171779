public import CheckpointStore
public import GuestModel
public import PackStore
public import SystemPackage

// The `async` forms of the blocking calls (`Repository+Async.swift` in the store, decision 0024).

extension Repository {
    /// `verify` without blocking a thread of the cooperative pool.
    public func verify(
        _ depth: VerifyDepth = .full, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) async throws(RepositoryError) -> VerifyReport {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try self.verify(depth, cancellation: cancellation, progress: progress)
        }
    }

    /// `planRepair` without blocking a thread of the cooperative pool.
    public static func planRepair(
        at path: FilePath, waiting: LockWaiting = .none, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) async throws(RepositoryError) -> RepairPlan {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try planRepair(
                at: path, waiting: waiting, cancellation: cancellation, progress: progress)
        }
    }
}

extension RepairPlan {
    /// `execute` without blocking a thread of the cooperative pool.
    public func execute(
        keepsOriginals: Bool = true, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) async throws(RepositoryError) -> RepairOutcome {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try self.execute(
                keepsOriginals: keepsOriginals, cancellation: cancellation, progress: progress)
        }
    }
}
