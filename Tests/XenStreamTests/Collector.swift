import GuestModel
import XenStream

/// Keeps everything that a reader delivers.
final class Collector: XenStreamVisitor {
    struct Epoch {
        var pages: [UInt64: [UInt8]]
        var state: GuestState
    }

    private(set) var epochs: [Epoch] = []
    private(set) var pages: [UInt64: [UInt8]] = [:]
    private static let zeros = [UInt8](repeating: 0, count: Page.byteCount)

    func pages(_ frames: Span<PageFrameNumber>, _ contents: RawSpan) {
        contents.withUnsafeBytes { bytes in
            for index in frames.indices {
                let start = index * Page.byteCount
                pages[frames[index].rawValue] = Array(bytes[start..<start + Page.byteCount])
            }
        }
    }

    func frame(_ frame: PageFrameNumber, isPopulated: Bool) {
        pages[frame.rawValue] = isPopulated ? Collector.zeros : nil
    }

    func endEpoch(_ state: GuestState) {
        epochs.append(Epoch(pages: pages, state: state))
    }
}

/// A stream in memory, delivered in pieces of random lengths.
func read(
    _ bytes: [UInt8], as format: XenStreamFormat, pieceByteCountMax: Int = .max
) throws -> (Collector, XenStreamSummary) {
    let collector = Collector()
    var position = 0
    var reader = XenStreamReader(format: format) { buffer in
        let count = min(buffer.count, bytes.count - position, pieceByteCountMax)
        buffer.copyBytes(from: bytes[position..<position + count])
        position += count
        return count
    }
    try reader.run(collector)
    return (collector, reader.summary)
}

/// An epoch as a stream again.
func write(
    _ epoch: Collector.Epoch, as format: XenStreamWriter.Format, configuration: [UInt8]? = nil
) throws -> [UInt8] {
    var output: [UInt8] = []
    var writer = try XenStreamWriter(format, state: epoch.state, configuration: configuration) {
        output.append(contentsOf: $0)
    }
    try writer.begin()
    let frames = epoch.pages.keys.sorted()
    let layout = GuestLayout(
        runs: frames.map { PageRange(first: PageFrameNumber($0), count: 1) })
    // Several calls, as in an export.
    for run in layout.runs {
        let contents = run.frames.flatMap { epoch.pages[$0] ?? [] }
        try contents.withUnsafeBytes { try writer.pages([run], $0) }
    }
    try writer.finish()
    return output
}
