import Foundation
import Testing
import VarveTestSupport

/// The effects and messages of `varve label`.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct LabelCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    private func make() throws {
        var random = TestSeed.generator(930)
        #expect(try Tool.run("init", store).status == 0)
        let image = directory.path.appending("image").string
        for number in 0..<4 {
            try Images.make(pages: 8, &random).write(to: URL(fileURLWithPath: image))
            let lineage = number == 3 ? "db" : "web"
            #expect(try Tool.run("import", store, image, "--lineage", lineage).status == 0)
        }
    }

    private func shown(_ name: String) throws -> [String: Any] {
        let result = try Tool.run("show", store, name, "--json")
        #expect(result.status == 0, "\(result.error)")
        return try result.objects.first ?? [:]
    }

    @Test func aLabelIsGivenMovedAndRemoved() throws {
        try make()
        let first = try #require(try shown("web~2")["id"] as? String)
        let second = try #require(try shown("web~1")["id"] as? String)
        let given = try Tool.run("label", store, "web~1", "good")
        #expect(given.status == 0, "\(given.error)")
        #expect(given.text == "\(second.prefix(12)) web: label good\n")
        #expect(try shown("good")["id"] as? String == second)
        let moved = try Tool.run("label", store, "web~2", "good", "--json")
        #expect(try moved.objects.first?["id"] as? String == first)
        #expect(try moved.objects.first?["label"] as? String == "good")
        #expect(try shown("good")["id"] as? String == first)
        #expect(try shown(second)["label"] is NSNull)
        let kept = try Tool.run("forget", store, "--keep-last", "1", "--lineage", "web")
        #expect(kept.text.contains("1 forgotten, 2 stay"), "\(kept.text)")
        #expect(try Tool.run("label", store, "good", "--remove").status == 0)
        #expect(try Tool.run("show", store, "good").status == 1)
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func whatCannotBeIsSaid() throws {
        try make()
        #expect(try Tool.run("label", store, "web").status == 2)
        #expect(try Tool.run("label", store, "web", "x", "--remove").status == 2)
        for (name, label, words) in [
            ("web", "db", "name of a lineage"), ("web", "a b", "cannot be a label"),
            ("nothing", "x", "no lineage, label or checkpoint"),
        ] {
            let result = try Tool.run("label", store, name, label)
            #expect(result.status == 1)
            #expect(result.error.contains(words), "\(result.error)")
        }
        #expect(try shown("web")["label"] is NSNull)
    }
}
