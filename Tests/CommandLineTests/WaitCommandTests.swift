import Foundation
import Testing
import VarveTestSupport

/// `--wait`, while another process writes.
@Suite(.enabled(if: Tool.isBuilt)) struct WaitCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    /// Starts an import that has the lock and waits for its input; closing the pipe ends it.
    private func hold() throws -> (Process, Pipe) {
        let input = Pipe()
        let (process, _, _) = try Tool.start(
            ["import", store, "-", "--lineage", "held", "--format", "raw"], input: input)
        // It has the lock as soon as another command finds it taken.
        while try Tool.run("prune", store).status == 0 { continue }
        return (process, input)
    }

    private func release(_ holder: (Process, Pipe)) throws {
        try holder.1.fileHandleForWriting.write(contentsOf: Data(count: 4096))
        try holder.1.fileHandleForWriting.close()
        holder.0.waitUntilExit()
        #expect(holder.0.terminationStatus == 0)
    }

    @Test func aCommandWaitsForAnother() throws {
        try Tool.run("init", store)
        let holder = try hold()
        let refused = try Tool.run("prune", store)
        #expect(refused.status == 1 && refused.error.contains("--wait"))
        for wait in ["--wait=0", "--wait=1.2", "--wait=1200ms"] {
            let late = try Tool.run("prune", store, wait)
            #expect(
                late.status == 1 && late.error.contains("another process is writing"), "\(wait)")
        }
        let apart = try Tool.run("prune", store, "--wait", "0")
        #expect(apart.status == 1 && apart.error.contains("another process is writing"))
        // A time after it is its value, never the label or a checkpoint to forget.
        #expect(try Tool.run("label", store, "held", "--wait", "30").status == 2)
        for wait in ["--wait=-1", "--wait=nan", "--wait=soon", "--wait="] {
            #expect(try Tool.run("prune", store, wait).status == 2, "\(wait)")
        }
        let (waiting, _, _) = try Tool.start(["prune", store, "--wait"])
        let (limited, _, _) = try Tool.start(["repair", store, "--wait=600"])
        try release(holder)
        waiting.waitUntilExit()
        limited.waitUntilExit()
        #expect(waiting.terminationStatus == 0 && limited.terminationStatus == 0)
        #expect(try Tool.run("log", store, "--json").objects.count == 1)
    }

    @Test func waitingCanBeInterrupted() throws {
        try Tool.run("init", store)
        let holder = try hold()
        for (signal, status) in [(SIGINT, Int32(130)), (SIGTERM, 143)] {
            let input = Pipe()
            let (waiting, _, error) = try Tool.start(
                ["import", store, "-", "--lineage", "late", "--wait"], input: input)
            // Once it blocks the signals, they end it with its own exit status.
            while try !keepsSignals(waiting.processIdentifier) { continue }
            kill(waiting.processIdentifier, signal)
            try input.fileHandleForWriting.write(contentsOf: Data(count: 4096))
            try input.fileHandleForWriting.close()
            let text = String(
                decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            waiting.waitUntilExit()
            #expect(waiting.terminationStatus == status, "\(text)")
        }
        try release(holder)
        #expect(try Tool.run("log", store, "--json").objects.count == 1)
    }

    /// True if the process blocks SIGINT and SIGTERM.
    private func keepsSignals(_ process: pid_t) throws -> Bool {
        let status = try String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)
        let line = try #require(status.split(separator: "\n").first { $0.hasPrefix("SigBlk:") })
        let mask = try #require(UInt64(line.split(separator: "\t")[1], radix: 16))
        return mask & 0x4002 == 0x4002
    }
}
