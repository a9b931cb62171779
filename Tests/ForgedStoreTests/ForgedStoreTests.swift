import Forgeries
import Foundation
import SystemPackage
import Testing
import VarveTestSupport

/// Forged stores: right checksums around impossible values.
///
/// `varve-forged` tries each in a process that may crash. Here a sample of them is tried, and all
/// with VARVE_LONG=1.
@Suite struct ForgedStoreTests {
    private static let tool = ProcessInfo.processInfo.environment["VARVE_CLI"].map {
        URL(fileURLWithPath: $0).deletingLastPathComponent().appendingPathComponent("varve-forged")
    }

    private static let isBuilt: Bool = {
        if let tool, FileManager.default.isExecutableFile(atPath: tool.path) { return true }
        noteSkipped("skipped, forged stores: VARVE_CLI does not name a tool beside varve-forged")
        return false
    }()

    @Test(.enabled(if: isBuilt)) func nothingThatAStoreSaysDoesHarm() throws {
        try run("all", TestSeed.isLong ? 1 : 37)
    }

    /// The tool itself, run on a smaller sample.
    @Test(.enabled(if: isBuilt)) func wholeCommandsEndWell() throws {
        try run("commands", TestSeed.isLong ? 37 : 370)
    }

    /// A delta map that names the highest possible frame is checked against its predecessor before
    /// a map of its stated size is allocated, by every reader.
    @Test(.enabled(if: isBuilt), arguments: ["repair", "verify"])
    func aMapThatCannotBeTakesNoMemory(_ command: String) throws {
        let directory = TemporaryDirectory(inMemory: true)
        let path = directory.path.appending("store")
        try WholeStore.make(at: path, seed: 240)
        let whole = try ForgedStore(path)
        let last = whole.places(2).count - 1
        let name = "map part \(last): the last frame of all, and it is stated"
        let forgery = try #require(Forgery.all(of: whole).first { $0.name == name })
        try forgery.store(from: whole).write(path)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = [
            "-c", "ulimit -d 600000; exec \"$0\" \"$1\" \"$2\" 2>&1",
            try #require(ProcessInfo.processInfo.environment["VARVE_CLI"]), command, path.string,
        ]
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationReason == .exit && process.terminationStatus == 3, "\(text)")
        #expect(text.contains("its page map cannot hold 1073741824 pages"), "\(text)")
    }

    private func run(_ mode: String, _ stride: Int) throws {
        let process = Process()
        process.executableURL = Self.tool
        process.arguments = [mode, "\(stride)", "\(TestSeed.value % 1000)"]
        let end = try process.runToEnd(seconds: TestSeed.isLong ? 4 * 3600 : 900)
        let text = String(decoding: end.output + end.error, as: UTF8.self)
        print(text)
        #expect(end.status == 0, "\(text)")
    }
}
