import Foundation
import Testing
import VarveTestSupport

/// Forged stores: right checksums around what cannot be.
///
/// `varve-forged` tries each in a process that may die. Here a share of them, and all with
/// VARVE_LONG=1.
@Suite struct ForgedStoreTests {
    private static let tool = ProcessInfo.processInfo.environment["VARVE_CLI"].map {
        URL(fileURLWithPath: $0).deletingLastPathComponent().appendingPathComponent("varve-forged")
    }

    private static let isBuilt: Bool = {
        if let tool, FileManager.default.isExecutableFile(atPath: tool.path) { return true }
        print("skipped, forged stores: VARVE_CLI does not name a tool beside varve-forged")
        return false
    }()

    @Test(.enabled(if: isBuilt)) func nothingThatAStoreSaysDoesHarm() throws {
        try run("all", TestSeed.isLong ? 1 : 37)
    }

    /// The tool itself, run on a smaller share.
    @Test(.enabled(if: isBuilt)) func wholeCommandsEndWell() throws {
        try run("commands", TestSeed.isLong ? 37 : 370)
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
