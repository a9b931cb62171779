import Foundation
import Testing
import VarveTestSupport

extension Tool {
    /// Runs a shell command line, in which `$varve` is the tool and the other variables are as
    /// given; it is killed after a minute.
    ///
    /// - Returns: status 137 if it was killed.
    static func shell(
        _ line: String, in directory: String? = nil, _ variables: [String: String] = [:]
    ) throws -> Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", line]
        if let directory { process.currentDirectoryURL = URL(fileURLWithPath: directory) }
        process.environment = variables.merging([
            "varve": "timeout -s KILL 60 \(try #require(Tool.path))",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": NSTemporaryDirectory(),
            // The backtrace of a process that strace has stopped never ends.
            "SWIFT_BACKTRACE": "enable=no",
        ]) { given, _ in given }
        return try finish(process)
    }
}
