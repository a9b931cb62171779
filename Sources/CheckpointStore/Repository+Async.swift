public import GuestModel
public import PackStore
public import SystemPackage

// The `async` forms of the blocking calls (decision 0024). Each runs its blocking form on a thread
// of the library, so no thread of the cooperative pool is blocked. Cancelling the task does what
// `cancellation` does; a form without that argument cannot be cancelled. Results, errors and what a
// cancelled call leaves are those of the blocking form. If no thread can be started, a form throws
// `callFailed`.

extension Repository {
    /// `create` without blocking a thread of the cooperative pool.
    public static func create(at path: FilePath) async throws(RepositoryError) -> Repository {
        try await BlockingWork.run(nil) { (_) throws(RepositoryError) in try create(at: path) }
    }

    /// `open` without blocking a thread of the cooperative pool.
    public static func open(
        at path: FilePath, _ access: Access, waiting: LockWaiting = .none,
        cancellation: Cancellation? = nil
    ) async throws(RepositoryError) -> Repository {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try open(at: path, access, waiting: waiting, cancellation: cancellation)
        }
    }

    /// `planPrune` without blocking a thread of the cooperative pool.
    public func planPrune(
        _ options: PruneOptions = PruneOptions(), cancellation: Cancellation? = nil
    ) async throws(RepositoryError) -> PrunePlan {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try self.planPrune(options, cancellation: cancellation)
        }
    }

    /// `forget` without blocking a thread of the cooperative pool.
    public func forget(_ ids: [CheckpointID]) async throws(RepositoryError) {
        try await BlockingWork.run(nil) { (_) throws(RepositoryError) in try self.forget(ids) }
    }

    /// `close` without blocking a thread of the cooperative pool.
    public func close() async throws(RepositoryError) {
        try await BlockingWork.run(nil) { (_) throws(RepositoryError) in try self.close() }
    }
}

extension PrunePlan {
    /// `execute` without blocking a thread of the cooperative pool.
    @discardableResult
    public func execute(
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(RepositoryError) -> PrunePlan {
        try await BlockingWork.run(cancellation) { (cancellation) throws(RepositoryError) in
            try self.execute(cancellation: cancellation, progress: progress)
        }
    }
}
