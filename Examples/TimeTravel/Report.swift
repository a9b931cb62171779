import Glibc
import VarveCore

/// The demonstration's output.
enum Report {
    /// True if standard output is a terminal.
    static let isTerminal = isatty(STDOUT_FILENO) == 1

    /// Prints a line immediately.
    static func line(_ text: String) {
        if isTerminal { print("\r\u{1b}[K", terminator: "") }
        print(text)
        fflush(nil)
    }

    /// Draws the progress line over the previous one; only on a terminal.
    static func progress(_ text: String) {
        guard isTerminal else { return }
        print("\r\u{1b}[K\(text)", terminator: "")
        fflush(nil)
    }

    /// Whole microseconds.
    static func microseconds(_ duration: Duration) -> Int {
        let (seconds, attoseconds) = duration.components
        return Int(seconds) * 1_000_000 + Int(attoseconds / 1_000_000_000_000)
    }

    /// `1.5 MiB`.
    static func mebibytes(_ byteCount: Int) -> String {
        let tenths = (byteCount * 10 + (1 << 19)) >> 20
        return "\(tenths / 10).\(tenths % 10) MiB"
    }

    /// Right-aligns a text.
    static func pad(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(0, width - text.count)) + text
    }

    /// The table of checkpoints: up to 30 of them, evenly chosen.
    static func table(_ results: [CaptureResult], fullByteCount: [Int]) {
        line(
            "checkpoint    time (s)  dirty pages  pause (us)  bytes stored  full copy would store")
        guard let first = results.first else { return }
        let step = max(1, (results.count + 29) / 30)
        for index in stride(from: 0, to: results.count, by: step) {
            let result = results[index]
            let elapsed = result.checkpoint.timeNanoseconds - first.checkpoint.timeNanoseconds
            let milliseconds = Int(elapsed / 1_000_000)
            let fraction = "00\(milliseconds % 1000)".suffix(3)
            let cells = [
                result.checkpoint.id.short, pad("\(milliseconds / 1000).\(fraction)", 8),
                pad("\(result.dirtyPageCount)", 11), pad("\(microseconds(result.pause))", 10),
                pad("\(result.checkpoint.addedByteCount)", 12), pad("\(fullByteCount[index])", 21),
            ]
            line(cells.joined(separator: "  "))
        }
        let stored = results.reduce(0) { $0 + $1.checkpoint.addedByteCount }
        line(
            "\(results.count) checkpoints: \(mebibytes(stored)) stored, full copies would take "
                + mebibytes(fullByteCount.reduce(0, +)))
    }

    /// p50, p99 and the longest pause; without the first capture, which copies everything.
    static func pauses(_ results: [CaptureResult]) -> String {
        let sorted = results.dropFirst().map { microseconds($0.pause) }.sorted()
        guard let longest = sorted.last else { return "no pauses" }
        let middle = sorted[sorted.count / 2]
        let late = sorted[min(sorted.count - 1, sorted.count * 99 / 100)]
        return "pause p50 \(middle) us, p99 \(late) us, max \(longest) us"
    }
}
