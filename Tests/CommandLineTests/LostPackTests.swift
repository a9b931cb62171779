import Foundation
import Testing
import VarveTestSupport

/// Packs that are lost, that belong to another store, or that have a flipped bit: what is whole is
/// listed, what is not is named, and nothing is written.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct LostPackTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    private func remove(_ name: String) throws {
        try FileManager.default.removeItem(atPath: path("store/\(name)"))
    }

    private func contents(_ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: path("store/\(name)")))
    }

    private func write(_ data: Data, _ name: String) throws {
        try data.write(to: URL(fileURLWithPath: path("store/\(name)")))
    }

    private func packs() throws -> [String: Data] {
        var packs: [String: Data] = [:]
        for name in try FileManager.default.contentsOfDirectory(atPath: path("store/packs")) {
            packs[name] = try contents("packs/\(name)")
        }
        return packs
    }

    private func importImage(_ image: Data, _ lineage: String) throws -> Tool.Result {
        try image.write(to: URL(fileURLWithPath: path("image")))
        return try Tool.run("import", store, path("image"), "--lineage", lineage)
    }

    /// Two packs: lineage `big` fills the first one and ends in the second, which also has `small`.
    private func make() throws -> (big: Data, small: Data) {
        var random = TestSeed.generator(620)
        #expect(try Tool.run("init", store).status == 0)
        var words = [UInt64](repeating: 0, count: 9 << 20)
        for index in words.indices { words[index] = random.next() }
        let first = words.withUnsafeBytes { Data($0[..<(4 << 20)]) }
        let big = words.withUnsafeBytes { Data($0) }
        let small = Images.make(pages: 100, &random)
        #expect(try importImage(first, "first").status == 0)
        #expect(try importImage(big, "big").status == 0)
        #expect(try importImage(small, "small").status == 0)
        #expect(try Set(packs().keys) == ["00000001.pack", "00000002.pack"])
        return (big, small)
    }

    private func expectDamage(
        _ result: Tool.Result, naming name: String, location: SourceLocation = #_sourceLocation
    ) {
        #expect(result.status == 3, "\(result.error)", sourceLocation: location)
        #expect(result.error.contains(name), "\(result.error)", sourceLocation: location)
    }

    @Test func aWriterRefusesWithoutTheNewestPack() throws {
        let (big, small) = try make()
        try remove("packs/00000002.pack")
        let before = try packs()
        let log = try Tool.run("log", store, "--json")
        expectDamage(log, naming: "packs/00000002.pack")
        #expect(try log.objects.map { $0["lineage"] as? String } == ["first"])
        for image in [big, small] {
            let result = try importImage(image, "new")
            expectDamage(result, naming: "packs/00000002.pack")
            #expect(result.error.contains("missing"))
        }
        let verify = try Tool.run("verify", store)
        expectDamage(verify, naming: store)
        #expect(verify.text.contains("packs/00000002.pack is damaged"))
        // The pack before it is whole.
        #expect(!verify.text.contains("packs/00000001.pack"), "\(verify.text)")
        let repair = try Tool.run("repair", store)
        expectDamage(repair, naming: store)
        #expect(!repair.text.contains("packs/00000001.pack is damaged"), "\(repair.text)")
        #expect(verify.text.split(separator: "\n").filter { $0.hasPrefix("affected") }.count == 2)
        #expect(try packs() == before)
    }

    /// Exports a lineage's checkpoint by its ID, which is its only name while there is damage.
    private func export(_ lineage: String, _ log: Tool.Result) throws -> Tool.Result {
        let object = try log.objects.first { $0["lineage"] as? String == lineage }
        return try Tool.run("export", store, try #require(object?["id"] as? String), "-")
    }

    @Test func theOnlyPackIsNotMadeAnew() throws {
        var random = TestSeed.generator(621)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 100, &random)
        #expect(try importImage(image, "web").status == 0)
        let pack = try contents("packs/00000001.pack")
        try remove("packs/00000001.pack")
        expectDamage(try Tool.run("log", store), naming: "packs/00000001.pack")
        expectDamage(try importImage(image, "web"), naming: "packs/00000001.pack")
        #expect(try packs().isEmpty)
        // Restored from a copy, the pack has its original contents.
        try write(pack, "packs/00000001.pack")
        #expect(try importImage(image, "web").status == 0)
        #expect(try Tool.run("export", store, "web~1", "-").output == image)
    }

    /// All packs at once, and their folder.
    @Test(arguments: [true, false]) func theFolderOfPacksIsNamed(keepsIndex: Bool) throws {
        var random = TestSeed.generator(625)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 100, &random)
        #expect(try importImage(image, "web").status == 0)
        let packs = path("store/packs")
        try FileManager.default.moveItem(atPath: packs, toPath: path("packs"))
        if !keepsIndex { try remove("index") }
        for words in [
            ["log"], ["verify"], ["stats"], ["prune", "--dry-run"], ["prune"], ["repair"],
            ["repair", "--execute"],
        ] {
            let result = try Tool.run([words[0], store] + words[1...])
            expectDamage(result, naming: "packs is damaged at offset 0 (folder of packs)")
            #expect(result.error.contains("restore it from a copy"), "\(result.error)")
        }
        expectDamage(try importImage(image, "web"), naming: "folder of packs")
        #expect(!FileManager.default.fileExists(atPath: packs))
        try FileManager.default.moveItem(atPath: path("packs"), toPath: packs)
        #expect(try importImage(image, "web").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
        #expect(try Tool.run("export", store, "web~1", "-").output == image)
    }

    /// An online copy that took the packs first and the index after the writer had continued.
    @Test func anIndexThatIsAheadOfTheCopiedPacksIsNotFollowed() throws {
        var random = TestSeed.generator(622)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 100, &random)
        #expect(try importImage(image, "web").status == 0)
        let copied = try contents("packs/00000001.pack")
        var words = [UInt64](repeating: 0, count: 9 << 20)
        for index in words.indices { words[index] = random.next() }
        #expect(try importImage(words.withUnsafeBytes { Data($0) }, "big").status == 0)
        #expect(try packs().count == 2)
        try remove("packs/00000002.pack")
        try write(copied, "packs/00000001.pack")
        expectDamage(try importImage(image, "web"), naming: "packs/00000002.pack")
        #expect(try packs() == ["00000001.pack": copied])
        // The head is newer too.
        try remove("index")
        expectDamage(try importImage(image, "web"), naming: "packs/00000002.pack")
        // Without both it is a valid older repository.
        try remove("head")
        #expect(try importImage(image, "web").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func anOlderPackIsMissedWithoutTheIndex() throws {
        let (_, small) = try make()
        try remove("packs/00000001.pack")
        try remove("index")
        let before = try packs()
        let log = try Tool.run("log", store, "--json")
        expectDamage(log, naming: "packs/00000001.pack")
        #expect(log.error.contains("missing"))
        #expect(try log.objects.map { $0["lineage"] as? String } == ["small", "big"])
        #expect(try export("small", log).output == small)
        expectDamage(try export("big", log), naming: "pack")
        expectDamage(try Tool.run("stats", store), naming: "packs/00000001.pack")
        expectDamage(try importImage(small, "small"), naming: "packs/00000001.pack")
        expectDamage(try Tool.run("prune", store), naming: "packs/00000001.pack")
        expectDamage(try Tool.run("verify", store), naming: store)
        #expect(try packs() == before)
    }

    @Test func aFlippedBitWithoutTheIndexHidesNothingElse() throws {
        var random = TestSeed.generator(623)
        #expect(try Tool.run("init", store).status == 0)
        let images = (0..<3).map { _ in Images.make(pages: 200, &random) }
        var ends: [Int] = []
        for (number, image) in images.enumerated() {
            #expect(try importImage(image, "l\(number)").status == 0)
            ends.append(try contents("packs/00000001.pack").count)
        }
        let whole = try contents("packs/00000001.pack")
        for _ in 0..<20 {
            let offset = Int.random(in: ends[0] + 40..<ends[1] - 400, using: &random)
            var damaged = whole
            damaged[offset] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            try write(damaged, "packs/00000001.pack")
            try? remove("index")
            let log = try Tool.run("log", store, "--json")
            expectDamage(log, naming: "packs/00000001.pack")
            let names = try log.objects.compactMap { $0["lineage"] as? String }
            #expect(names.contains("l0") && names.contains("l2"), "byte \(offset): \(names)")
            #expect(try export("l0", log).output == images[0])
            #expect(try export("l2", log).output == images[2])
            let other = try Tool.run("export", store, "l1", "-")
            #expect(other.status == 3 || other.output == images[1], "byte \(offset)")
            let verify = try Tool.run("verify", store, "--json")
            #expect(verify.status == 3)
            let last = try #require(try verify.objects.last)
            #expect(last["checkpoints"] as? Int ?? 0 >= 2, "byte \(offset): \(verify.text)")
            if names.contains("l1"), other.status == 3 {
                #expect((last["affectedCheckpoints"] as? [String])?.count == 1, "\(verify.text)")
            }
            expectDamage(try importImage(images[0], "l0"), naming: "packs/00000001.pack")
            #expect(try contents("packs/00000001.pack") == damaged)
        }
        // The pack restored from a copy: everything is there, in the original order.
        try write(whole, "packs/00000001.pack")
        let log = try Tool.run("log", store, "--json").objects
        #expect(log.map { $0["lineage"] as? String } == ["l2", "l1", "l0"])
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func aBadManifestHidesNoOther() throws {
        var random = TestSeed.generator(624)
        #expect(try Tool.run("init", store).status == 0)
        var images = (0..<3).map { _ in Images.make(pages: 50, &random) }
        // Pages that images share were stored with the first one: only its page map has their
        // locations, so the image after the damaged one has lost them too, until a repair.
        for word in 1...2 as ClosedRange<UInt64> {
            let page = [UInt64](repeating: word, count: 512).withUnsafeBytes { Data($0) }
            images[0].replaceSubrange((Int(word) - 1) * 4096..<Int(word) * 4096, with: page)
        }
        for (number, image) in images.enumerated() {
            #expect(try importImage(image, "lineage\(number)").status == 0)
        }
        var pack = try contents("packs/00000001.pack")
        let name = try #require(pack.range(of: Data("lineage1".utf8)))
        pack[name.lowerBound] ^= 1
        try write(pack, "packs/00000001.pack")
        for keepsIndex in [true, false] {
            if !keepsIndex { try remove("index") }
            let log = try Tool.run("log", store, "--json")
            expectDamage(log, naming: "packs/00000001.pack")
            #expect(
                try log.objects.map { $0["lineage"] as? String } == ["lineage2", "lineage0"])
            expectDamage(try Tool.run("log", store), naming: "packs/00000001.pack")
            let result = try export("lineage2", log)
            #expect(result.output == images[2], "\(result.error)")
        }
    }

    @Test func aFileThatIsNoPackIsNamedItself() throws {
        let (big, small) = try make()
        let stray = "packs/00000003.pack"
        var random = TestSeed.generator(625)
        let junk = Data((0..<5000).map { _ in UInt8.random(in: 0...255, using: &random) })
        for (keepsIndex, contents) in [
            (true, junk), (true, Data("a note\n".utf8)),
            (true, try contents("packs/00000002.pack")), (false, junk),
        ] {
            if !keepsIndex { try remove("index") }
            try write(contents, stray)
            let log = try Tool.run("log", store, "--json")
            expectDamage(log, naming: stray)
            #expect(!log.error.contains("00000002"), "\(log.error)")
            #expect(try log.objects.count == 3)
            #expect(try export("big", log).output == big)
            let verify = try Tool.run("verify", store, "--json")
            #expect(verify.status == 3)
            #expect(try verify.objects.count == 2)
            #expect(try verify.objects.first?["file"] as? String == stray)
            expectDamage(try importImage(small, "small"), naming: stray)
        }
        try remove(stray)
        #expect(try importImage(small, "small").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
    }
}
