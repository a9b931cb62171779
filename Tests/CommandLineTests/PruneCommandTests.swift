import Foundation
import Testing
import VarveTestSupport

/// `varve forget` and `varve prune`, with concurrent readers in other processes.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct PruneCommandTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    /// A repository of `count` incompressible images of 72 MiB: each fills a pack.
    private func chain(_ count: Int) throws -> [Data] {
        var random = TestSeed.generator(960)
        #expect(try Tool.run("init", store).status == 0)
        return try (0..<count).map { number in
            let words = (0..<72 << 17).map { _ in random.next() }
            let image = words.withUnsafeBytes { Data($0) }
            try image.write(to: URL(fileURLWithPath: path("image")))
            let result = try Tool.run(
                "import", store, path("image"), "--lineage", "web", "--label", "step\(number)")
            #expect(result.status == 0, "\(result.error)")
            return image
        }
    }

    private func leases() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path("store/leases"))
    }

    private func prune() throws -> [String: Any] {
        let result = try Tool.run("prune", store, "--max-unused", "0", "--json")
        #expect(result.status == 0, "\(result.error)")
        return try #require(try result.objects.first)
    }

    /// A user who may not use the index of another user's store gets the same plan as the owner.
    private func expectForeignPlan() throws {
        guard geteuid() == 0 else {
            noteSkipped("skipped, the plan of another user: only root can give a store away")
            return
        }
        let own = try Tool.run("prune", store, "--dry-run", "--json", "--max-unused", "0")
        let copied = try Tool.shell(
            "cp -a \"$store\" \"$store.foreign\" && chown -R 54321 \"$store.foreign\"",
            ["store": store])
        #expect(copied.status == 0, "\(copied.error)")
        let foreign = try Tool.run(
            "prune", store + ".foreign", "--dry-run", "--json", "--max-unused", "0")
        #expect(foreign.status == 0, "\(foreign.error)")
        let (plan, found) = (try own.objects[0], try foreign.objects[0])
        for key in ["packsRemoved", "packsRewritten", "packsKept", "bytes", "bytesFreed"] {
            #expect(plan[key] as? Int == found[key] as? Int, "\(key)")
        }
        #expect((plan["bytesFreed"] as? Int ?? 0) > 32 << 20)
    }

    /// Starts an export into a pipe that is not read, and waits until it reads the store.
    private func startReader(_ name: String) throws -> (Process, Pipe) {
        let (process, output, _) = try Tool.start(["export", store, name, "-"])
        for _ in 0..<500 {
            if let names = try? leases(), names.contains(where: { !$0.hasSuffix(".new") }) {
                return (process, output)
            }
            Thread.sleep(forTimeInterval: 0.01)
        }
        Issue.record("no lease came")
        return (process, output)
    }

    @Test func aReaderInAnotherProcessHasItsPages() throws {
        let images = try chain(3)
        let (reader, output) = try startReader("step0")
        #expect(try Tool.run("forget", store, "step0", "step1").status == 0)
        let first = try prune()
        #expect((first["bytesFreed"] as? Int ?? 0) > 32 << 20, "the other one's pages went")
        #expect((first["bytesLeased"] as? Int ?? 0) > 60 << 20)
        #expect(first["bytesUnusedAfter"] as? Int == first["bytesLeased"] as? Int)
        let stats = try #require(try Tool.run("stats", store, "--json").objects.first)
        #expect((stats["leasedBytes"] as? Int ?? 0) > 60 << 20)
        #expect(stats["unusedBytes"] as? Int == stats["leasedBytes"] as? Int)
        #expect(try Tool.run("stats", store).text.contains("as soon as their readers have ended"))
        #expect(try Tool.run("prune", store, "--dry-run").text.contains("held by readers"))
        #expect(output.fileHandleForReading.readDataToEndOfFile() == images[0])
        reader.waitUntilExit()
        #expect(reader.terminationStatus == 0)
        #expect(try leases().isEmpty)
        let second = try prune()
        #expect(second["bytesLeased"] as? Int == 0)
        #expect((second["bytesFreed"] as? Int ?? 0) > 32 << 20)
        #expect(try Tool.run("export", store, "web", "-").output == images[2])
        #expect(try Tool.run("verify", store).status == 0)
    }

    /// `stats` shows what a prune leaves in the open pack, and `--dry-run` shows what the next
    /// prune does about it.
    @Test func whatDiedInTheOpenPackShows() throws {
        var random = TestSeed.generator(965)
        #expect(try Tool.run("init", store).status == 0)
        for _ in 0..<2 {
            let words = (0..<256 << 9).map { _ in random.next() }
            try words.withUnsafeBytes { Data($0) }.write(to: URL(fileURLWithPath: path("image")))
            #expect(try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        }
        #expect(try Tool.run("forget", store, "web~1").status == 0)
        #expect(try Tool.run("prune", store).status == 0)
        let stats = try #require(try Tool.run("stats", store, "--json").objects.first)
        let unused = try #require(stats["openUnusedBytes"] as? Int)
        #expect(unused >= 1 << 20 && stats["unusedBytes"] as? Int == unused)
        #expect(try Tool.run("stats", store).text.contains("about \(unused) in the pack"))
        let dry = try Tool.run("prune", store, "--dry-run", "--max-unused", "0", "--json")
        let (plan, done) = (try #require(dry.objects.first), try prune())
        #expect(done["packsRewritten"] as? Int == 1)
        #expect((done["bytesFreed"] as? Int ?? 0) >= 1 << 20)
        for (key, value) in done where key != "dryRun" {
            #expect(plan[key] as? Int == value as? Int, "\(key)")
        }
        let rest = try #require(try Tool.run("stats", store, "--json").objects.first)
        #expect(rest["openUnusedBytes"] as? Int == 0)
    }

    @Test func aReaderThatWasKilledKeepsNothing() throws {
        let images = try chain(2)
        let (reader, _) = try startReader("step0")
        #expect(try Tool.run("forget", store, "step0").status == 0)
        #expect(try prune()["pagesDropped"] as? Int == 0, "it is leased")
        kill(reader.processIdentifier, SIGKILL)
        reader.waitUntilExit()
        #expect(try leases().count == 1)
        try expectForeignPlan()
        #expect((try prune()["bytesFreed"] as? Int ?? 0) > 60 << 20)
        #expect(try leases().isEmpty)
        #expect(try Tool.run("export", store, "web", "-").output == images[1])
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func aKilledPruneHasLostNothing() throws {
        var random = TestSeed.generator(963)
        #expect(try Tool.run("init", store).status == 0)
        var images: [String: Data] = [:]
        var interrupted = 0
        for round in 0..<50 {
            // Each image is new: packs fill up, and become unused when it is forgotten.
            let words = (0..<16 << 17).map { _ in random.next() }
            images["at\(round)"] = words.withUnsafeBytes { Data($0) }
            try images["at\(round)"]?.write(to: URL(fileURLWithPath: path("image")))
            let taken = try Tool.run(
                "import", store, path("image"), "--lineage", "at\(round)")
            #expect(taken.status == 0, "\(taken.error)")
            if images.count > 5, let victim = images.keys.sorted().randomElement(using: &random) {
                #expect(try Tool.run("forget", store, victim).status == 0)
                images[victim] = nil
            }
            let (process, _, _) = try Tool.start(["prune", store, "--max-unused", "0"])
            usleep(UInt32.random(in: 0..<60_000, using: &random))
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
            if process.terminationReason == .uncaughtSignal { interrupted += 1 }
            guard let name = images.keys.sorted().randomElement(using: &random) else { continue }
            #expect(try Tool.run("export", store, name, "-").output == images[name])
            if round % 10 == 9 { #expect(try Tool.run("verify", store).status == 0) }
        }
        print("killed \(interrupted) of 50 prunes before they had ended")
        #expect(try prune()["bytesUnusedAfter"] as? Int == 0)
        for (name, image) in images {
            #expect(try Tool.run("export", store, name, "-").output == image)
        }
        #expect(try Tool.run("verify", store).status == 0)
        let left = try FileManager.default.contentsOfDirectory(atPath: path("store/packs"))
        #expect(left.allSatisfy { $0.hasSuffix(".pack") })
    }

    @Test func policiesSayWhatTheyDo() throws {
        var random = TestSeed.generator(961)
        #expect(try Tool.run("init", store).status == 0)
        var image = Images.make(pages: 100, &random)
        for number in 0..<6 {
            image = Images.change(image, pages: 10, &random)
            try image.write(to: URL(fileURLWithPath: path("image")))
            let label = number == 1 ? ["--label", "good"] : []
            let (process, _, _) = try Tool.start(
                ["import", store, path("image"), "--lineage", "web"] + label)
            process.waitUntilExit()
            #expect(process.terminationStatus == 0)
        }
        let dry = try Tool.run("forget", store, "--keep-last", "2", "--dry-run")
        #expect(dry.status == 0 && dry.text.contains("3 would go, 3 stay"))
        #expect(dry.text.contains("label good") && dry.text.contains(": last"))
        let objects = try Tool.run(
            "forget", store, "--keep-last", "2", "--keep-within", "0s", "--dry-run", "--json"
        ).objects
        #expect(
            objects.map { $0["forgotten"] as? Bool } == [true, false, true, true, false, false])
        #expect(objects[5]["reasons"] as? [String] == ["last", "within"])
        #expect(try Tool.run("log", store, "--json").objects.count == 6)
        #expect(try Tool.run("forget", store, "--keep-last", "2", "--lineage", "web").status == 0)
        #expect(try Tool.run("log", store, "--json").objects.count == 3)
        #expect(try Tool.run("export", store, "web", "-").output == image)
        let stats = try #require(try Tool.run("stats", store, "--json").objects.first)
        #expect(stats["unusedBytes"] is Int)
        let plan = try #require(
            try Tool.run("prune", store, "--dry-run", "--json").objects.first)
        #expect(plan["dryRun"] as? Bool == true && plan["packsRemoved"] as? Int == 0)
    }

    @Test func mistakesAreOneSentence() throws {
        var random = TestSeed.generator(962)
        #expect(try Tool.run("init", store).status == 0)
        try Images.make(pages: 10, &random).write(to: URL(fileURLWithPath: path("image")))
        #expect(try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        for arguments in [
            ["forget", store], ["forget", store, "web", "--keep-last", "1"],
            ["forget", store, "--keep-last", "0"], ["forget", store, "--keep-last", "-1"],
            ["forget", store, "web", "--lineage", "web"],
            ["forget", store, "--keep-within", "2y"], ["prune", store, "--max-unused", "101"],
        ] {
            let (process, _, _) = try Tool.start(arguments)
            process.waitUntilExit()
            #expect(process.terminationStatus == 2, "\(arguments)")
        }
        for arguments in [["web", "nobody"], ["--keep-last", "1", "--lineage", "nobody"]] {
            let (process, _, error) = try Tool.start(["forget", store] + arguments)
            process.waitUntilExit()
            let text = String(
                decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            #expect(process.terminationStatus == 1 && text.contains("nobody"))
            #expect(text.split(separator: "\n").count == 1)
        }
        #expect(try Tool.run("log", store, "--json").objects.count == 1)
        #expect(try Tool.run("forget", store, "web", "web").status == 0)
        #expect(try Tool.run("forget", store, "web").status == 1)
        #expect(try Tool.run("prune", store).status == 0)
        #expect(try Tool.run("verify", store).status == 0)
    }
}
