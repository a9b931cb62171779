import Dispatch
import VarveCore

// The programs of the articles in Varve.docc. Each function appears in its article verbatim, which
// a test checks. Run one with a directory that does not exist yet:
//
//   guide first-checkpoint DIRECTORY
//   guide fill DIRECTORY                 captures until it is killed
//   guide after-a-crash DIRECTORY        continues from there
//   guide your-own-guest DIRECTORY       checks a guest of its own, and captures it
//   guide concurrency DIRECTORY          the asynchronous calls, on one thread

@main
enum GuideCommand {
    static func main() async throws {
        let arguments = CommandLine.arguments.dropFirst()
        guard arguments.count == 2, let name = arguments.first, let path = arguments.last else {
            throw Usage()
        }
        let store = FilePath(path)
        switch name {
        case "first-checkpoint": try firstCheckpoint(in: store)
        case "fill": try fillUntilKilled(store)
        case "after-a-crash": try goOnAfterACrash(store)
        case "your-own-guest": try yourOwnGuest(in: store)
        case "concurrency":
            try await withTaskExecutorPreference(OneThread()) {
                try await concurrency(in: store)
            }
        default: throw Usage()
        }
    }

    /// The usage message.
    struct Usage: Error, CustomStringConvertible {
        let description =
            "usage: guide first-checkpoint|fill|after-a-crash|your-own-guest|concurrency DIRECTORY"
    }
}

/// Runs tasks one at a time: where a call blocked its thread, no other task would get on.
final class OneThread: TaskExecutor {
    private let queue = DispatchQueue(label: "tasks")

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        queue.async { job.runSynchronously(on: self.asUnownedTaskExecutor()) }
    }
}
