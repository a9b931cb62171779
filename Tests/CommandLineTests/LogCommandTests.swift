import Foundation
import Testing
import VarveTestSupport

/// What `varve log` lists, and in which order.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct LogCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    /// Five checkpoints of `web` and two of `db`.
    private func make() throws {
        var random = TestSeed.generator(920)
        #expect(try Tool.run("init", store).status == 0)
        let image = directory.path.appending("image").string
        for number in 0..<7 {
            try Images.make(pages: 8, &random).write(to: URL(fileURLWithPath: image))
            let lineage = number % 3 == 2 ? "db" : "web"
            let result = try Tool.run(
                "import", store, image, "--lineage", lineage, "--label", "of-\(lineage)")
            #expect(result.status == 0, "\(result.error)")
        }
    }

    private func ids(_ arguments: String...) throws -> [String] {
        let result = try Tool.run(["log", store, "--json"] + arguments)
        #expect(result.status == 0, "\(arguments): \(result.error)")
        return try result.objects.compactMap { $0["id"] as? String }
    }

    @Test func theNewestComeFirstAndOnlySoMany() throws {
        try make()
        let all = try ids()
        #expect(all.count == 7)
        #expect(try ids("-n", "3") == Array(all.prefix(3)))
        #expect(try ids("--newest", "100") == all)
        #expect(try ids("-n", "2", "--before", all[1]) == Array(all[2...3]))
        #expect(try ids("--before", all[6]) == [])
        let web = try ids("--lineage", "web")
        #expect(web.count == 5)
        #expect(try ids("--lineage", "web", "-n", "2") == Array(web.prefix(2)))
        #expect(try ids("--lineage", "web", "-n", "2", "--before", "web~1") == Array(web[2...3]))
    }

    @Test func timesAreThoseThatItPrints() throws {
        try make()
        let objects = try Tool.run("log", store, "--json").objects
        let all = objects.compactMap { $0["id"] as? String }
        let times = objects.compactMap { $0["time"] as? String }
        #expect(try ids("--since", times[2]) == Array(all[0...2]))
        #expect(try ids("--until", times[2]) == Array(all[2...]))
        #expect(try ids("--since", times[4], "--until", times[1]) == Array(all[1...4]))
        #expect(try ids("--since", String(times[6].prefix(10))) == all)
        #expect(try ids("--since", String(times[6].prefix(19))) == all)
        #expect(try ids("--since", "1h") == all)
        #expect(try ids("--until", "1h") == [])
        #expect(try ids("--since", "2999-01-01") == [])
        #expect(try ids("--lineage", "web", "--since", "2999-01-01") == [])
    }

    @Test(arguments: [
        ["-n", "0"], ["-n", "-3"], ["-n", "x"], ["--since", "2026-13-01"],
        ["--since", "2026-02-30"], ["--since", "yesterday"], ["--until", "5y"],
        ["--until", "99999-01-01"],
    ])
    func whatIsNoNumberAndNoTimeIsWrongUsage(arguments: [String]) throws {
        try make()
        let (process, output, error) = try Tool.start(["log", store] + arguments)
        let data = output.fileHandleForReading.readDataToEndOfFile()
        _ = error.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 2)
        #expect(data.isEmpty)
    }

    @Test func whatIsNotThereIsSaid() throws {
        try make()
        let lineage = try Tool.run("log", store, "--lineage", "wob", "-n", "2")
        #expect(lineage.status == 1)
        #expect(lineage.error.contains("no lineage 'wob'"))
        #expect(try Tool.run("log", store, "--before", "nobody").status == 1)
    }

    /// A label is shown with the newest checkpoint that has it, whatever part of the list is shown.
    @Test func aLabelIsShownWhereItIsNow() throws {
        try make()
        let objects = try Tool.run("log", store, "--json").objects
        let labels = objects.map { $0["label"] as? String }
        #expect(labels.compactMap { $0 } == ["of-web", "of-db"])
        let before = try Tool.run("log", store, "--json", "--before", "web").objects
        #expect(before.compactMap { $0["label"] as? String } == ["of-db"])
        let table = try Tool.run("log", store, "-n", "1").text
        #expect(table.contains("of-web"))
        for line in table.split(separator: "\n") { #expect(!line.hasSuffix(" ")) }
    }
}
