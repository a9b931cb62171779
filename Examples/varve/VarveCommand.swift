import ArgumentParser
import Glibc
import Varve

/// The command line tool: an example of the library at work, and useful by itself.
@main
struct VarveCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "varve",
        abstract: "Keeps checkpoints of guests, and brings any of them back.",
        discussion: """
            CHECKPOINT is the name of a lineage (its newest checkpoint), NAME~3 (three before it), \
            a label, or the beginning of an id.

            Exit codes: 0 done, 1 failed, 2 wrong usage, 3 corruption found. With --json, results \
            are one JSON object a line on standard output, and an error is one on standard error.
            """,
        version: "0.1.0",
        subcommands: [
            Init.self, Import.self, Receive.self, Log.self, Show.self, Diff.self, Export.self,
            Forget.self, Prune.self, Verify.self, Repair.self, Stats.self, Xen.self,
        ])

    /// Parses, runs, and ends with one of the documented exit codes.
    static func main() {
        // A reader that goes away is an error of `write`, not a death.
        signal(SIGPIPE, SIG_IGN)
        Output.occupyStandardDescriptors()
        let isJSON = CommandLine.arguments.contains("--json")
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let error as ToolError {
            Failure.report(error.message, code: error.isCorruption ? "corrupted" : "failed", isJSON)
            Glibc.exit(error.isCorruption ? 3 : 1)
        } catch {
            if exitCode(for: error) == .success { exit(withError: error) }
            if isJSON {
                Failure.report(message(for: error), code: "usage", isJSON)
            } else {
                Output.standardError(fullMessage(for: error))
            }
            Glibc.exit(2)
        }
    }
}

/// A failure with its sentence.
struct ToolError: Error, CustomStringConvertible {
    let message: String
    let isCorruption: Bool

    init(_ message: String, isCorruption: Bool = false) {
        self.message = message
        self.isCorruption = isCorruption
    }

    /// Takes over a library's error.
    init(_ error: any Error) {
        switch error {
        case let error as ToolError: self = error
        case let error as RepositoryError:
            self.init(error.message, damaged: error.code == .corrupted)
        case let error as CaptureError:
            self.init(error.message, damaged: error.repositoryError?.code == .corrupted)
        default: self.init("\(error)")
        }
    }

    /// Says what to do about damage.
    private init(_ message: String, damaged: Bool) {
        self.init(
            damaged
                ? "\(message); 'varve verify' names all that is damaged, 'varve repair' what can "
                    + "be saved, and what is whole can be had by its id" : message,
            isCorruption: damaged)
    }

    var description: String { message }
}

/// Runs a command's work and gives its errors their sentence.
func reporting(_ body: () throws -> Void) throws {
    do {
        try body()
    } catch {
        throw ToolError(error)
    }
}

/// How failures are printed.
enum Failure {
    /// Prints one sentence, or one object, on standard error.
    static func report(_ message: String, code: String, _ isJSON: Bool) {
        if isJSON {
            let fields: [(String, JSON)] = [("code", .string(code)), ("message", .string(message))]
            Output.standardError(JSON.object([("error", .object(fields))]).text)
        } else {
            Output.standardError("varve: \(message)")
        }
    }
}
