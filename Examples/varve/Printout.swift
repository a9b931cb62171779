import Synchronization
import Varve

/// Prints while a command works: a failure to print does not end the work, and is reported at its
/// end.
final class Printout: Sendable {
    private let failure = Mutex<ToolError?>(nil)

    /// Runs `body`, which prints something; does nothing if printing has failed before.
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
    /// - Parameter work: a clause about what was done, without a full stop.
    func check(_ work: @autoclosure () -> String) throws {
        guard let failure = failure.withLock({ $0 }) else { return }
        try Output.report(work()) { throw failure }
    }
}
