import GuestModel
import XenStream

/// Writes memory as a stream of libxc, for benchmarks that import one.
public enum PageStream {
    /// Writes the stream of an HVM guest with this memory, from frame 0, and little other state.
    public static func write(
        _ memory: UnsafeRawBufferPointer, sink: @escaping (UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let header: [UInt8] = [2, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 17, 0, 0, 0]
        let state = GuestState(records: [
            .init(kind: XenStateKind.domainHeader, bytes: header),
            .init(kind: "libxc.HVM_CONTEXT", bytes: [UInt8](repeating: 1, count: 2504)),
        ])
        var writer = try XenStreamWriter(.libxc, state: state, sink: sink)
        try writer.begin()
        let step = 4 << 20
        for offset in stride(from: 0, to: memory.count, by: step) {
            let piece = UnsafeRawBufferPointer(
                rebasing: memory[offset..<min(offset + step, memory.count)])
            let first = PageFrameNumber(UInt64(offset / Page.byteCount))
            try writer.pages(
                [PageRange(first: first, count: piece.count / Page.byteCount)], piece)
        }
        try writer.finish()
    }
}
