public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import XenStream

/// The formats in which a checkpoint can be exported.
public enum ExportFormat: Sendable {
    /// The format of `xl save`, which `xl restore` reads.
    ///
    /// The configuration is JSON as `xl save` writes it, or an xl.cfg; nil for the checkpoint's
    /// own.
    case xl(configuration: [UInt8]?)
    /// The libxc stream without a header of xl or libxl, version 3.
    case libxc
    /// The core format of `xl dump-core`.
    case elf
    /// Raw memory from frame 0; frames that do not exist are zeros.
    case raw
}

extension Repository {
    /// Writes a checkpoint in a format that Xen's tools and others read, from beginning to end.
    ///
    /// Each page is verified against its digest before it is written.
    ///
    /// Blocks on `sink` and on the disk. Needs memory for the page map and 64 MiB. Throws
    /// `invalidStream` before the first byte if the checkpoint lacks what the format requires. When
    /// this throws later, also because it was cancelled, `sink` got a part of the output.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of this repository.
    ///   - format: the format of the output.
    ///   - cancellation: ends the export with `cancelled`, after the window of 32 MiB that is being
    ///     written.
    ///   - progress: called in phase `reading` with pages.
    ///   - sink: called on this thread with the bytes in order, which are valid only during the
    ///     call. What it throws is the error's `cause`.
    public func export(
        _ checkpoint: Checkpoint, as format: ExportFormat, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil, sink: @escaping (RawSpan) throws -> Void
    ) throws(CheckpointError) {
        let output = CheckpointOutput(sink: sink, cancellation: cancellation, progress: progress)
        do {
            try output.write(try MemoryReader(checkpoint, from: self), as: format)
        } catch {
            throw CheckpointError(wrappingStream: error)
        }
    }
}

/// Writes the memory of a checkpoint in one of the formats.
private struct CheckpointOutput {
    let sink: (RawSpan) throws -> Void
    let cancellation: Cancellation?
    let progress: ProgressHandler?

    func write(_ memory: MemoryReader, as format: ExportFormat) throws {
        let sink = self.sink
        let writer = { (bytes: UnsafeRawBufferPointer) throws in try sink(bytes.bytes) }
        switch format {
        case .xl(let configuration):
            try write(
                memory,
                XenStreamWriter(
                    .xl, state: memory.state, configuration: configuration, sink: writer))
        case .libxc:
            try write(memory, XenStreamWriter(.libxc, state: memory.state, sink: writer))
        case .elf:
            var core = try ElfCoreWriter(
                state: memory.state, layout: memory.layout, sink: writer)
            try core.begin()
            try read(memory) { _, contents in try writer(contents) }
        case .raw: try writeRaw(memory, writer)
        }
    }

    private func read(
        _ memory: MemoryReader, _ deliver: ([PageRange], UnsafeRawBufferPointer) throws -> Void
    ) throws {
        try memory.read(cancellation: cancellation, progress: progress, deliver: deliver)
    }

    private func write(_ memory: MemoryReader, _ writer: XenStreamWriter) throws {
        var writer = writer
        try writer.begin()
        try read(memory) { runs, contents in try writer.pages(runs, contents) }
        try writer.finish()
    }

    private func writeRaw(
        _ memory: MemoryReader, _ write: (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        var end: UInt64 = 0
        try read(memory) { runs, contents in
            var start = 0
            for run in runs {
                var gap = Int(run.first.rawValue - end) * Page.byteCount
                while gap > 0 {
                    let count = min(gap, zeros.count)
                    try zeros.withUnsafeBytes {
                        try write(UnsafeRawBufferPointer(rebasing: $0[..<count]))
                    }
                    gap -= count
                }
                try write(
                    UnsafeRawBufferPointer(rebasing: contents[start..<start + run.byteCount]))
                start += run.byteCount
                end = run.end.rawValue
            }
        }
    }
}

extension CheckpointError {
    /// Wraps an error that was thrown while a stream of Xen was imported or exported.
    package init(wrappingStream error: any Error) {
        let stream =
            error as? XenStreamError ?? (error as? CheckpointError)?.cause as? XenStreamError
        if let stream {
            self.init(.invalidStream, stream.message, cause: stream)
        } else {
            self.init(wrapping: error)
        }
    }
}
