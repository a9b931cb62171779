// A target for libFuzzer; Scripts/fuzz builds and runs it. Conditions for any bytes:
//
//   - the reader ends, with a summary or an XenStreamError, and never traps
//   - it asks for no more memory than the input's size and its own buffer justify (-rss_limit_mb)
//   - a stream that is read whole is rewritten, and the result is the same guest
import GuestModel
import XenStream

/// The entry that libFuzzer calls.
///
/// The first byte chooses the format where the bytes do not say it.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOne(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    if let format = XenStreamFormat(detecting: bytes) { check(bytes, format) }
    return 0
}

private func check(_ bytes: UnsafeRawBufferPointer, _ format: XenStreamFormat) {
    let first = Keeper()
    guard read(bytes, format, first), let epoch = first.last else { return }
    let once = write(epoch)
    let second = Keeper()
    once.withUnsafeBytes { again in
        precondition(read(again, .libxc, second), "what was written can be read")
    }
    guard let again = second.last else { preconditionFailure("a whole stream has an epoch") }
    precondition(again.pages == epoch.pages, "pages come back")
    precondition(write(again) == once, "a second write gives the same bytes")
}

/// Keeps the newest epoch: a page as the sum of its bytes, which is enough to distinguish pages
/// that a defect would swap.
private final class Keeper: XenStreamVisitor {
    struct Epoch {
        var pages: [UInt64: [UInt8]]
        var state: GuestState
    }

    private(set) var last: Epoch?
    private var pages: [UInt64: [UInt8]] = [:]

    func pages(_ frames: Span<PageFrameNumber>, _ contents: RawSpan) {
        contents.withUnsafeBytes { bytes in
            for index in frames.indices {
                let page = bytes[index * Page.byteCount..<(index + 1) * Page.byteCount]
                pages[frames[index].rawValue] = Array(page)
            }
        }
    }

    func frame(_ frame: PageFrameNumber, isPopulated: Bool) {
        pages[frame.rawValue] =
            isPopulated ? [UInt8](repeating: 0, count: Page.byteCount) : nil
    }

    func endEpoch(_ state: GuestState) {
        last = Epoch(pages: pages, state: state)
    }
}

/// True if the stream was read to its end.
private func read(
    _ bytes: UnsafeRawBufferPointer, _ format: XenStreamFormat, _ keeper: Keeper
) -> Bool {
    var position = 0
    var reader = XenStreamReader(format: format) { buffer in
        // Odd pieces, so that records straddle the buffer.
        let count = min(buffer.count, bytes.count - position, 4093)
        buffer.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: bytes[position..<position + count]))
        position += count
        return count
    }
    do {
        try reader.run(keeper)
        return true
    } catch is XenStreamError {
        return false
    } catch {
        preconditionFailure("a stream in memory fails as a stream alone: \(error)")
    }
}

private func write(_ epoch: Keeper.Epoch) -> [UInt8] {
    var output: [UInt8] = []
    do {
        var writer = try XenStreamWriter(.libxc, state: epoch.state) {
            output.append(contentsOf: $0)
        }
        try writer.begin()
        for frame in epoch.pages.keys.sorted() {
            let run = PageRange(first: PageFrameNumber(frame), count: 1)
            try (epoch.pages[frame] ?? []).withUnsafeBytes { try writer.pages([run], $0) }
        }
        try writer.finish()
    } catch {
        preconditionFailure("what was read can be written: \(error)")
    }
    return output
}
