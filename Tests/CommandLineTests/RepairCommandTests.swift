import Foundation
import Testing
import VarveTestSupport

/// `varve repair`: shown first, executed on request, and whole afterwards.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct RepairCommandTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }
    private var pack: URL { URL(fileURLWithPath: path("store/packs/00000001.pack")) }

    /// Three images of a lineage; the second one's new pages begin at the offset.
    private func fill() throws -> (images: [Data], offset: Int) {
        var random = TestSeed.generator(1060)
        #expect(try Tool.run("init", store).status == 0)
        var images = [Images.make(pages: 500, &random)]
        images.append(Images.change(images[0], pages: 60, &random))
        images.append(images[0])
        var offset = 0
        for (number, image) in images.enumerated() {
            if number == 1 { offset = try Data(contentsOf: pack).count }
            try image.write(to: URL(fileURLWithPath: path("image")))
            #expect(try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        }
        return (images, offset)
    }

    private func flip(_ offset: Int) throws {
        var bytes = try Data(contentsOf: pack)
        bytes[offset] ^= 16
        try bytes.write(to: pack)
    }

    /// True if a process has the writer's lock, as the kernel reports.
    private func isLocked() throws -> Bool {
        let attributes = try FileManager.default.attributesOfItem(atPath: path("store/lock"))
        let inode = try #require(attributes[.systemFileNumber] as? Int)
        let locks = try String(contentsOfFile: "/proc/locks", encoding: .utf8)
        return locks.split(separator: "\n").contains { $0.contains(":\(inode) ") }
    }

    private func names(_ folder: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path("store/\(folder)")).sorted()
    }

    @Test func aWholeStoreNeedsNothing() throws {
        _ = try fill()
        let plan = try Tool.run("repair", store, "--json")
        #expect(plan.status == 0, "\(plan.error)")
        let total = try #require(try plan.objects.first)
        #expect(try plan.objects.count == 1)
        #expect(total["clean"] as? Bool == true && total["executed"] as? Bool == false)
        #expect(total["checkpointsWhole"] as? Int == 3)
        #expect(try Tool.run("repair", store).text.contains("nothing is damaged"))
        #expect(try Tool.run("repair", store, "--execute").status == 0)
        #expect(try Tool.run("repair", store, "--no-keep").status == 2)
        #expect(try Tool.run("repair", path("elsewhere")).status == 1)
        #expect(!FileManager.default.fileExists(atPath: path("store/damaged")))
    }

    @Test func theDamagedCheckpointGoesAndTheOthersStay() throws {
        let (images, offset) = try fill()
        // After the header of the second one's first page group, which has only pages of this
        // image.
        try flip(offset + 400)
        let before = try Data(contentsOf: pack)
        let plan = try Tool.run("repair", store, "--json")
        #expect(plan.status == 3)
        #expect(try Data(contentsOf: pack) == before, "nothing was touched")
        let objects = try plan.objects
        let finding = try #require(objects.first)
        #expect(
            Set(finding.keys) == [
                "file", "offset", "end", "object", "reason", "remedy", "affectedCheckpoints",
            ])
        #expect(finding["file"] as? String == "packs/00000001.pack")
        #expect(finding["object"] as? String == "page group")
        #expect(finding["remedy"] as? String == "rewritten")
        let total = try #require(objects.last)
        #expect(
            Set(total.keys) == [
                "executed", "clean", "findings", "checkpointsWhole", "checkpointsLost",
                "packsRewritten", "packsRemoved", "packsMissing", "filesMoved", "pagesSaved",
                "bytesCopied", "bytesKept",
            ])
        let lost = try #require(total["checkpointsLost"] as? [[String: Any]])
        #expect(lost.count == 1 && total["checkpointsWhole"] as? Int == 2)
        #expect((lost[0]["frames"] as? [[Int]])?.isEmpty == false)
        let id = try #require(lost[0]["id"] as? String)
        #expect(finding["affectedCheckpoints"] as? [String] == [id])
        #expect(try Tool.run("repair", store).status == 3)

        let done = try Tool.run("repair", store, "--execute")
        #expect(done.status == 0, "\(done.error)")
        #expect(done.text.contains("repaired: the repository is whole"))
        let kept = URL(fileURLWithPath: path("store/damaged/00000001.pack"))
        #expect(try Data(contentsOf: kept) == before)
        #expect(try Tool.run("verify", store).status == 0)
        let log = try Tool.run("log", store, "--json").objects
        #expect(log.count == 2)
        #expect(log[0]["parent"] as? String == id, "it names what is gone")
        #expect(try Tool.run("export", store, "web", "-").output == images[2])
        #expect(try Tool.run("repair", store).status == 0)
        try images[1].write(to: URL(fileURLWithPath: path("image")))
        #expect(try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        #expect(try Tool.run("export", store, "web", "-").output == images[1])
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func filesThatAreNoPacksAreMoved() throws {
        let (images, _) = try fill()
        try Data("notes".utf8).write(to: URL(fileURLWithPath: path("store/packs/notes.txt")))
        try Data("notes".utf8).write(to: URL(fileURLWithPath: path("store/packs/00000007.pack")))
        try FileManager.default.createDirectory(
            atPath: path("store/packs/old"), withIntermediateDirectories: true)
        #expect(try Tool.run("repair", store).status == 3)
        let done = try Tool.run("repair", store, "--execute", "--no-keep", "--json")
        #expect(done.status == 0, "\(done.error)")
        #expect(try names("packs") == ["00000001.pack"])
        #expect(try names("damaged") == ["00000007.pack", "notes.txt", "old"])
        #expect(try Tool.run("export", store, "web~1", "-").output == images[1])
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func aStoreThatCannotBeOpenedIsRepaired() throws {
        let (images, offset) = try fill()
        try flip(20)
        try flip(offset + 400)
        try FileManager.default.removeItem(atPath: path("store/index"))
        try Data(count: 64).write(to: URL(fileURLWithPath: path("store/repository")))
        try FileManager.default.removeItem(atPath: path("store/lock"))
        #expect(try Tool.run("log", store).status != 0)
        // Only the pack still has the repository's ID, and the pack is damaged there.
        #expect(try Tool.run("repair", store).status == 1)
        try flip(20)
        #expect(try Tool.run("repair", store, "--execute", "--no-keep").status == 0)
        #expect(try Tool.run("verify", store).status == 0)
        #expect(try names("damaged") == ["repository"])
        #expect(try Tool.run("export", store, "web", "-").output == images[2])
    }

    /// The file `repository` of another store does not make the packs foreign.
    @Test(arguments: [true, false]) func packsSayWhichRepositoryItIs(keepsIndex: Bool) throws {
        let (images, _) = try fill()
        #expect(try Tool.run("init", path("other")).status == 0)
        let file = URL(fileURLWithPath: path("store/repository"))
        let own = try Data(contentsOf: file)
        let foreign = try Data(contentsOf: URL(fileURLWithPath: path("other/repository")))
        try foreign.write(to: file)
        if !keepsIndex { try FileManager.default.removeItem(atPath: path("store/index")) }
        let verify = try Tool.run("verify", store)
        #expect(verify.status == 3)
        #expect(verify.error.contains("repository is damaged at offset 0"), "\(verify.error)")
        #expect(verify.error.contains("varve repair"), "\(verify.error)")
        let plan = try Tool.run("repair", store, "--json")
        #expect(plan.status == 3)
        #expect(try plan.objects.first?["file"] as? String == "repository", "\(plan.text)")
        #expect(try plan.objects.first?["remedy"] as? String == "rebuilt")
        let total = try #require(
            try plan.objects.first { $0["checkpointsWhole"] != nil }, "\(plan.text)")
        #expect(total["checkpointsWhole"] as? Int == 3)
        #expect((total["filesMoved"] as? [String])?.isEmpty == true)
        #expect(try Data(contentsOf: file) == foreign)
        let done = try Tool.run("repair", store, "--execute")
        #expect(done.status == 0, "\(done.error)")
        // The same ID; only the lost file had the time of creation.
        #expect(try Data(contentsOf: file)[..<32] == own[..<32])
        #expect(try names("damaged") == ["repository"])
        #expect(try Tool.run("verify", store).status == 0)
        #expect(try Tool.run("log", store, "--json").objects.count == 3)
        #expect(try Tool.run("export", store, "web", "-").output == images[2])
    }

    /// The only pack of another store does not change this store's ID: the head has it.
    @Test func anotherStoresPackIsAStranger() throws {
        _ = try fill()
        #expect(try Tool.run("init", path("other")).status == 0)
        #expect(
            try Tool.run("import", path("other"), path("image"), "--lineage", "x").status == 0)
        let other = URL(fileURLWithPath: path("other/packs/00000001.pack"))
        try Data(contentsOf: other).write(to: pack)
        let verify = try Tool.run("verify", store, "--json")
        #expect(verify.status == 3)
        #expect(try verify.objects.first?["file"] as? String == "packs/00000001.pack")
        let affected = try verify.objects.last?["affectedCheckpoints"] as? [String]
        #expect(affected?.count == 3, "\(verify.text)")
        let plan = try Tool.run("repair", store, "--json")
        let total = try #require(
            try plan.objects.first { $0["checkpointsWhole"] != nil }, "\(plan.text)")
        #expect((total["checkpointsLost"] as? [Any])?.count == 3)
        #expect(total["filesMoved"] as? [String] == ["00000001.pack"])
    }

    @Test func onlyOneWriterAtATime() throws {
        _ = try fill()
        // The format is given, so it opens the repository before it reads the input.
        let input = Pipe()
        let (process, output, _) = try Tool.start(
            ["import", store, "-", "--lineage", "other", "--format", "raw"], input: input)
        defer {
            process.terminate()
            try? input.fileHandleForWriting.close()
            _ = output.fileHandleForReading.readDataToEndOfFile()
        }
        // A repair that runs before the import has the lock proves nothing.
        while process.isRunning, try !isLocked() { usleep(10_000) }
        #expect(process.isRunning)
        let result = try Tool.run("repair", store)
        #expect(result.status == 1 && result.error.contains("another process is writing"))
    }
}
