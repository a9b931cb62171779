import Foundation
import Testing
import VarveTestSupport

/// With a limit on file sizes (`ulimit -f`) no command is killed by SIGXFSZ, whichever file cannot
/// grow: the command reports it, and everything that existed before is whole.
@Suite(.enabled(if: Tool.isBuilt)) struct FileSizeLimitTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }
    private var image: String { directory.path.appending("image").string }

    /// Runs the tool with a limit in KiB; the disposition of SIGXFSZ is the default.
    private func run(
        _ limit: Int, _ arguments: [String], output: String? = nil
    ) throws -> Tool.Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/bash")
        let redirection = output.map { " > '\($0)'" } ?? ""
        process.arguments =
            ["-c", "ulimit -S -f \(limit); exec \"$@\"\(redirection)", "bash"]
            + [try #require(Tool.path)] + arguments
        let result = try Tool.finish(process)
        #expect(process.terminationReason == .exit, "limit \(limit) KiB: \(arguments)")
        return result
    }

    private func expectRefused(
        _ result: Tool.Result, _ limit: Int, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(
            result.status == 1
                && (result.error.contains("File too large") || result.error.contains("ulimit -f")),
            "limit \(limit) KiB: \(result.status), \(result.error)", sourceLocation: sourceLocation)
    }

    /// Limits between the minimum for a store and the needs of a large import.
    @Test func everyFileThatMayNotGrowIsAnError() throws {
        var random = TestSeed.generator(1020)
        try Images.make(pages: 2048, &random).write(to: URL(fileURLWithPath: image))
        var refusals: Set<String> = []
        for limit in [0, 16, 68, 80, 160, 1000] {
            try? FileManager.default.removeItem(atPath: store)
            let made = try run(limit, ["init", store])
            if made.status != 0 {
                expectRefused(made, limit)
                refusals.insert("init")
                try? FileManager.default.removeItem(atPath: store)
                try Tool.run("init", store)
            }
            let first = try run(limit, ["import", store, image, "--lineage", "web"])
            expectRefused(first, limit)
            refusals.insert(first.error.contains("/packs/") ? "pack" : "index")
            #expect(try Tool.run("log", store, "--json").objects.isEmpty)
            #expect(try Tool.run("import", store, image, "--lineage", "web").status == 0)
            #expect(try Tool.run("verify", store).status == 0, "limit \(limit) KiB")
        }
        #expect(refusals.isSuperset(of: ["init", "index", "pack"]), "\(refusals)")
    }

    /// The index cannot be rebuilt, a pack cannot be rewritten, an image cannot be written.
    @Test func whatIsThereStays() throws {
        var random = TestSeed.generator(1021)
        let content = Images.make(pages: 2048, &random)
        try content.write(to: URL(fileURLWithPath: image))
        try Tool.run("init", store)
        try Tool.run("import", store, image, "--lineage", "web")
        let target = directory.path.appending("target").string
        for limit in [100, 1000] {
            expectRefused(try run(limit, ["export", store, "web", target]), limit)
            #expect(!FileManager.default.fileExists(atPath: target))
            let printed = directory.path.appending("printed").string
            expectRefused(try run(limit, ["export", store, "web", "-"], output: printed), limit)
        }
        try FileManager.default.removeItem(atPath: store + "/index/data.mdb")
        for limit in [16, 68, 100] {
            _ = try run(limit, ["log", store])
            let change = try run(limit, ["import", store, image, "--lineage", "other"])
            expectRefused(change, limit)
        }
        #expect(try Tool.run("verify", store).status == 0)
        #expect(try Tool.run("export", store, "web", target).status == 0)
        #expect(try Data(contentsOf: URL(fileURLWithPath: target)) == content)
    }
}
