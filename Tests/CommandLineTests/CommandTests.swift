import Foundation
import Testing
import VarveTestSupport

@Suite(.enabled(if: Tool.isBuilt)) struct CommandTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    private func save(_ data: Data, _ name: String) throws -> String {
        try data.write(to: URL(fileURLWithPath: path(name)))
        return path(name)
    }

    private func load(_ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: path(name)))
    }

    /// A repository with `count` checkpoints of lineage `web`, and their images.
    private func chain(_ count: Int, pages: Int = 300) throws -> [Data] {
        var random = TestSeed.generator(500)
        #expect(try Tool.run("init", store).status == 0)
        var images = [Images.make(pages: pages, &random)]
        for _ in 1..<count {
            images.append(Images.change(images[images.count - 1], pages: 20, &random))
        }
        for (number, image) in images.enumerated() {
            let file = try save(image, "image")
            let result = try Tool.run(
                "import", store, file, "--lineage", "web", "--label", "step\(number)")
            #expect(result.status == 0, "\(result.error)")
        }
        return images
    }

    private func expect(
        _ result: Tool.Result, status: Int32, saying words: String,
        location: SourceLocation = #_sourceLocation
    ) {
        #expect(result.status == status, "\(result.error)", sourceLocation: location)
        #expect(result.output.isEmpty, sourceLocation: location)
        #expect(result.error.hasPrefix("varve: "), "\(result.error)", sourceLocation: location)
        #expect(result.error.contains(words), "\(result.error)", sourceLocation: location)
        let lines = result.error.split(separator: "\n")
        #expect(lines.count == 1, "one sentence: \(result.error)", sourceLocation: location)
    }

    // MARK: - Import and export

    /// The index asks for less address space where little is available.
    @Test func littleAddressSpaceIsEnough() throws {
        let images = try chain(2)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = [
            "-c", "ulimit -v 4000000; \"$0\" export \"$1\" web - && \"$0\" repair \"$1\" >&2",
            try #require(Tool.path), store,
        ]
        let result = try Tool.finish(process)
        #expect(result.status == 0, "\(result.error)")
        #expect(result.output == images[1])
        #expect(result.error.contains("nothing is damaged"), "\(result.error)")
    }

    @Test func imagesComeBackEqual() throws {
        let images = try chain(5)
        for (number, image) in images.enumerated() {
            for name in ["step\(number)", "web~\(images.count - 1 - number)"] {
                #expect(try Tool.run("export", store, name, path("out"), "--force").status == 0)
                #expect(try load("out") == image)
            }
        }
        #expect(try Tool.run("export", store, "web", "-").output == images[4])
        let log = try Tool.run("log", store, "--json").objects
        let id = try #require(log[0]["id"] as? String)
        #expect(try Tool.run("export", store, String(id.prefix(10)), "-").output == images[4])
    }

    @Test func standardInputIsTakenIn() throws {
        var random = TestSeed.generator(501)
        let image = Images.make(pages: 700, &random)
        #expect(try Tool.run("init", store).status == 0)
        let file = try save(image, "image")
        let input = try #require(FileHandle(forReadingAtPath: file))
        #expect(try Tool.run("import", store, "-", "--lineage", "p", input: input).status == 0)
        #expect(try Tool.run("export", store, "p", "-").output == image)
    }

    @Test func holesStayHoles() throws {
        var image = Data(count: 64 << 20)
        image[5_000_000] = 1
        #expect(try Tool.run("init", store).status == 0)
        let file = try save(image, "image")
        #expect(try Tool.run("import", store, file, "--lineage", "s").status == 0)
        #expect(try Tool.run("export", store, "s", path("out")).status == 0)
        #expect(try load("out") == image)
        var status = stat()
        #expect(stat(path("out"), &status) == 0)
        #expect(status.st_blocks * 512 < 1 << 20, "one page and no more is stored")
    }

    // MARK: - JSON

    @Test func logIsStable() throws {
        _ = try chain(3)
        let log = try Tool.run("log", store, "--json").objects
        #expect(log.count == 3)
        #expect(log.map { $0["label"] as? String } == ["step2", "step1", "step0"])
        for (index, entry) in log.enumerated() {
            #expect(entry["lineage"] as? String == "web")
            #expect((entry["id"] as? String)?.count == 64)
            #expect((entry["root"] as? String)?.count == 64)
            #expect(entry["pagesChanged"] is Int && entry["bytesAdded"] is Int)
            #expect((entry["time"] as? String)?.hasSuffix("Z") == true)
            if index < 2 {
                #expect(entry["parent"] as? String == log[index + 1]["id"] as? String)
            } else {
                #expect(entry["parent"] is NSNull)
            }
        }
        let text = try Tool.run("log", store, "--json").text
        #expect(text.hasPrefix(#"{"id":""#))
    }

    @Test func otherCommandsPrintObjects() throws {
        var random = TestSeed.generator(502)
        _ = try chain(2)
        let show = try Tool.run("show", store, "web", "--json").objects
        #expect(show.count == 1 && show[0]["label"] as? String == "step1")
        let stats = try #require(try Tool.run("stats", store, "--json").objects.first)
        for key in ["pages", "unique", "zero", "bytes", "metadataBytes"] {
            #expect(stats[key] is Int, "\(key)")
        }
        #expect(stats["ratio"] is Double)
        let verify = try Tool.run("verify", store, "--json").objects
        #expect(verify.count == 1 && verify[0]["clean"] as? Bool == true)
        let diff = try Tool.run("diff", store, "step0", "step1", "--json").objects
        let total = diff.dropLast().reduce(0) { $0 + ($1["pages"] as? Int ?? 0) }
        #expect(diff.last?["pagesDiffering"] as? Int == total)
        let image = try save(Images.make(pages: 300, &random), "image")
        let taken = try Tool.run("import", store, image, "--lineage", "web", "--json").objects
        #expect(taken.count == 1 && taken[0]["pagesChanged"] is Int)
    }

    @Test func differencesAreThosePages() throws {
        let images = try chain(2)
        let diff = try Tool.run("diff", store, "step0", "step1", "--json").objects
        var named: Set<Int> = []
        for range in diff.dropLast() {
            let first = try #require(range["firstPage"] as? Int)
            named.formUnion(first..<first + (try #require(range["pages"] as? Int)))
        }
        let differing = (0..<300).filter { page in
            images[0][page * 4096..<(page + 1) * 4096] != images[1][page * 4096..<(page + 1) * 4096]
        }
        #expect(named == Set(differing))
    }

    // MARK: - Failures

    @Test func badImagesAreOneSentence() throws {
        _ = try chain(1)
        let before = try Tool.run("log", store, "--json").text
        let odd = try save(Data(count: 5000), "odd")
        expect(
            try Tool.run("import", store, odd, "--lineage", "web"), status: 1, saying: "multiple")
        let input = try #require(FileHandle(forReadingAtPath: odd))
        expect(
            try Tool.run("import", store, "-", "--lineage", "x", input: input), status: 1,
            saying: "multiple")
        expect(
            try Tool.run("import", store, path("none"), "--lineage", "web"), status: 1,
            saying: "No such file")
        expect(
            try Tool.run("import", store, store, "--lineage", "web"), status: 1,
            saying: "directory")
        let empty = try save(Data(), "empty")
        expect(
            try Tool.run("import", store, empty, "--lineage", "e"), status: 1, saying: "empty")
        for pages in [299, 301] {
            let other = try save(Data(repeating: 1, count: pages * 4096), "other")
            expect(
                try Tool.run("import", store, other, "--lineage", "web"), status: 1,
                saying: "lineage")
        }
        let good = try save(Data(repeating: 1, count: 300 * 4096), "good")
        expect(
            try Tool.run("import", store, good, "--lineage", "a/b"), status: 1, saying: "a/b")
        #expect(try Tool.run("log", store, "--json").text == before, "the store is as before")
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func badStoresAreOneSentence() throws {
        let image = try save(Data(count: 4096), "image")
        for arguments in [["log"], ["stats"], ["verify"]] {
            expect(
                try Tool.run(arguments[0], path("missing")), status: 1, saying: "no repository")
        }
        expect(
            try Tool.run("import", path("missing"), image, "--lineage", "x"), status: 1,
            saying: "no repository")
        try FileManager.default.createDirectory(
            atPath: path("foreign"), withIntermediateDirectories: true)
        _ = try save(Data("hello".utf8), "foreign/repository")
        expect(try Tool.run("log", path("foreign")), status: 1, saying: "not a Varve repository")
        expect(try Tool.run("init", path("foreign")), status: 1, saying: "already")
        expect(try Tool.run("init", image), status: 1, saying: "not a directory")
        expect(try Tool.run("init", path("a/b")), status: 1, saying: "parent")
        try FileManager.default.removeItem(atPath: path("foreign/repository"))
        _ = try save(Data("hello".utf8), "foreign/other")
        expect(try Tool.run("init", path("foreign")), status: 1, saying: "not empty")
    }

    @Test func anotherVersionIsRefused() throws {
        #expect(try Tool.run("init", store).status == 0)
        var envelope = [UInt8](try load("store/repository"))
        envelope[8] = 1
        var rest = ~UInt32(0)
        for byte in envelope[..<60] {
            rest ^= UInt32(byte)
            for _ in 0..<8 { rest = rest & 1 == 0 ? rest >> 1 : rest >> 1 ^ 0x82f6_3b78 }
        }
        for index in 0..<4 { envelope[60 + index] = UInt8(~rest >> (index * 8) & 0xff) }
        _ = try save(Data(envelope), "store/repository")
        expect(try Tool.run("log", store), status: 1, saying: "format version 1")
        envelope[20] ^= 1
        _ = try save(Data(envelope), "store/repository")
        expect(try Tool.run("log", store), status: 3, saying: "damaged")
    }

    @Test func badNamesAreOneSentence() throws {
        _ = try chain(2)
        for name in ["nobody", "web~2", "web~x", "~1", "", String(repeating: "f", count: 80)] {
            let result = try Tool.run("show", store, name)
            expect(result, status: 1, saying: "checkpoint")
        }
        let log = try Tool.run("log", store, "--lineage", "nobody")
        expect(log, status: 1, saying: "no lineage")
    }

    @Test func nothingIsOverwrittenUnasked() throws {
        let images = try chain(1)
        let kept = try save(Data("precious".utf8), "kept")
        expect(try Tool.run("export", store, "web", kept), status: 1, saying: "--force")
        #expect(try load("kept") == Data("precious".utf8))
        #expect(try Tool.run("export", store, "web", kept, "--force").status == 0)
        #expect(try load("kept") == images[0])
        expect(try Tool.run("export", store, "web", "/dev/full"), status: 1, saying: "space")
        let names = try FileManager.default.contentsOfDirectory(atPath: directory.path.string)
        #expect(!names.contains { $0.hasSuffix(".part") })
    }

    @Test func wrongUsageIsTwo() throws {
        for arguments in [["nonsense"], ["log"], ["import", "a", "b"], ["log", "a", "--what"]] {
            let (process, _, _) = try Tool.start(arguments)
            process.waitUntilExit()
            #expect(process.terminationStatus == 2, "\(arguments)")
        }
        for command in [
            "init", "import", "log", "show", "diff", "export", "forget", "prune", "verify", "stats",
        ] {
            let help = try Tool.run(command, "--help")
            #expect(help.status == 0 && help.text.contains("USAGE: varve \(command)"))
        }
        #expect(try Tool.run("--help").text.contains("3 corruption found"))
        let object = try Tool.run("show", store, "x", "--json")
        #expect(object.status == 1 && object.error.hasPrefix(#"{"error":{"code":"failed""#))
    }

    @Test func oneWriterAtATime() throws {
        _ = try chain(1)
        let input = Pipe()
        let (writer, _, _) = try Tool.start(
            ["import", store, "-", "--lineage", "slow"], input: input)
        try input.fileHandleForWriting.write(contentsOf: Data(count: 1 << 20))
        Thread.sleep(forTimeInterval: 0.3)
        let image = try save(Data(count: 300 * 4096), "image")
        expect(
            try Tool.run("import", store, image, "--lineage", "web"), status: 1,
            saying: "another process")
        // Readers still work.
        #expect(try Tool.run("export", store, "web", "-").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
        try input.fileHandleForWriting.close()
        writer.waitUntilExit()
        #expect(writer.terminationStatus == 0)
        #expect(try Tool.run("import", store, image, "--lineage", "web").status == 0)
    }
}
