import Foundation
import Testing
import VarveTestSupport

/// Damage, lost files and killed processes.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct DamageTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    private func packs() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path("store/packs")).sorted()
    }

    private func importImage(_ image: Data, _ lineage: String) throws {
        try image.write(to: URL(fileURLWithPath: path("image")))
        let result = try Tool.run("import", store, path("image"), "--lineage", lineage)
        #expect(result.status == 0, "\(result.error)")
    }

    @Test func aFlippedByteIsFoundAndNamed() throws {
        var random = TestSeed.generator(600)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 500, &random)
        try importImage(image, "web")
        let pack = path("store/packs/00000001.pack")
        let whole = try Data(contentsOf: URL(fileURLWithPath: pack))
        // Within the page groups: every one of their bytes is needed for this checkpoint.
        for _ in 0..<20 {
            let offset = Int.random(in: 200..<whole.count * 3 / 4, using: &random)
            var damaged = whole
            damaged[offset] ^= UInt8.random(in: 1...255, using: &random)
            try damaged.write(to: URL(fileURLWithPath: pack))
            let verify = try Tool.run("verify", store, "--json")
            #expect(verify.status == 3)
            let found = try #require(try verify.objects.first)
            #expect(found["file"] as? String == "packs/00000001.pack")
            #expect((found["offset"] as? Int).map { $0 <= offset } == true)
            #expect(try Tool.run("verify", store).status == 3)
            // The index has the contents of a page group's header: if it is damaged, the export may
            // succeed.
            let export = try Tool.run("export", store, "web", path("out"), "--force")
            if export.status == 0 {
                #expect(try Data(contentsOf: URL(fileURLWithPath: path("out"))) == image)
            } else {
                #expect(export.status == 3 && export.error.contains("packs/00000001.pack"))
            }
        }
        try whole.write(to: URL(fileURLWithPath: pack))
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func lostAndCutPacksAreNamed() throws {
        var random = TestSeed.generator(601)
        #expect(try Tool.run("init", store).status == 0)
        try importImage(Images.make(pages: 500, &random), "web")
        let pack = path("store/packs/00000001.pack")
        let whole = try Data(contentsOf: URL(fileURLWithPath: pack))
        for count in [0, 10, 64, 100, whole.count / 2, whole.count - 8] {
            try whole.prefix(count).write(to: URL(fileURLWithPath: pack))
            #expect(try Tool.run("verify", store).status == 3, "cut to \(count)")
            let export = try Tool.run("export", store, "web", "-")
            #expect(export.status == 3 || count == whole.count - 8, "cut to \(count)")
        }
        try FileManager.default.removeItem(atPath: pack)
        #expect(try Tool.run("verify", store).status == 3)
        let export = try Tool.run("export", store, "web", "-")
        #expect(export.status == 3 && export.error.contains("missing"))
    }

    @Test func whatACrashLeftIsCutOff() throws {
        var random = TestSeed.generator(605)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 300, &random)
        try importImage(image, "web")
        let pack = URL(fileURLWithPath: path("store/packs/00000001.pack"))
        for round in 0..<6 {
            let whole = try Data(contentsOf: pack)
            let torn = (0..<Int.random(in: 1...5000, using: &random)).map { _ in
                round % 2 == 0 ? 0 : UInt8.random(in: 0...255, using: &random)
            }
            try (whole + torn).write(to: pack)
            // Also empty packs that were created and never written.
            try Data(count: round * 20).write(
                to: URL(fileURLWithPath: path("store/packs/00000002.pack")))
            if round >= 4 { try FileManager.default.removeItem(atPath: path("store/index")) }
            #expect(try Tool.run("export", store, "web", "-").output == image)
            let verify = try Tool.run("verify", store, "--json")
            #expect(verify.status == 0, "\(verify.text)")
            try importImage(image, "web")
            #expect(try packs() == ["00000001.pack"])
            #expect(try Data(contentsOf: pack).count < whole.count + 1000)
            #expect(try Tool.run("verify", store).status == 0)
        }
    }

    /// An import over several packs leaves whole packs and a torn one when it is killed.
    @Test func aKilledImportOfManyPacksIsNoDamage() throws {
        var random = TestSeed.generator(606)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 300, &random)
        try importImage(image, "web")
        var large = [UInt64](repeating: 0, count: 24 << 20)
        for index in large.indices { large[index] = random.next() }
        let data = large.withUnsafeBytes { Data($0) }
        try data.write(to: URL(fileURLWithPath: path("large")))
        var most = 0
        for _ in 0..<6 {
            let (process, output, _) = try Tool.start(
                ["import", store, path("large"), "--lineage", "large"])
            // Until it has begun its third pack or ended.
            for _ in 0..<2000 where process.isRunning {
                if try packs().count >= 3 { break }
                usleep(500)
            }
            kill(process.processIdentifier, SIGKILL)
            _ = output.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            most = max(most, try packs().count)
            #expect(try Tool.run("verify", store).status == 0)
            #expect(try Tool.run("stats", store).status == 0)
            #expect(try Tool.run("export", store, "web", "-").output == image)
        }
        #expect(most >= 3, "imports were killed in their third pack")
        try importImage(image, "web")
        #expect(try Tool.run("verify", store).status == 0)
        if try Tool.run("log", store, "--lineage", "large").status != 0 {
            // The first pack was sealed with the beginning of an import; it is kept until a prune.
            #expect(try packs().count <= 2, "packs without anything published are gone")
        }
    }

    /// The newest checkpoint may be the damaged one: an older state must not be taken for it.
    @Test func onlyIdsNameCheckpointsOfADamagedRepository() throws {
        var random = TestSeed.generator(604)
        #expect(try Tool.run("init", store).status == 0)
        let first = Images.make(pages: 300, &random)
        try importImage(first, "web")
        try importImage(Images.change(first, pages: 30, &random), "web")
        let ids = try Tool.run("log", store, "--json").objects.compactMap { $0["id"] as? String }
        #expect(ids.count == 2)
        // The newest manifest, and before it the mark of the writer that closed.
        let pack = URL(fileURLWithPath: path("store/packs/00000001.pack"))
        var bytes = try Data(contentsOf: pack)
        bytes[bytes.count - 100] ^= 1
        try bytes.write(to: pack)
        for removesIndex in [false, true] {
            if removesIndex { try FileManager.default.removeItem(atPath: path("store/index")) }
            for name in ["web", "web~1"] {
                for command in ["export", "show"] {
                    let rest = command == "export" ? ["-"] : []
                    let (process, output, error) = try Tool.start([command, store, name] + rest)
                    let data = output.fileHandleForReading.readDataToEndOfFile()
                    let text = String(
                        decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
                    process.waitUntilExit()
                    #expect(process.terminationStatus == 3, "\(command) \(name)")
                    #expect(data.isEmpty && text.contains("varve repair"), "\(text)")
                }
            }
            #expect(try Tool.run("export", store, ids[1], "-").output == first)
        }
    }

    @Test func theIndexIsRebuiltByItself() throws {
        var random = TestSeed.generator(602)
        #expect(try Tool.run("init", store).status == 0)
        let first = Images.make(pages: 500, &random)
        let second = Images.change(first, pages: 30, &random)
        try importImage(first, "web")
        try importImage(second, "web")
        let log = try Tool.run("log", store, "--json").text
        let index = URL(fileURLWithPath: path("store/index/data.mdb"))
        for (step, content) in [nil, "rubbish", "", String(repeating: "7", count: 100_000)]
            .enumerated()
        {
            if let content {
                try Data(content.utf8).write(to: index)
            } else {
                try FileManager.default.removeItem(atPath: path("store/index"))
            }
            // A reader creates one for itself.
            #expect(try Tool.run("log", store, "--json").text == log, "step \(step)")
            #expect(try Tool.run("export", store, "web", "-").output == second)
            #expect(try Tool.run("export", store, "web~1", "-").output == first)
            #expect(try Tool.run("verify", store).status == 0)
            // A writer creates the store's.
            #expect(try Tool.run("label", store, "web", "newest").status == 0)
            #expect(try Tool.run("label", store, "web", "--remove").status == 0)
            #expect(try Data(contentsOf: index).count > 16 << 10, "step \(step)")
        }
        try importImage(first, "web")
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func killedWhileImportingFiftyTimes() throws {
        var random = TestSeed.generator(603)
        #expect(try Tool.run("init", store).status == 0)
        var images = [Images.make(pages: 6000, &random)]
        try importImage(images[0], "web")
        var killed = 0
        var published = 0
        while killed < 50 {
            let next = Images.change(images[images.count - 1], pages: 3000, &random)
            try next.write(to: URL(fileURLWithPath: path("image")))
            let (process, output, _) = try Tool.start(
                ["import", store, path("image"), "--lineage", "web"])
            usleep(UInt32.random(in: 0...60_000, using: &random))
            kill(process.processIdentifier, SIGKILL)
            _ = output.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            if process.terminationReason == .uncaughtSignal { killed += 1 }
            // Whether it was published or not, the log lists only whole checkpoints.
            let log = try Tool.run("log", store, "--json").objects
            if log.count == images.count + 1 {
                images.append(next)
                published += 1
            }
            #expect(log.count == images.count)
            let name = Int.random(in: 0..<images.count, using: &random)
            let export = try Tool.run("export", store, "web~\(images.count - 1 - name)", "-")
            #expect(export.output == images[name])
            // The next writer cleans up; sometimes it is killed too.
            if killed % 5 == 0 { #expect(try Tool.run("verify", store).status == 0) }
        }
        try importImage(images[images.count - 1], "web")
        #expect(try Tool.run("verify", store).status == 0)
        for (number, image) in images.enumerated() where number % 7 == 0 {
            let name = "web~\(images.count - number)"
            #expect(try Tool.run("export", store, name, "-").output == image)
        }
        print("killed \(killed) imports; \(published) more had published before they died")
    }

    @Test(.enabled(if: geteuid() == 0))
    func aFullDiskLeavesTheStoreAsItWas() throws {
        let mount = path("small")
        try FileManager.default.createDirectory(
            atPath: mount, withIntermediateDirectories: true)
        guard system("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount) else {
            noteSkipped("skipped, a full disk: tmpfs cannot be mounted here")
            return
        }
        defer { _ = system("umount", mount) }
        var random = TestSeed.generator(604)
        let full = "\(mount)/store"
        #expect(try Tool.run("init", full).status == 0)
        let small = Images.make(pages: 1000, &random)
        try small.write(to: URL(fileURLWithPath: path("image")))
        #expect(try Tool.run("import", full, path("image"), "--lineage", "web").status == 0)
        var large = Data(count: 40 << 20)
        for offset in stride(from: 0, to: large.count, by: 8) {
            withUnsafeBytes(of: random.next()) {
                large.replaceSubrange(offset..<offset + 8, with: $0)
            }
        }
        try large.write(to: URL(fileURLWithPath: path("large")))
        let result = try Tool.run("import", full, path("large"), "--lineage", "big")
        #expect(result.status == 1)
        #expect(result.error.contains("no space"), "\(result.error)")
        #expect(try Tool.run("export", full, "web", "-").output == small)
        #expect(try Tool.run("verify", full).status == 0)
        // The failed import's records are gone, and there is room for the next import.
        let next = Images.change(small, pages: 100, &random)
        try next.write(to: URL(fileURLWithPath: path("image")))
        let after = try Tool.run("import", full, path("image"), "--lineage", "web")
        #expect(after.status == 0, "\(after.error)")
        #expect(try Tool.run("export", full, "web", "-").output == next)
    }

    private func system(_ arguments: String...) -> Bool {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = arguments
        return (try? process.runToEnd())?.status == 0
    }
}
