import Foundation
import Testing
import VarveTestSupport

/// What `import` accepts as memory, and what it reports of other files.
@Suite(.enabled(if: Tool.isBuilt)) struct ContainerTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    private func save(_ bytes: [UInt8], _ name: String) throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: path(name)))
        return path(name)
    }

    private func take(
        _ file: String, isPipe: Bool, _ lineage: String = "web", _ more: String...
    ) throws -> Tool.Result {
        let arguments = ["--lineage", lineage] + more
        guard isPipe else { return try Tool.run(["import", store, file] + arguments) }
        let source = Process()
        source.executableURL = URL(fileURLWithPath: "/bin/sh")
        // In odd pieces, the first ones smaller than the part that is examined.
        source.arguments = [
            "-c", "dd bs=7 count=13 status=none && cat", "sh",
        ]
        source.standardInput = FileHandle(forReadingAtPath: file)
        let pipe = Pipe()
        source.standardOutput = pipe
        source.standardError = FileHandle.nullDevice
        try source.runWatched()
        try pipe.fileHandleForWriting.close()
        let result = try Tool.run(["import", store, "-"] + arguments, input: pipe)
        source.waitUntilExit()
        return result
    }

    private func count() throws -> Int { try Tool.run("log", store, "--json").objects.count }

    // MARK: - Containers

    @Test(arguments: [false, true])
    func knownContainersAreRefusedByName(_ isPipe: Bool) throws {
        #expect(try Tool.run("init", store).status == 0)
        for (mark, offset, name) in [
            ("\u{7f}ELF", 0, "ELF"), ("QFI\u{fb}", 0, "qcow2"), ("KDUMP   ", 0, "kdump"),
            ("EMiL", 0, "LiME"), ("LibvirtQemudSave", 0, "libvirt"), ("QEVM", 0, "QEMU"),
            ("PAGEDU64", 0, "Windows"), ("ustar", 257, "tar"), ("KDMV", 0, "VMDK"),
            ("S1SUSPEND", 4086, "hibernation"),
        ] {
            var bytes = [UInt8](repeating: 5, count: 40_960)
            let raw = mark.unicodeScalars.map { UInt8($0.value) }
            bytes.replaceSubrange(offset..<offset + raw.count, with: raw)
            for length in [bytes.count, 40_001] {
                let file = try save(Array(bytes[..<length]), "file")
                let result = try take(file, isPipe: isPipe)
                #expect(result.status == 1 && result.output.isEmpty, "\(name)")
                for words in [name, "not raw memory", "--format raw"] {
                    #expect(result.error.contains(words), "\(result.error)")
                }
                #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
            }
            // It is memory if the user says so.
            let file = try save(bytes, "file")
            let before = try count()
            let result = try take(file, isPipe: isPipe, "raw", "--format", "raw")
            #expect(result.status == 0, "\(result.error)")
            #expect(try count() == before + 1)
            #expect(try Tool.run("export", store, "raw", "-").output == Data(bytes))
        }
    }

    @Test func ownExportsAndTheirArchivesAreRefused() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(850)
        let bytes = StreamMaker.guest(
            isPV: false, wrapper: .xl, epochCount: 0, pageCount: 60, &random
        ).bytes
        let stream = try save(bytes, "stream")
        #expect(try take(stream, isPipe: true).status == 0)
        #expect(try Tool.run("export", store, "web", path("core"), "--format", "elf").status == 0)
        let core = try take(path("core"), isPipe: false)
        #expect(core.status == 1 && core.error.contains("ELF"), "\(core.error)")
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = [
            "-c", "cd \"$0\" && gzip -k stream && tar cf archive.tar stream", directory.path.string,
        ]
        #expect(try process.runToEnd().status == 0)
        for (name, words) in [("stream.gz", "gzip -dc"), ("archive.tar", "unpack it")] {
            let result = try take(path(name), isPipe: false)
            #expect(result.status == 1 && result.error.contains(words), "\(result.error)")
        }
        #expect(try count() == 1)
        let pack = try take(store + "/packs/00000001.pack", isPipe: false)
        #expect(pack.status == 1 && pack.error.contains("pack of Varve"), "\(pack.error)")
    }

    @Test(arguments: [false, true])
    func memoryThatBeginsOddlyIsTaken(_ isPipe: Bool) throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(851)
        var boot = [UInt8](repeating: 0, count: 12_288)
        boot[510] = 0x55
        boot[511] = 0xaa
        let images: [[UInt8]] = [
            [UInt8](repeating: 0, count: 4096), [UInt8](repeating: 0xff, count: 8192), boot,
            some(4096, &random), some(409_600, &random),
        ]
        for (number, image) in images.enumerated() {
            let result = try take(try save(image, "image"), isPipe: isPipe, "g\(number)")
            #expect(result.status == 0, "\(result.error)")
            #expect(try Tool.run("export", store, "g\(number)", "-").output == Data(image))
        }
        for count in [1, 3, 47, 48, 4095, 4097] {
            let file = try save([UInt8](repeating: 7, count: count), "short")
            let result = try take(file, isPipe: isPipe, "short")
            #expect(result.status == 1 && result.error.contains("multiple"), "\(result.error)")
        }
    }

    @Test func whatHasNoEndIsRefused() throws {
        #expect(try Tool.run("init", store).status == 0)
        for file in ["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"] {
            let result = try take(file, isPipe: false)
            #expect(result.status == 1 && result.error.contains("character device"))
            let input = try #require(FileHandle(forReadingAtPath: file))
            let piped = try Tool.run("import", store, "-", "--lineage", "x", input: input)
            #expect(piped.status == 1 && piped.error.contains("character device"))
        }
        #expect(try count() == 0)
    }

    // MARK: - Streams

    @Test(arguments: [false, true])
    func whatFollowsAStreamIsSaid(_ isPipe: Bool) throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(852)
        let bytes = StreamMaker.guest(
            isPV: false, wrapper: .xl, epochCount: 0, pageCount: 600, &random
        ).bytes
        for (more, words, format) in [
            (bytes, "a second stream (xl) after it was not read", "xl"),
            ([0], "other bytes after it were not read", nil),
            ([UInt8](repeating: 9, count: 3 << 20), "other bytes after it were not read", nil),
        ] as [([UInt8], String, String?)] {
            let file = try save(bytes + more, "stream")
            let result = try take(file, isPipe: isPipe)
            #expect(result.status == 0, "\(result.error)")
            #expect(result.error.contains("the stream ends at offset \(bytes.count)"))
            #expect(result.error.contains(words), "\(result.error)")
            let json = try take(file, isPipe: isPipe, "web", "--json")
            let objects = try json.objects
            #expect(json.status == 0 && objects.count == 2)
            let stream = try #require(objects.last?["stream"] as? [String: Any])
            let trailer = try #require(stream["trailer"] as? [String: Any])
            #expect(trailer["offset"] as? Int == bytes.count)
            #expect(trailer["format"] as? String == format)
            #expect(json.error.contains(#"{"notice":{"code":"streamEnd""#), "\(json.error)")
        }
        // Nothing is reported if nothing follows.
        let plain = try take(try save(bytes, "stream"), isPipe: isPipe, "web", "--json")
        #expect(try plain.objects.count == 1 && plain.error.isEmpty, "\(plain.error)")
    }

    /// A sender that keeps its end open is not waited for.
    @Test func aSenderThatDoesNotCloseIsNotWaitedFor() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(853)
        let bytes = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 30, &random
        ).bytes
        let input = Pipe()
        let (process, _, error) = try Tool.start(
            ["import", store, "-", "--lineage", "web"], input: input)
        try input.fileHandleForWriting.write(contentsOf: Data(bytes))
        let text = String(decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0, "\(text)")
        #expect(text.contains("keeps standard input open"), "\(text)")
        #expect(try count() == 1)
        try input.fileHandleForWriting.close()
    }

    @Test func reservedFieldsAndOptionalRecordsAreSaidOnce() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(854)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 300, &random)
        var extra = StreamMaker()
        for _ in 0..<3 { extra.record(1 << 31 | 0x42, [1, 2, 3]) }
        var bytes = maker.bytes
        bytes[17] |= 8
        bytes[20] = 1
        // The reserved half of a page data record's header.
        let pages = try #require(
            maker.boundaries.first { bytes[$0...].starts(with: [1, 0, 0, 0]) && $0 > 40 })
        bytes[pages + 12] = 1
        bytes.insert(contentsOf: extra.bytes, at: maker.boundaries[2])
        let file = try save(bytes, "stream")
        let clean = try take(try save(maker.bytes, "clean"), isPipe: false)
        #expect(clean.status == 0 && !clean.error.contains("reserved"), "\(clean.error)")
        let result = try take(file, isPipe: false)
        #expect(result.status == 0, "\(result.error)")
        for words in [
            "3 reserved fields not zero", "the first in libxc image header at offset 0",
            "skipped 3 unknown optional records", "0x80000042 at offset 40",
        ] {
            #expect(result.error.components(separatedBy: words).count == 2, "\(result.error)")
        }
        let json = try take(file, isPipe: false, "web", "--json")
        let stream = try #require(try json.objects.last?["stream"] as? [String: Any])
        #expect(stream["reservedFieldsIgnored"] as? Int == 3)
        #expect(stream["recordsSkipped"] as? Int == 3)
        #expect(stream["trailer"] is NSNull)
        let log = try Tool.run("log", store, "--json").objects
        #expect(Set(log.compactMap { $0["root"] as? String }).count == 1)
    }

    // MARK: - Configurations

    @Test func aConfigurationIsReadBeforeItIsPutIntoAStream() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(855)
        let bytes = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 30, &random
        ).bytes
        #expect(try take(try save(bytes, "stream"), isPipe: false).status == 0)
        for (text, words) in [
            ("hello world\n", "line 1"), ("", "empty"), ("{\"c_info\":", "JSON"),
            ("[{\"domid\":3}]", "c_info"), ("name = \"a\"\n\nmemory: 5\n", "line 3"),
        ] {
            let config = try save(Array(text.utf8), "config")
            let result = try Tool.run(
                "export", store, "web", path("out"), "--format", "xl", "--config", config)
            #expect(result.status == 1 && result.error.contains(words), "\(result.error)")
            #expect(result.error.contains("not a guest's configuration"), "\(result.error)")
            #expect(result.error.split(separator: "\n").count == 1)
        }
        for config in [path("stream"), "/dev/zero", try #require(Tool.path), path("none"), store] {
            let result = try Tool.run(
                "export", store, "web", path("out"), "--format", "xl", "--config", config)
            #expect(result.status == 1 && result.error.hasPrefix("varve: "), "\(result.error)")
        }
        #expect(!FileManager.default.fileExists(atPath: path("out")))
        let config = try save(
            Array("name = 'web' # a guest\nvif = [ 'bridge=a', ]\n".utf8), "config")
        let result = try Tool.run(
            "export", store, "web", "-", "--format", "xl", "--config", config)
        #expect(result.status == 0, "\(result.error)")
        let written = NaiveStream(Array(result.output)).configuration
        #expect(written == Array("name = 'web' # a guest\nvif = [ 'bridge=a', ]\n\0".utf8))
    }
}
