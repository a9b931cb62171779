import Synchronization
import Varve

/// What a command prints while it works: a failure to print does not end the work, and is told when
/// the work has ended.
final class Printout: Sendable {
    private let failure = Mutex<ToolError?>(nil)

    /// Runs `body`, which prints something; nothing if printing failed before.
    func print(_ body: () throws -> Void) {
        failure.withLock { failure in
            guard failure == nil else { return }
            do {
                try body()
            } catch {
                failure = ToolError(error)
            }
        }
    }

    /// Throws, with exit code 4, if something could not be printed.
    ///
    /// - Parameter work: a sentence about what was done, without a full stop.
    func check(_ work: @autoclosure () -> String) throws {
        guard let failure = failure.withLock({ $0 }) else { return }
        try Output.report(work()) { throw failure }
    }
}
