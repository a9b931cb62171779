import ArgumentParser
import Glibc
import Varve

/// The plugin for nbdkit, for commands that serve checkpoints.
struct NbdkitOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            """
            The plugin nbdkit-varve-plugin.so, with its path; without it, the one that was \
            installed with this program, or that of nbdkit's own directory.
            """,
            valueName: "file"))
    var plugin: String?

    /// Where Scripts/install puts the plugin, below its prefix.
    private static let place = "/lib/nbdkit/plugins/nbdkit-varve-plugin.so"

    /// The plugin as nbdkit's first argument: a file, or a name that nbdkit looks up itself.
    private var file: String {
        if let plugin { return plugin }
        guard let program = realpath("/proc/self/exe", nil) else { return "varve" }
        defer { free(program) }
        // PREFIX/bin/varve
        let prefix = String(cString: program).split(separator: "/").dropLast(2)
        let installed = prefix.map { "/\($0)" }.joined() + Self.place
        return access(installed, R_OK) == 0 ? installed : "varve"
    }

    /// The words that start nbdkit with the plugin, up to the plugin's parameters.
    ///
    /// - Parameters:
    ///   - options: nbdkit's own options.
    ///   - parameters: `key=value`, of the plugin and of filters.
    func command(_ options: [String], _ parameters: [String]) -> [String] {
        ["nbdkit"] + options + [file] + parameters
    }

    /// Parameters of the filter `exportname` that leave one export, which is the default, too.
    ///
    /// The strict filter looks the empty name up before it gives it its meaning.
    static func only(_ volume: String) -> [String] {
        [
            "exportname=\(volume)", "exportname=", "default-export=\(volume)",
            "exportname-strict=true", "exportname-list=defaultonly",
        ]
    }

    /// Throws a sentence with the remedy unless nbdkit and the plugin can be started.
    func check() throws {
        try Tools.require("nbdkit", package: "nbdkit")
        // Prints what the plugin says of itself.
        let process = try ChildProcess(command(["--dump-plugin"], []), collectsOutput: true)
        guard process.wait() != 0 else { return }
        // nbdkit's last line refers to its manual.
        let lines = process.collectedLines
        let line = lines.last { $0.contains("error: ") } ?? lines.last ?? "it ended"
        let reason = line.firstRange(of: "error: ").map { line[$0.upperBound...] } ?? line[...]
        throw ToolError(
            "nbdkit cannot load the plugin: \(reason); install the package "
                + "nbdkit-plugin-varve, or name the file with --plugin")
    }
}

/// A path that means the same from another directory: absolute, unless that cannot be found out.
func absolutePath(_ path: String) -> String {
    guard !path.hasPrefix("/"), let current = getcwd(nil, 0) else { return path }
    defer { free(current) }
    return "\(String(cString: current))/\(path)"
}

/// Programs of others that commands start.
enum Tools {
    /// Throws if a program is not in PATH.
    static func require(_ name: String, package: String) throws {
        let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin"
        let isThere = path.split(separator: ":").contains { access("\($0)/\(name)", X_OK) == 0 }
        guard !isThere else { return }
        throw ToolError("\(name) is not installed; install the package \(package)")
    }

    /// Runs a program to its end; throws its first line if it fails.
    ///
    /// - Parameter inherited: an open file that it inherits.
    /// - Returns: what it printed, at most 4 KiB.
    @discardableResult
    static func run(_ command: [String], inherited: Int32? = nil) throws -> [String] {
        let process = try ChildProcess(command, collectsOutput: true, inherited: inherited)
        let status = process.wait()
        let lines = process.collectedLines
        guard status != 0 else { return lines }
        throw ToolError("\(command[0]) failed: \(lines.first ?? "it ended with status \(status)")")
    }
}
