import ArgumentParser
import SystemPackage
import Varve

/// What commands that write do while another process writes.
struct LockOptions: ParsableArguments {
    /// The value of `--wait` without a time.
    static let endless = "endless"

    /// How long to wait.
    struct Limit: ExpressibleByArgument {
        /// nil: without limit.
        let timeMax: Duration?

        init?(argument: String) {
            if argument == LockOptions.endless {
                timeMax = nil
            } else if let seconds = Double(argument), seconds >= 0, seconds < 1e9 {
                timeMax = .seconds(seconds)
            } else if let span = TimeSpan(argument: argument) {
                timeMax = span.duration
            } else {
                return nil
            }
        }
    }

    @Option(
        name: .customLong("wait"),
        help: ArgumentHelp(
            "Wait until another process that writes has ended, for at most this time: 30 or "
                + "1200ms. '--wait' alone waits without a limit.", valueName: "seconds"))
    var limit: Limit?

    private var waiting: LockWaiting {
        guard let limit else { return .none }
        return LockWaiting(atMost: limit.timeMax)
    }

    /// Opens a repository for writing.
    func open(_ store: StoreArgument) throws -> Repository {
        try StoreFiles.refuseStandardOutput(in: store)
        return try taking { waiting in
            try Repository.open(
                at: store.path, .writing, waiting: waiting,
                cancellation: Interruption.cancellation)
        }
    }

    /// Closes a repository after work that is durable; if that fails, the message names the work
    /// first.
    ///
    /// - Parameter work: a clause about what was done, without a full stop.
    static func close(_ repository: Repository, after work: String) throws {
        do {
            try repository.close()
        } catch {
            let cause = ToolError(error)
            throw ToolError(
                "\(work), but the repository was not closed: \(cause.message)", cause.kind)
        }
    }

    /// Runs work that takes the writer's lock.
    func taking<T>(_ body: (LockWaiting) throws -> T) throws -> T {
        do {
            return try body(waiting)
        } catch let error as RepositoryError where error.code == .cancelled {
            throw ToolError(error.message, Interruption.ending)
        }
    }
}
