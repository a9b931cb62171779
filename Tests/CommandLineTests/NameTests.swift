import Foundation
import Testing
import VarveTestSupport

/// A name means one thing.
@Suite(.enabled(if: Tool.isBuilt)) struct NameTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func take(_ lineage: String, _ label: String? = nil) throws -> Tool.Result {
        var arguments = ["import", path("store"), path("image"), "--lineage", lineage]
        if let label { arguments += ["--label", label] }
        return try Tool.run(arguments)
    }

    @Test func labelsAndLineagesDoNotShadowEachOther() throws {
        #expect(try Tool.run("init", path("store")).status == 0)
        try Data(repeating: 7, count: 40_960).write(to: URL(fileURLWithPath: path("image")))
        #expect(try take("web", "golden").status == 0)
        #expect(try take("other").status == 0)
        let before = try Tool.run("log", path("store"), "--json").text
        for (lineage, label, words) in [
            ("golden", nil, "is the label of checkpoint"),
            ("other", "golden", "of lineage 'web'"), ("new", "golden", "of lineage 'web'"),
            ("web", "web", "is the name of a lineage"),
            ("web", "other", "is the name of a lineage"),
            ("fresh", "fresh", "is the name of a lineage"),
        ] {
            let result = try take(lineage, label)
            #expect(result.status == 1, "\(lineage) \(label ?? "")")
            #expect(result.error.contains(words), "\(result.error)")
            #expect(result.error.split(separator: "\n").count == 1)
        }
        #expect(try Tool.run("log", path("store"), "--json").text == before)
        // Within a lineage the newest has it.
        let moved = try take("web", "golden")
        #expect(moved.status == 0, "\(moved.error)")
        let newest = try Tool.run("show", path("store"), "web", "--json").text
        #expect(try Tool.run("show", path("store"), "golden", "--json").text == newest)
        #expect(try Tool.run("import", "--help").text.contains("moves to the new one"))
    }
}
