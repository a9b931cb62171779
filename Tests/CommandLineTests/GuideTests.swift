import Foundation
import Testing
import VarveTestSupport

/// The articles' programs do what the articles say.
@Suite(.enabled(if: Tool.isBuilt)) struct GuideTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private static let path = Tool.path.map {
        URL(fileURLWithPath: $0).deletingLastPathComponent().appendingPathComponent("guide").path
    }

    private func start(
        _ name: String, _ store: String, environment: [String: String] = [:]
    ) throws -> (Process, Pipe) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(GuideTests.path))
        process.arguments = [name, directory.path.appending(store).string]
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        let output = Pipe()
        process.standardOutput = output
        try process.runWatched()
        return (process, output)
    }

    private func run(_ name: String, _ store: String) throws -> [String] {
        let (process, output) = try start(name, store)
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
    }

    @Test func aFirstCheckpoint() throws {
        let lines = try run("first-checkpoint", "first")
        #expect(
            lines == [
                "changed: 1 page of 4096", "after the revert: 1", "in the second checkpoint: 2",
                "kept: 5 of 10",
            ])
    }

    @Test func yourOwnGuest() throws {
        let lines = try run("your-own-guest", "own")
        #expect(
            lines == [
                "checks: 0 failed, 4 skipped", "changed: 3 pages of 64", "after the revert: 1",
            ])
    }

    /// On one thread: a call that blocked it would stop the task that cancels another's wait.
    @Test func concurrency() throws {
        let lines = try run("concurrency", "tasks")
        #expect(
            lines == [
                "the wait for the lock was cancelled", "checkpoints: 50",
                "the last one is the memory: true", "clean: true",
            ])
    }

    @Test func afterACrash() throws {
        let (process, output) = try start("fill", "counter")
        // Durable checkpoints are announced; after a few of them it is killed.
        var text = ""
        while text.split(separator: "\n").count < 5 {
            let data = output.fileHandleForReading.availableData
            if data.isEmpty { break }
            text += String(decoding: data, as: UTF8.self)
        }
        kill(process.processIdentifier, SIGKILL)
        text += String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        let announced = text.split(separator: "\n").filter { $0.hasPrefix("durable: ") }.count
        #expect(announced >= 5)
        let lines = try run("after-a-crash", "counter")
        let count = try #require(
            lines.first?.split(separator: " ").last.flatMap { Int($0) }, "\(lines)")
        // The last one may be durable and not announced.
        #expect(count == announced || count == announced + 1)
        let rest = ["next: follows", "forgotten: \(count - 2) of \(count + 1)"]
        #expect(lines.dropFirst().prefix(2) == rest[...])
    }

    /// `VarveCore` needs no library of Xen: the dynamic linker lists the libraries that it loads.
    @Test func noLibraryOfXenIsLoaded() throws {
        let (process, output) = try start(
            "first-checkpoint", "linked", environment: ["LD_TRACE_LOADED_OBJECTS": "1"])
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        let libraries = String(decoding: data, as: UTF8.self)
        #expect(libraries.contains("liblmdb"), "\(libraries)")
        #expect(!libraries.contains("libxen"), "\(libraries)")
    }
}
