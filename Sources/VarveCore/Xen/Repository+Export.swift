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
    /// The raw volume: memory from frame 0, where frames that do not exist are zeros, or a disk
    /// from its beginning to its end.
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
    ///   - volume: `memory`, or a disk's name; a disk is always written `raw`.
    ///   - format: the format of the output.
    ///   - cancellation: ends the export with `cancelled`, after the window of 32 MiB that is being
    ///     written.
    ///   - progress: called in phase `reading` with pages.
    ///   - sink: called on this thread with the bytes in order, which are valid only during the
    ///     call. What it throws is the error's `cause`.
    public func export(
        _ checkpoint: Checkpoint, volume: String = "memory", as format: ExportFormat,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        sink: @escaping (RawSpan) throws -> Void
    ) throws(CheckpointError) {
        let output = CheckpointOutput(sink: sink, cancellation: cancellation, progress: progress)
        do {
            try output.write(
                try VolumeReader(checkpoint, from: self, volume: volume), as: format)
        } catch {
            throw CheckpointError(wrappingStream: error)
        }
    }
}

/// Writes a volume of a checkpoint in one of the formats.
private struct CheckpointOutput {
    let sink: (RawSpan) throws -> Void
    let cancellation: Cancellation?
    let progress: ProgressHandler?

    func write(_ memory: VolumeReader, as format: ExportFormat) throws {
        let sink = self.sink
        let writer = { (bytes: UnsafeRawBufferPointer) throws in try sink(bytes.bytes) }
        guard !memory.volume.isDisk else {
            guard case .raw = format else {
                throw CheckpointError(
                    .invalidOption,
                    "'\(memory.volume.name)' is a disk, which can only be exported as raw")
            }
            return try writeRaw(memory, writer)
        }
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
        _ memory: VolumeReader, _ deliver: ([PageRange], UnsafeRawBufferPointer) throws -> Void
    ) throws {
        try memory.read(cancellation: cancellation, progress: progress, deliver: deliver)
    }

    private func write(_ memory: VolumeReader, _ writer: XenStreamWriter) throws {
        var writer = writer
        try writer.begin()
        try read(memory) { runs, contents in try writer.pages(runs, contents) }
        try writer.finish()
    }

    private func writeRaw(
        _ memory: VolumeReader, _ write: (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        let byteCount = memory.volume.isDisk ? Int(memory.volume.byteCount) : Int.max
        var end = 0
        func writeZeros(upTo offset: Int) throws {
            while end < offset {
                let count = min(offset - end, zeros.count)
                try zeros.withUnsafeBytes {
                    try write(UnsafeRawBufferPointer(rebasing: $0[..<count]))
                }
                end += count
            }
        }
        try read(memory) { runs, contents in
            var start = 0
            for run in runs {
                let first = Int(run.first.rawValue) * Page.byteCount
                try writeZeros(upTo: first)
                // The last block of a disk may extend past its end.
                let count = min(run.byteCount, byteCount - first)
                try write(UnsafeRawBufferPointer(rebasing: contents[start..<start + count]))
                start += run.byteCount
                end = first + count
            }
        }
        if memory.volume.isDisk { try writeZeros(upTo: byteCount) }
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
