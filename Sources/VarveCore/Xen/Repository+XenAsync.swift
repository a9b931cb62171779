public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
public import XenStream

// The `async` forms of the blocking calls (`Repository+Async.swift` in the store, decision 0024).

extension Repository {
    /// `export` without blocking a thread of the cooperative pool; `sink` is called on another
    /// thread.
    public func export(
        _ checkpoint: Checkpoint, volume: String = "memory", as format: ExportFormat,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        sink: @escaping @Sendable (RawSpan) throws -> Void
    ) async throws(CheckpointError) {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.export(
                checkpoint, volume: volume, as: format, cancellation: cancellation,
                progress: progress, sink: sink)
        }
    }

    /// `importXenStream` without blocking a thread of the cooperative pool; the closures are called
    /// on another thread.
    public func importXenStream(
        _ format: XenStreamFormat, lineage: LineageName, label: Label? = nil,
        configuration: [UInt8]? = nil, options: CaptureOptions = CaptureOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        published: @escaping @Sendable (Checkpoint) throws -> Void = { _ in },
        trailing: (@Sendable (UnsafeMutableRawBufferPointer) throws -> Int)? = nil,
        source: @escaping @Sendable (UnsafeMutableRawBufferPointer) throws -> Int
    ) async throws(CheckpointError) -> XenImportResult {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.importXenStream(
                format, lineage: lineage, label: label, configuration: configuration,
                options: options, cancellation: cancellation, progress: progress,
                published: published, trailing: trailing, source: source)
        }
    }
}
