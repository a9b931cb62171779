import Foundation
import Testing
import VarveTestSupport

/// `varve xen serve` up to the point where it looks for its domain, and its exit codes.
@Suite(.enabled(if: Tool.isBuilt)) struct ServeCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    /// A configuration file.
    private func configuration(_ text: String) throws -> String {
        let path = directory.path.appending("web.conf").string
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        #expect(chmod(path, 0o600) == 0)
        return path
    }

    private func serve(_ text: String) throws -> Tool.Result {
        try Tool.run("xen", "serve", "web", "--config", try configuration(text))
    }

    @Test func aWrongConfigurationIsWrongUsage() throws {
        let wrong = try serve("store = \(store)\ninterval = soon\n")
        #expect(wrong.status == 2 && wrong.output.isEmpty)
        #expect(
            wrong.error
                == "varve: \(directory.path)/web.conf:2: interval = soon: not a time such as "
                + "200ms, 5s, 10m or 2h\n")
        let open = try configuration("store = \(store)\ninterval = 5s\n")
        #expect(chmod(open, 0o666) == 0)
        let refused = try Tool.run("xen", "serve", "web", "--config", open)
        #expect(refused.status == 2 && refused.error.contains("by users other than root"))
        let absent = try Tool.run("xen", "serve", "varve-test-\(UUID().uuidString)")
        #expect(absent.status == 2)
        #expect(absent.error.contains(".conf cannot be read: No such file or directory"))
        for name in ["", ".", "a/b"] {
            #expect(try Tool.run("xen", "serve", name).status == 2)
        }
    }

    @Test func aRepositoryThatCannotBeUsedIsNotTriedAgain() throws {
        let missing = try serve("store = \(store)\ninterval = 5s\n")
        #expect(missing.status == 2 && missing.error.contains(store), "\(missing.error)")
        try FileManager.default.createDirectory(atPath: store, withIntermediateDirectories: true)
        let foreign = try serve("store = \(store)\ninterval = 5s\n")
        #expect(foreign.status == 2, "\(foreign.error)")
    }

    /// The writer's lock is waited for as long as the file says; a signal ends the wait with 0.
    @Test func theRepositoryMayBeBusyAtTheStart() throws {
        try Tool.run("init", store)
        let input = Pipe()
        let (holder, _, _) = try Tool.start(
            ["import", store, "-", "--lineage", "held", "--format", "raw"], input: input)
        while try Tool.run("prune", store).status == 0 { continue }
        let late = try serve("store = \(store)\ninterval = 5s\nwait = 200ms\n")
        #expect(late.status == 1 && late.error.contains("another process is writing"))
        for signal in [SIGTERM, SIGINT] {
            let path = try configuration("store = \(store)\ninterval = 5s\nwait = 1h\n")
            let (waiting, output, error) = try Tool.start(["xen", "serve", "web", "--config", path])
            // Its signals are blocked as soon as it waits.
            usleep(300_000)
            kill(waiting.processIdentifier, signal)
            let end = waiting.waitForEnd(output, error)
            #expect(end.status == 0 && end.error.isEmpty, "\(signal)")
        }
        try input.fileHandleForWriting.close()
        holder.waitUntilExit()
    }

    /// The monitor is started as a unit, and announced as a monitor announces itself.
    @Test(arguments: [0, 1])
    func theMonitorIsAUnit(_ status: Int32) throws {
        let tool = directory.path.appending("systemctl").string
        let said = directory.path.appending("said").string
        try Data("#!/bin/sh\necho \"$*\" >'\(said)'\nexit \(status)\n".utf8)
            .write(to: URL(fileURLWithPath: tool))
        #expect(chmod(tool, 0o700) == 0)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(Tool.path))
        process.arguments = ["xen", "monitor", "7", "--start-unit"]
        process.environment = ["PATH": directory.path.string + ":/usr/bin:/bin"]
        let result = try Tool.finish(process)
        let words = try String(contentsOfFile: said, encoding: .utf8)
        #expect(words == "start varve-monitor@7.service\n")
        #expect(result.status == status && result.text == (status == 0 ? "+" : ""))
        if status != 0 {
            #expect(result.error.contains("systemctl cannot start varve-monitor@7.service"))
        }
    }
}
