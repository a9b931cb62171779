import ArgumentParser
import Glibc
import Varve

/// The command line tool: an example of the use of the library, and useful by itself.
@main
struct VarveCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "varve",
        abstract: "Keeps checkpoints of guests, and restores any of them.",
        discussion: """
            CHECKPOINT is an id or a prefix of one, the name of a lineage (its newest checkpoint), \
            NAME~3 (three before it; NAME~ is NAME~1), or a label. Names are compared byte for \
            byte.

            Exit codes: 0 done; 1 failed; 2 wrong usage; 3 corruption found; 4 done, but the \
            result could not be printed (commands that write, verify and repair); 129, 130 or 143 \
            stopped by SIGHUP, ^C or SIGTERM; 141 the reader of the output has gone.

            With --json, results are one JSON object per line on standard output, and an error is \
            one on standard error.
            """,
        version: "0.1.0",
        // Each has a `commandName`: the name of a type takes as long to be looked up as the program
        // takes to start.
        subcommands: [
            Init.self, Import.self, Receive.self, Log.self, Show.self, Diff.self, Export.self,
            LabelCommand.self, Forget.self, Prune.self, Verify.self, Repair.self, Stats.self,
            Serve.self, Mount.self, Unmount.self, Xen.self,
        ])

    mutating func run() throws {
        throw ValidationError("name a command; 'varve --help' lists them")
    }

    /// Parses, runs, and ends with one of the documented exit codes.
    static func main() {
        // When a reader goes away, `write` fails instead of the process dying: work is completed
        // first.
        signal(SIGPIPE, SIG_IGN)
        Output.occupyStandardDescriptors()
        var isJSON = false
        do {
            let arguments = Arguments.read()
            isJSON = arguments.contains("--json")
            var command = try parseAsRoot(arguments)
            try Arguments.checkText(arguments)
            try command.run()
        } catch let error as ToolError {
            end(error, isJSON)
        } catch let error as Arguments.NotText {
            Failure.report(ToolError(error.message, .usage), isJSON)
            Glibc.exit(ToolError.Kind.usage.exitCode)
        } catch {
            end(error, isJSON)
        }
    }

    /// Ends with a failure; silently, as with SIGPIPE, if no process reads the output.
    private static func end(_ error: ToolError, _ isJSON: Bool) -> Never {
        if error.kind == .unread {
            signal(SIGPIPE, SIG_DFL)
            raise(SIGPIPE)
        } else {
            Failure.report(error, isJSON)
        }
        Glibc.exit(error.kind.exitCode)
    }

    /// Ends with the parser's message: help and the version, or wrong usage.
    private static func end(_ error: any Error, _ isJSON: Bool) -> Never {
        let isHelp = exitCode(for: error) == .success
        if isJSON && !isHelp {
            Failure.report(ToolError(message(for: error), .usage), isJSON)
            Glibc.exit(ToolError.Kind.usage.exitCode)
        }
        for line in fullMessage(for: error).split(
            separator: "\n", omittingEmptySubsequences: false)
        {
            guard isHelp else {
                Output.standardError(String(line))
                continue
            }
            do {
                try Output.line(String(line))
            } catch {
                end(ToolError(error), isJSON)
            }
        }
        Glibc.exit(isHelp ? 0 : ToolError.Kind.usage.exitCode)
    }
}

/// A failure with its message.
struct ToolError: Error, CustomStringConvertible {
    /// How a command ended; the raw value is the `code` of the JSON object.
    enum Kind: String {
        case failed
        case usage
        case corrupted
        /// The work is done, but its result could not be printed.
        case unreported
        /// The reader of standard output has gone, and the command only prints.
        case unread
        case hungUp
        case interrupted
        case terminated

        /// The documented exit code.
        var exitCode: Int32 {
            switch self {
            case .failed: 1
            case .usage: 2
            case .corrupted: 3
            case .unreported: 4
            case .unread: 128 + SIGPIPE
            case .hungUp: 128 + SIGHUP
            case .interrupted: 128 + SIGINT
            case .terminated: 128 + SIGTERM
            }
        }
    }

    let message: String
    let kind: Kind
    /// How many checkpoints were stored before; for the JSON object.
    var storedCount: Int?

    init(_ message: String, _ kind: Kind = .failed) {
        self.message = message
        self.kind = kind
    }

    init(_ message: String, isCorruption: Bool) {
        self.init(message, isCorruption ? .corrupted : .failed)
    }

    /// Wraps a library's error.
    init(_ error: any Error) {
        switch error {
        case let error as ToolError: self = error
        case let error as RepositoryError where error.code == .invalidOption:
            self.init(error.message, .usage)
        case let error as CheckpointError where error.code == .invalidOption:
            self.init(error.message, .usage)
        case let error as GuestError where error.code == .invalidOption:
            self.init(error.message, .usage)
        case let error as RepositoryError:
            self.init(error.message, damaged: error.code == .corrupted)
        case let error as CheckpointError where error.code == .callerFailed:
            // What a closure of this tool threw.
            self = error.cause.map { ToolError($0) } ?? ToolError(error.message)
        case let error as CheckpointError:
            self.init(error.message, damaged: error.repositoryError?.code == .corrupted)
        default: self.init("\(error)")
        }
    }

    /// Adds the remedy for damage.
    private init(_ message: String, damaged: Bool) {
        self.init(
            damaged
                ? "\(message); 'varve verify' names all damage, 'varve repair' what can "
                    + "be saved, and whole checkpoints can be used by id" : message,
            isCorruption: damaged)
    }

    var description: String { message }
}

/// Runs a command's work and turns its errors into messages.
func reporting(_ body: () throws -> Void) throws {
    do {
        try body()
    } catch {
        throw ToolError(error)
    }
}

/// Prints failures and notices.
enum Failure {
    /// Prints one sentence, or one object, on standard error.
    static func report(_ error: ToolError, _ isJSON: Bool) {
        say(error.message, as: "error", code: error.kind.rawValue, error.storedCount, isJSON)
    }

    /// Prints something that is not a failure but that the user should know.
    static func notice(_ message: String, code: String, isJSON: Bool) {
        say(message, as: "notice", code: code, nil, isJSON)
    }

    private static func say(
        _ message: String, as role: String, code: String, _ stored: Int?, _ isJSON: Bool
    ) {
        if isJSON {
            var fields: [(String, JSON)] = [("code", .string(code)), ("message", .string(message))]
            if let stored { fields.append(("checkpointsStored", .integer(stored))) }
            Output.standardError(JSON.object([(role, .object(fields))]).text)
        } else {
            Output.standardError("varve: \(message)")
        }
    }
}
