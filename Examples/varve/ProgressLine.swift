import Glibc
import Synchronization
import Varve

/// A line on the terminal that shows how far a command is, how fast, and the time left.
///
/// Prints nothing unless standard error is a terminal.
final class ProgressLine: Sendable {
    private struct State {
        var lastDrawn = ContinuousClock.now
        var hasDrawn = false
    }

    private let verb: String
    private let unitByteCount: Int
    private let isShown: Bool
    private let start = ContinuousClock.now
    private let state = Mutex(State())

    /// A line that begins with `verb`; amounts count units of `unitByteCount` bytes.
    init(_ verb: String, unitByteCount: Int = 1, isJSON: Bool = false) {
        self.verb = verb
        self.unitByteCount = unitByteCount
        isShown = !isJSON && isatty(STDERR_FILENO) == 1
    }

    /// For the calls of the library.
    ///
    /// - Parameter total: the amount in all, if the caller knows it and the library does not.
    func handler(of total: Int? = nil) -> ProgressHandler {
        { progress in self.update(progress.done, of: progress.total ?? total) }
    }

    /// Updates the line; drawn at most ten times a second.
    ///
    /// `total` is nil if it is unknown.
    func update(_ done: Int, of total: Int?) {
        guard isShown else { return }
        let isDue = state.withLock { state in
            let now = ContinuousClock.now
            guard now - state.lastDrawn >= .milliseconds(100) else { return false }
            state.lastDrawn = now
            state.hasDrawn = true
            return true
        }
        guard isDue else { return }
        let elapsed = ProgressLine.seconds(ContinuousClock.now - start)
        let rate = Double(done * unitByteCount) / max(elapsed, 0.001)
        var text = "\(verb) \(Format.bytes(done * unitByteCount))"
        if let total, total > 0 {
            let left = Double((total - done) * unitByteCount) / max(rate, 1)
            text += " of \(Format.bytes(total * unitByteCount)) (\(done * 100 / total) %)"
            text += ", \(Format.bytes(Int(rate)))/s, \(Format.decimal(left, 0)) s left"
        } else {
            text += ", \(Format.bytes(Int(rate)))/s"
        }
        try? Output.write("\r\u{1b}[K" + text, to: STDERR_FILENO)
    }

    /// Removes the line.
    func finish() {
        if state.withLock({ $0.hasDrawn }) { try? Output.write("\r\u{1b}[K", to: STDERR_FILENO) }
    }

    /// Seconds since it began.
    var seconds: Double { ProgressLine.seconds(ContinuousClock.now - start) }

    private static func seconds(_ duration: Duration) -> Double {
        let (seconds, attoseconds) = duration.components
        return Double(seconds) + Double(attoseconds) * 1e-18
    }
}
