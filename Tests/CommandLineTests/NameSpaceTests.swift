import Foundation
import Testing
import VarveTestSupport

/// IDs, lineages, labels and guests are not mistaken for one another.
@Suite(.enabled(if: Tool.isBuilt)) struct NameSpaceTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    private func makeImage(_ byte: UInt8) throws {
        try Data(repeating: byte, count: 40_960).write(to: URL(fileURLWithPath: path("image")))
    }

    private func take(_ lineage: String, label: String = "l", json: Bool = false) throws
        -> Tool.Result
    {
        json
            ? try Tool.run("import", store, path("image"), "--lineage", lineage, "--json")
            : try Tool.run(
                "import", store, path("image"), "--lineage", lineage, "--label", label)
    }

    private func ids() throws -> [String] {
        try Tool.run("log", store, "--json").objects.compactMap { $0["id"] as? String }
    }

    // MARK: - IDs

    @Test func newNamesThatLookLikeIdsAreRefused() throws {
        #expect(try Tool.run("init", store).status == 0)
        try makeImage(1)
        #expect(try take("web", label: "first").status == 0)
        let id = try ids()[0]
        let names = [id, String(id.prefix(12)), String(id.prefix(4)), "dead", "BEEF", "20261129"]
        for name in names {
            for result in [try take(name, label: "other"), try take("web", label: name)] {
                #expect(result.status == 1, "\(name)")
                #expect(result.error.contains("looks like the beginning of an id"))
            }
        }
        #expect(try ids() == [id])
        // Too short for an ID, too long, or with other letters.
        for name in ["abc", String(repeating: "a", count: 65), "2026-11-29", "deadline"] {
            let result = try take("web", label: name)
            #expect(result.status == 0, "\(name): \(result.error)")
        }
    }

    // MARK: - Mistyped names

    @Test func aNewLineageBesideOthersIsSaid() throws {
        #expect(try Tool.run("init", store).status == 0)
        try makeImage(1)
        let first = try take("webserver", label: "a")
        #expect(first.status == 0 && first.error.isEmpty, "\(first.error)")
        let again = try take("webserver", label: "b")
        #expect(again.status == 0 && again.error.isEmpty, "\(again.error)")
        let slip = try take("websevrer", label: "c")
        #expect(slip.status == 0)
        #expect(
            slip.error.contains("lineage 'websevrer' was begun; did you mean 'webserver'?"),
            "\(slip.error)")
        let other = try take("mail", label: "d")
        #expect(other.error.contains("lineage 'mail' was begun; the repository has 2 others"))
        let object = try take("dns", json: true)
        #expect(object.error.hasPrefix(#"{"notice":{"code":"newLineage""#), "\(object.error)")
    }

    @Test func aMistypedNameIsAnsweredWithTheNearest() throws {
        #expect(try Tool.run("init", store).status == 0)
        try makeImage(1)
        #expect(try take("webserver", label: "golden").status == 0)
        func expect(_ result: Tool.Result, _ words: String, _ line: Int = #line) {
            #expect(result.status == 1, "line \(line): \(result.error)")
            #expect(result.error.contains(words), "line \(line): \(result.error)")
        }
        expect(try Tool.run("show", store, "webservre"), "did you mean 'webserver'?")
        expect(try Tool.run("show", store, "webservr~2"), "did you mean 'webserver'?")
        expect(try Tool.run("export", store, "Golden", "-"), "did you mean 'golden'?")
        expect(try Tool.run("forget", store, "golde"), "did you mean 'golden'?")
        expect(try Tool.run("diff", store, "golden", "gloden"), "did you mean 'golden'?")
        expect(try Tool.run("log", store, "--lineage", "webserve"), "did you mean 'webserver'?")
        expect(
            try Tool.run("forget", store, "--lineage", "webserve", "--keep-last", "1"),
            "did you mean 'webserver'?")
        // No name is similar.
        let far = try Tool.run("show", store, "postgres")
        expect(far, "is called 'postgres'; 'varve log' lists them")
        #expect(!far.error.contains("did you mean"))
        // An invalid name is not reported as damage to the index.
        for name in [String(repeating: "x", count: 600), "", "a\nb"] {
            expect(try Tool.run("show", store, name), "no lineage, label or checkpoint is called")
            let log = try Tool.run("log", store, "--lineage", name)
            #expect(log.status == 1 && log.error.contains("there is no lineage"), "\(log.error)")
        }
        #expect(try Tool.run("verify", store).status == 0)
    }

    // MARK: - Guests

    private func importStream(
        _ maker: StreamMaker, _ lineage: String, _ more: String...
    ) throws -> Tool.Result {
        try Data(maker.bytes).write(to: URL(fileURLWithPath: path("stream")))
        return try Tool.run(["import", store, path("stream"), "--lineage", lineage] + more)
    }

    @Test func aLineageDoesNotGoOnWithAGuestOfAnotherKind() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(840)
        let pv = StreamMaker.guest(
            isPV: true, wrapper: .xl, epochCount: 0, pageCount: 200, &random)
        let hvm = StreamMaker.guest(
            isPV: false, wrapper: .xl, epochCount: 0, pageCount: 200, &random)
        #expect(try importStream(pv, "web").status == 0)
        #expect(try importStream(pv, "web").status == 0)
        let before = try ids()
        let refused = try importStream(hvm, "web")
        #expect(refused.status == 1)
        #expect(refused.error.contains("lineage 'web' is another guest's"), "\(refused.error)")
        #expect(refused.error.contains("--accept-guest-change"))
        // Nor with memory of an unknown guest.
        try makeImage(3)
        let raw = try take("web", label: "raw")
        #expect(raw.status == 1 && raw.error.contains("is another guest's"), "\(raw.error)")
        #expect(try ids() == before)
        #expect(try importStream(hvm, "web", "--accept-guest-change").status == 0)
        // From here on it is that guest's.
        #expect(try importStream(hvm, "web").status == 0)
        #expect(try importStream(pv, "web").status == 1)
        #expect(try ids().count == 4)
        #expect(try Tool.run("verify", store).status == 0)
    }

    // MARK: - Output

    @Test func namesReachNoTerminalAsTheyAre() throws {
        let wild = "\u{1b}]0;title\u{7}\u{202e}x\n\u{9b}31m"
        #expect(try Tool.run("init", store).status == 0)
        try makeImage(1)
        #expect(try take("web").status == 0)
        let results = [
            try take(wild), try take("web", label: wild),
            try Tool.run("show", store, wild), try Tool.run("log", store, "--lineage", wild),
            try Tool.run("log", path(wild)), try Tool.run("init", path(wild)),
            try Tool.run("import", store, path(wild), "--lineage", "web"),
            try Tool.run("verify", path(wild)), try Tool.run("verify", path(wild), "--json"),
            try Tool.run("show", store, wild, "--json"), try Tool.run(wild),
            try Tool.run("log", store, "--\(wild)"), try Tool.run("log", store, wild, wild),
            try Tool.run("export", store, "web", path("missing/\(wild)")),
        ]
        for (number, result) in results.enumerated() {
            let text = result.text + result.error
            #expect(!text.isEmpty)
            let bad = text.unicodeScalars.filter { scalar in
                scalar != "\n"
                    && (scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value)
                        || scalar.value == 0x202e)
            }
            #expect(bad.isEmpty, "\(number): \(text.debugDescription)")
        }
        // A line break in a name does not break a line of the output.
        let line = try Tool.run("show", store, "a\nvarve: all is well").error
        #expect(line.split(separator: "\n").count == 1, "\(line)")
    }
}
