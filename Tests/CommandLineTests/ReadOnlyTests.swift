import Foundation
import Testing
import VarveTestSupport

/// Readers that may not write, and messages for directories that cannot be written.
@Suite(.serialized, .enabled(if: Tool.isBuilt && geteuid() == 0)) struct ReadOnlyTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func system(_ arguments: String...) -> Bool {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = arguments
        return (try? process.runToEnd())?.status == 0
    }

    /// Runs `body` with a small disk of its own; prints a message if none can be mounted.
    private func withDisk(_ size: String, _ body: (String) throws -> Void) throws {
        let mount = path("disk")
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: true)
        guard system("mount", "-t", "tmpfs", "-o", "size=\(size)", "tmpfs", mount) else {
            noteSkipped("skipped, a disk of its own: tmpfs cannot be mounted here")
            return
        }
        defer { _ = system("umount", "-l", mount) }
        try body(mount)
    }

    /// A repository with one checkpoint, and an import into it in progress.
    private func begin(_ store: String) throws -> (image: Data, writer: Process, Pipe) {
        var random = TestSeed.generator(660)
        let image = try makeStore(store)
        let pack = store + "/packs/00000001.pack"
        let size = try Data(contentsOf: URL(fileURLWithPath: pack)).count
        let input = Pipe()
        let (writer, _, _) = try Tool.start(
            ["import", store, "-", "--lineage", "slow"], input: input)
        var words = [UInt64](repeating: 0, count: 1 << 20)
        for index in words.indices { words[index] = random.next() }
        try words.withUnsafeBytes { try input.fileHandleForWriting.write(contentsOf: Data($0)) }
        for _ in 0..<200 where try Data(contentsOf: URL(fileURLWithPath: pack)).count == size {
            usleep(20_000)
        }
        return (image, writer, input)
    }

    private func expectReads(_ store: String, _ image: Data) throws {
        let log = try Tool.run("log", store, "--json")
        #expect(log.status == 0, "\(log.error)")
        #expect(try log.objects.map { $0["lineage"] as? String } == ["web"])
        #expect(try Tool.run("export", store, "web", "-").output == image)
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func aReadOnlyMediumShowsWhatTheIndexKnows() throws {
        try withDisk("64m") { disk in
            let store = "\(disk)/store"
            let (image, writer, input) = try begin(store)
            // The same directory, mounted read-only: the writer is alive.
            let view = path("view")
            try FileManager.default.createDirectory(
                atPath: view, withIntermediateDirectories: true)
            guard system("mount", "--bind", disk, view),
                system("mount", "-o", "remount,ro,bind", view)
            else { return noteSkipped("skipped: no bind mounts here") }
            defer { _ = system("umount", "-l", view) }
            try expectReads("\(view)/store", image)
            kill(writer.processIdentifier, SIGKILL)
            writer.waitUntilExit()
            withExtendedLifetime(input) {}
            // And it was killed.
            try expectReads("\(view)/store", image)
            let refused = try Tool.run(
                "import", "\(view)/store", path("image"), "--lineage", "web")
            #expect(refused.status == 1)
            #expect(refused.error.contains("\(view)/store/lock"), "\(refused.error)")
            #expect(refused.error.contains("mount"))
            let new = try Tool.run("init", "\(view)/new")
            #expect(new.status == 1)
            #expect(new.error.contains("\(view)/new"), "\(new.error)")
            let export = try Tool.run("export", "\(view)/store", "web", "\(view)/out")
            #expect(export.status == 1 && export.error.contains("\(view)/out"), "\(export.error)")
        }
    }

    /// A snapshot after a crash, or a copy of the packs alone.
    @Test func aReadOnlyMediumWithoutAnIndexIsReadAllTheSame() throws {
        try withDisk("64m") { disk in
            let store = "\(disk)/store"
            let image = try makeStore(store)
            try FileManager.default.removeItem(atPath: "\(store)/index")
            guard system("mount", "-o", "remount,ro", disk) else {
                return noteSkipped("skipped: no read-only mounts here")
            }
            try expectReads(store, image)
            let prune = try Tool.run("prune", store, "--dry-run")
            #expect(prune.status == 0, "\(prune.error)")
        }
    }

    /// Commands that fail because the disk is full must not lock the others out.
    @Test func aFullDiskStaysReadable() throws {
        try withDisk("16m") { disk in
            let store = "\(disk)/store"
            let image = try makeStore(store)
            _ = system("dd", "if=/dev/zero", "of=\(disk)/ballast", "bs=4k")
            for command in [
                ["import", store, path("image"), "--lineage", "new"], ["forget", store, "web"],
                ["prune", store],
            ] {
                let (process, _, error) = try Tool.start(command)
                let text = String(
                    decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
                process.waitUntilExit()
                #expect(process.terminationStatus == 1, "\(command)")
                #expect(text.contains("no space is left"), "\(command): \(text)")
                try expectReads(store, image)
            }
            // An index that cannot be rebuilt there.
            try FileManager.default.removeItem(atPath: "\(store)/index")
            _ = system("dd", "if=/dev/zero", "of=\(disk)/more", "bs=4k")
            try expectReads(store, image)
            try FileManager.default.removeItem(atPath: "\(disk)/ballast")
            #expect(try Tool.run("forget", store, "web").status == 0)
            #expect(try Tool.run("prune", store).status == 0)
        }
    }

    private func makeStore(_ store: String) throws -> Data {
        var random = TestSeed.generator(662)
        #expect(try Tool.run("init", store).status == 0)
        let image = Images.make(pages: 300, &random)
        try image.write(to: URL(fileURLWithPath: path("image")))
        #expect(try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        return image
    }

    @Test func aFullDiskIsNamedWithoutPromises() throws {
        try withDisk("64k") { disk in
            try Data(count: 64 << 10).write(to: URL(fileURLWithPath: "\(disk)/ballast"))
            let result = try Tool.run("init", "\(disk)/store")
            #expect(result.status == 1)
            #expect(result.error.contains("no space is left"), "\(result.error)")
            #expect(result.error.contains("\(disk)/store"), "\(result.error)")
            #expect(!result.error.contains("safe"), "\(result.error)")
        }
    }

    @Test func whatIsStoredIsSaidThoughNobodyHears() throws {
        var random = TestSeed.generator(661)
        let store = path("store")
        #expect(try Tool.run("init", store).status == 0)
        try Images.make(pages: 20, &random).write(to: URL(fileURLWithPath: path("image")))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(Tool.path))
        process.arguments = ["import", store, path("image"), "--lineage", "web"]
        process.standardOutput = FileHandle(forWritingAtPath: "/dev/full")
        let error = Pipe()
        process.standardError = error
        try process.runWatched()
        let text = String(
            decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 4)
        #expect(try Tool.run("log", store, "--json").objects.count == 1)
        #expect(
            text.contains("1 checkpoint stored, but standard output cannot be written"), "\(text)")
    }

    @Test func somethingElseInAPacksPlaceIsNamed() throws {
        let store = path("store")
        #expect(try Tool.run("init", store).status == 0)
        try FileManager.default.removeItem(atPath: "\(store)/lock")
        try FileManager.default.createDirectory(
            atPath: "\(store)/lock", withIntermediateDirectories: true)
        try Data(count: 4096).write(to: URL(fileURLWithPath: path("image")))
        let result = try Tool.run("import", store, path("image"), "--lineage", "web")
        #expect(result.status == 1)
        #expect(result.error.contains("\(store)/lock"), "\(result.error)")
        #expect(result.error.contains("move it away"), "\(result.error)")
    }
}
