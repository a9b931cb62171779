public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore

// The `async` forms of the blocking calls (`Repository+Async.swift` in the store, decision 0024).

extension BlockingWork {
    /// Runs a call of the engine.
    package static func run<Success: Sendable>(
        _ cancellation: Cancellation?,
        _ body: @escaping @Sendable (Cancellation) throws(CheckpointError) -> Success
    ) async throws(CheckpointError) -> Success {
        try await run(cancellation, wrap: { CheckpointError(wrapping: $0) }, body)
    }
}

extension CaptureSession {
    /// Begins a session, as `init` does, without blocking a thread of the cooperative pool.
    ///
    /// Cancelling the task has no effect.
    public static func open(
        of guest: any Guest, in repository: Repository, lineage: LineageName,
        parent: Checkpoint? = nil, options: CaptureOptions = CaptureOptions()
    ) async throws(CheckpointError) -> CaptureSession {
        try await BlockingWork.run(nil) { (_) throws(CheckpointError) in
            try CaptureSession(
                of: guest, in: repository, lineage: lineage, parent: parent, options: options)
        }
    }

    /// `capture` without blocking a thread of the cooperative pool.
    public func capture(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> CaptureResult {
        do {
            return try await begin(label: label, cancellation: cancellation, progress: progress)
                .wait()
        } catch {
            guard let audit = error.audit else { throw error }
            var result = try await begin(
                label: label, cancellation: cancellation, progress: progress
            ).wait()
            result.audit = audit
            return result
        }
    }

    /// `begin` without blocking a thread of the cooperative pool.
    ///
    /// Cancelling the task has no effect once this has returned; cancel the result instead.
    public func begin(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> PendingCapture {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.begin(label: label, cancellation: cancellation, progress: progress)
        }
    }

    /// `revert` without blocking a thread of the cooperative pool.
    @discardableResult
    public func revert(
        to checkpoint: Checkpoint, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> RevertResult {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.revert(to: checkpoint, cancellation: cancellation, progress: progress)
        }
    }

    /// `close` without blocking a thread of the cooperative pool, unless no other thread can be
    /// started.
    ///
    /// Cancelling the task has no effect.
    public func close() async {
        do throws(CheckpointError) {
            try await BlockingWork.run(nil) { (_) throws(CheckpointError) in self.end() }
        } catch {
            // No thread can be started. A session must end, so this thread is blocked.
            end()
        }
    }
}

extension Repository {
    /// `restore` without blocking a thread of the cooperative pool.
    @discardableResult
    public func restore(
        _ checkpoint: Checkpoint, volume: String = "memory", into guest: any WritableGuest,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> RestoreResult {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.restore(
                checkpoint, volume: volume, into: guest, cancellation: cancellation,
                progress: progress)
        }
    }

    /// `importVolumes` without blocking a thread of the cooperative pool.
    public func importVolumes(
        memory: (any ImageSource)?, disks: [RawDiskImage], lineage: LineageName,
        label: Label? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> Checkpoint {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.importVolumes(
                memory: memory, disks: disks, lineage: lineage, label: label, options: options,
                cancellation: cancellation, progress: progress)
        }
    }

    /// `importImage` without blocking a thread of the cooperative pool.
    public func importImage(
        _ image: some ImageSource, lineage: LineageName, label: Label? = nil,
        options: CaptureOptions = CaptureOptions(), cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> Checkpoint {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.importImage(
                image, lineage: lineage, label: label, options: options,
                cancellation: cancellation, progress: progress)
        }
    }

    /// `importImage` without blocking a thread of the cooperative pool; `read` is called on another
    /// thread.
    public func importImage(
        lineage: LineageName, label: Label? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        read: @escaping @Sendable (UnsafeMutableRawBufferPointer) throws -> Int
    ) async throws(CheckpointError) -> Checkpoint {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.importImage(
                lineage: lineage, label: label, options: options, cancellation: cancellation,
                progress: progress, read: read)
        }
    }
}
