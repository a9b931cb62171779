import CheckpointEngine
public import CheckpointStore
import GuestModel
import XenStream

/// Writes checkpoints as files that Xen's tools and others read, sequentially in one pass.
public enum XenExport {
    /// The formats in which a checkpoint can be written in one pass.
    public enum Format: Sendable {
        /// A file that `xl restore` starts.
        ///
        /// The configuration is the checkpoint's own, or the given one: JSON as `xl save` writes
        /// it, or an xl.cfg.
        case xl(configuration: [UInt8]?)
        /// The bare libxc stream, version 3.
        case libxc
        /// The core format of `xl dump-core`.
        case elf
        /// Raw memory, from frame 0; holes are zeros.
        case raw
    }

    /// Writes a checkpoint; every page is verified against its digest first.
    ///
    /// Blocks as `sink` does. Memory: the page map and 64 MiB. Throws `XenStreamError` before the
    /// first byte if the checkpoint lacks what the format needs; otherwise `CaptureError`, or what
    /// `sink` throws.
    ///
    /// - Parameters:
    ///   - checkpoint: the checkpoint to write.
    ///   - repository: the repository that has it.
    ///   - format: the output format.
    ///   - progress: called from time to time with pages done and in all.
    ///   - sink: gets the bytes in order; valid only during the call.
    public static func run(
        _ checkpoint: Checkpoint, from repository: Repository, as format: Format,
        progress: ((_ done: Int, _ total: Int) -> Void)? = nil,
        sink: @escaping (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let memory = try MemoryReader(checkpoint, from: repository)
        switch format {
        case .xl(let configuration):
            var writer = try XenStreamWriter(
                .xl, state: memory.state, configuration: configuration, sink: sink)
            try write(memory, &writer, progress)
        case .libxc:
            var writer = try XenStreamWriter(.libxc, state: memory.state, sink: sink)
            try write(memory, &writer, progress)
        case .elf:
            var writer = try ElfCoreWriter(
                state: memory.state, layout: memory.layout, sink: sink)
            try writer.begin()
            try memory.read(progress: progress) { _, contents in try sink(contents) }
        case .raw: try writeRaw(memory, progress, sink)
        }
    }

    private static func write(
        _ memory: MemoryReader, _ writer: inout XenStreamWriter,
        _ progress: ((Int, Int) -> Void)?
    ) throws {
        try writer.begin()
        try memory.read(progress: progress) { runs, contents in
            try writer.pages(runs, contents)
        }
        try writer.finish()
    }

    private static func writeRaw(
        _ memory: MemoryReader, _ progress: ((Int, Int) -> Void)?,
        _ sink: (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        var end: UInt64 = 0
        try memory.read(progress: progress) { runs, contents in
            var start = 0
            for run in runs {
                var gap = Int(run.first.rawValue - end) * Page.byteCount
                while gap > 0 {
                    let count = min(gap, zeros.count)
                    try zeros.withUnsafeBytes {
                        try sink(UnsafeRawBufferPointer(rebasing: $0[..<count]))
                    }
                    gap -= count
                }
                try sink(
                    UnsafeRawBufferPointer(rebasing: contents[start..<start + run.byteCount]))
                start += run.byteCount
                end = run.end.rawValue
            }
        }
    }
}
