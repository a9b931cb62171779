import Foundation
import Testing
import VarveTestSupport

/// Streams of Xen through the command line, as toolstacks use it.
@Suite(.enabled(if: Tool.isBuilt)) struct XenCommandTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func save(_ bytes: [UInt8], _ name: String) throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: path(name)))
        return path(name)
    }

    /// A new store.
    private func store() throws -> String {
        let store = path("store-\(UUID().uuidString)")
        #expect(try Tool.run("init", store).status == 0)
        return store
    }

    private func guest(
        _ salt: UInt64, isPV: Bool = false, _ wrapper: StreamMaker.Wrapper = .xl, epochs: Int = 0
    ) -> StreamMaker {
        var random = TestSeed.generator(800 + salt)
        return StreamMaker.guest(
            isPV: isPV, wrapper: wrapper, epochCount: epochs, pageCount: 200, &random)
    }

    private func expectFailure(
        _ result: Tool.Result, status: Int32 = 1, saying: String, _ location: SourceLocation
    ) {
        #expect(result.status == status, "\(result.error)", sourceLocation: location)
        #expect(result.error.contains(saying), "\(result.error)", sourceLocation: location)
    }

    // MARK: - Hosts without Xen

    /// True on a host without Xen; otherwise prints that these tests cannot be done.
    private static let isWithoutXen: Bool = {
        let devices = ["/dev/xen/privcmd", "/proc/xen/privcmd"]
        if !devices.contains(where: { FileManager.default.fileExists(atPath: $0) }) { return true }
        noteSkipped("skipped, a host without Xen: this one has it")
        return false
    }()

    @Test func theToolNeedsNoLibraryOfXen() throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(Tool.path))
        process.environment = ["LD_TRACE_LOADED_OBJECTS": "1"]
        let libraries = try Tool.finish(process).text
        #expect(libraries.contains("liblmdb"), "\(libraries)")
        #expect(!libraries.contains("libxen"), "\(libraries)")
    }

    @Test(.enabled(if: isWithoutXen)) func withoutXenEachCommandSaysSo() throws {
        let store = try store()
        let file = try save(guest(3).bytes, "stream")
        #expect(try Tool.run("import", store, file, "--lineage", "web").status == 0)
        let sentence =
            "varve: no Xen runs here, or this is not its control domain: there is neither "
            + "/dev/xen/privcmd nor /proc/xen/privcmd; run it in dom0\n"
        for command in [
            ["list"], ["doctor"], ["doctor", "web"], ["checkpoint", "web", store],
            ["restore", store, "web"], ["revert", "web", store, "web"], ["monitor", "web"],
        ] {
            let result = try Tool.run(["xen"] + command)
            #expect(result.status == 1, "\(command)")
            #expect(result.error == sentence, "\(command)")
            #expect(result.output.isEmpty, "\(command)")
        }
        #expect(try Tool.run("verify", store).status == 0)
    }

    // MARK: - Import and export

    @Test(arguments: StreamMaker.Wrapper.allCases, [true, false])
    func aStreamGoesInAndComesOutEqual(_ wrapper: StreamMaker.Wrapper, _ isPV: Bool) throws {
        let store = try store()
        let bytes = guest(1, isPV: isPV, wrapper).bytes
        let file = try save(bytes, "stream")
        let result = try Tool.run("import", store, file, "--lineage", "web", "--json")
        #expect(result.status == 0, "\(result.error)")
        #expect(try result.objects[0]["lineage"] as? String == "web")
        let configuration = try save(Array("{\"c_info\":{}}".utf8), "config")
        let output = try Tool.run(
            "export", store, "web", "-", "--format", "xl", "--config", configuration)
        #expect(output.status == 0, "\(output.error)")
        let (source, again) = (NaiveStream(bytes), NaiveStream(Array(output.output)))
        let differences = again.differences(0, from: source, 0).filter { !$0.contains("xenopsd.") }
        #expect(differences.isEmpty, "\(differences.prefix(3))")
        #expect(again.configuration == Array("{\"c_info\":{}}\0".utf8))
        // A file works like a pipe, and is not overwritten.
        #expect(
            try Tool.run(
                "export", store, "web", path("out"), "--format", "xl", "--config", configuration
            ).status == 0)
        #expect(try Data(contentsOf: URL(fileURLWithPath: path("out"))) == output.output)
        expectFailure(
            try Tool.run("export", store, "web", path("out"), "--format", "libxc"),
            saying: "--force", #_sourceLocation)
        let elf = try Tool.run("export", store, "web", "-", "--format", "elf")
        #expect(elf.output.starts(with: [0x7f, 0x45, 0x4c, 0x46]))
        let names = try FileManager.default.contentsOfDirectory(atPath: directory.path.string)
        #expect(!names.contains { $0.hasSuffix(".part") })
    }

    @Test func showSaysWhatTheGuestWas() throws {
        let store = try store()
        let file = try save(guest(2, isPV: true).bytes, "stream")
        #expect(try Tool.run("import", store, file, "--lineage", "web").status == 0)
        let object = try Tool.run("show", store, "web", "--json").objects[0]
        let guest = try #require(object["guest"] as? [String: Any])
        #expect(guest["type"] as? String == "PV")
        #expect(guest["vcpus"] as? Int == 2)
        #expect(guest["xenVersion"] as? String == "4.17")
        #expect(guest["name"] as? String == "web")
        let text = try Tool.run("show", store, "web").text
        #expect(text.contains("X86_PV_VCPU_BASIC, 5176 bytes") && text.contains("4.17"))
    }

    @Test func aPipeIsTakenIn() throws {
        let store = try store()
        let bytes = guest(3).bytes
        let input = try FileHandle(
            forReadingFrom: URL(fileURLWithPath: try save(bytes, "stream")))
        let result = try Tool.run("import", store, "-", "--lineage", "web", input: input)
        #expect(result.status == 0, "\(result.error)")
        // A second import of the same stream has the same memory.
        #expect(try Tool.run("import", store, path("stream"), "--lineage", "web").status == 0)
        let log = try Tool.run("log", store, "--json").objects
        #expect(log[0]["root"] as? String == log[1]["root"] as? String)
    }

    @Test func whatCannotBeIsOneSentence() throws {
        let store = try store()
        let plain = guest(4)
        let cut = try save(Array(plain.bytes.dropLast(9)), "cut")
        expectFailure(
            try Tool.run("import", store, cut, "--lineage", "web"), saying: "truncated",
            #_sourceLocation)
        var legacy = plain.bytes
        legacy[36] = 1
        expectFailure(
            try Tool.run("import", store, try save(legacy, "legacy"), "--lineage", "web"),
            saying: "convert-legacy-stream", #_sourceLocation)
        expectFailure(
            try Tool.run("import", store, cut, "--lineage", "web", "--format", "libxc"),
            saying: "convert-legacy-stream", #_sourceLocation)
        #expect(try Tool.run("log", store).text.split(separator: "\n").count == 1)
        let raw = try save([UInt8](repeating: 5, count: 8192), "raw")
        #expect(try Tool.run("import", store, raw, "--lineage", "raw").status == 0)
        for format in ["xl", "libxc", "elf"] {
            expectFailure(
                try Tool.run("export", store, "raw", path("none"), "--format", format),
                saying: "no state of a Xen guest", #_sourceLocation)
        }
        let bare = try save(guest(5, .libxc).bytes, "bare")
        #expect(try Tool.run("import", store, bare, "--lineage", "bare").status == 0)
        expectFailure(
            try Tool.run("export", store, "bare", path("none"), "--format", "xl"),
            saying: "--config", #_sourceLocation)
        expectFailure(
            try Tool.run("export", store, "bare", path("none"), "--config", raw), status: 2,
            saying: "--format xl", #_sourceLocation)
        #expect(!FileManager.default.fileExists(atPath: path("none")))
    }

    @Test func aCheckpointedStreamThatIsCutIsSaidToBe() throws {
        let store = try store()
        let maker = guest(6, .libxl, epochs: 3)
        let whole = try Tool.run(
            "import", store, try save(maker.bytes, "whole"), "--lineage", "whole", "--json")
        #expect(whole.status == 0 && whole.error.contains("3 whole epochs"))
        // Three checkpoints, with the contents of the stream.
        #expect(try whole.objects.count == 4)
        let part = try save(Array(maker.bytes.dropLast(100)), "part")
        let result = try Tool.run("import", store, part, "--lineage", "part")
        #expect(result.status == 0)
        #expect(result.error.contains("2 whole epochs were imported, and the part after them"))
    }

    // MARK: - As the receiver of xl

    /// A receiver as xl sees it.
    private final class Receiver {
        let process: Process
        private let input: Pipe
        private let output: Pipe
        private let error: Pipe

        init(_ arguments: [String]) throws {
            input = Pipe()
            (process, output, error) = try Tool.start(["receive"] + arguments, input: input)
        }

        func send(_ bytes: some Sequence<UInt8>) throws {
            try input.fileHandleForWriting.write(contentsOf: Data(bytes))
        }

        func endInput() throws { try input.fileHandleForWriting.close() }

        func expect(_ text: String, withNUL: Bool = true) throws {
            let wanted = Array(text.utf8) + (withNUL ? [0] : [])
            var got: [UInt8] = []
            while got.count < wanted.count {
                let piece = try output.fileHandleForReading.read(
                    upToCount: wanted.count - got.count)
                guard let piece, !piece.isEmpty else { break }
                got += piece
            }
            #expect(got == wanted, "\(String(decoding: got, as: UTF8.self))")
        }

        func byte() throws -> UInt8? {
            try output.fileHandleForReading.read(upToCount: 1)?.first
        }

        /// Waits; returns the exit status and the output.
        func end() throws -> (Int32, String) {
            let text = error.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            return (process.terminationStatus, String(decoding: text, as: UTF8.self))
        }
    }

    private static let banner = "xl migration receiver ready, send binary domain data.\n"
    private static let permission = "domain is yours, you are cleared to unpause"

    private func count(_ store: String, _ lineage: String) throws -> Int {
        try Tool.run("log", store, "--json").objects.filter {
            $0["lineage"] as? String == lineage
        }.count
    }

    /// Waits, 30 seconds at most, until the lineage has this many checkpoints.
    private func wait(for wanted: Int, in store: String) throws {
        let end = Date(timeIntervalSinceNow: 30)
        while try count(store, "web") < wanted, Date() < end { usleep(10_000) }
        #expect(try count(store, "web") == wanted)
    }

    /// Each epoch is published as soon as it ends, while the stream continues.
    @Test func epochsArePublishedWhileTheStreamGoesOn() throws {
        let store = try store()
        let maker = guest(10, epochs: 4)
        let receiver = try Receiver([store, "--lineage", "web"])
        try receiver.expect(XenCommandTests.banner, withNUL: false)
        // CHECKPOINT_END is the last record of an epoch.
        let ends = maker.boundaries.filter { offset in
            maker.bytes[offset...].starts(with: [4, 0, 0, 0, 0, 0, 0, 0])
        }.map { $0 + 8 }
        #expect(ends.count == 4)
        var start = 0
        for (index, end) in ends.enumerated() {
            try receiver.send(maker.bytes[start..<end])
            start = end
            try wait(for: index + 1, in: store)
        }
        // A fifth epoch begins with pages, and is truncated.
        let pages = try #require(
            zip(maker.boundaries, maker.boundaries.dropFirst()).first { start, end in
                maker.bytes[start...].starts(with: [1, 0, 0, 0]) && end - start > 4096
            })
        try receiver.send(maker.bytes[pages.0..<pages.1].dropLast(5))
        try receiver.endInput()
        let (status, text) = try receiver.end()
        #expect(status == 0, "\(text)")
        #expect(text.contains("4 whole epochs"))
        let newest = NaiveStream(
            Array(try Tool.run("export", store, "web", "-", "--format", "xl").output))
        #expect(newest.differences(0, from: NaiveStream(maker.bytes), 3).isEmpty)
    }

    @Test(arguments: [SIGINT, SIGTERM, SIGKILL])
    func aReceiverThatIsEndedKeepsWholeEpochs(_ signal: Int32) throws {
        let store = try store()
        let maker = guest(11, epochs: 3)
        let receiver = try Receiver([store, "--lineage", "web"])
        try receiver.expect(XenCommandTests.banner, withNUL: false)
        let ends = maker.boundaries.filter { offset in
            maker.bytes[offset...].starts(with: [4, 0, 0, 0, 0, 0, 0, 0])
        }.map { $0 + 8 }
        try receiver.send(maker.bytes[..<(ends[1] + 500)])
        try wait(for: 2, in: store)
        kill(receiver.process.processIdentifier, signal)
        let (status, text) = try receiver.end()
        if signal != SIGKILL {
            #expect(status == 0 && text.contains("ended by request after 2 checkpoints"), "\(text)")
        }
        #expect(try count(store, "web") == 2)
        #expect(try Tool.run("verify", store).status == 0)
    }

    /// The guest is stored, and its sender is told to resume it, or to destroy it.
    @Test(arguments: [false, true])
    func aMigrationIsOneCheckpoint(_ isEnding: Bool) throws {
        let store = try store()
        let maker = guest(12)
        let receiver = try Receiver([store, "--lineage", "web"] + (isEnding ? ["--end"] : []))
        try receiver.expect(XenCommandTests.banner, withNUL: false)
        try receiver.send(maker.bytes)
        try receiver.expect("domain received, ready to unpause")
        // The checkpoint is durable before the sender gives up its guest.
        #expect(try count(store, "web") == 1)
        try receiver.send(Array(XenCommandTests.permission.utf8) + [0])
        try receiver.expect("my copy unpause results are as follows")
        #expect(try receiver.byte() == (isEnding ? 0 : 1))
        if !isEnding { try receiver.expect(XenCommandTests.permission) }
        let (status, text) = try receiver.end()
        #expect(status == 0, "\(text)")
        let again = NaiveStream(
            Array(try Tool.run("export", store, "web", "-", "--format", "xl").output))
        #expect(again.differences(0, from: NaiveStream(maker.bytes), 0).isEmpty)
    }

    @Test func withoutAStoreNoGuestIsAskedFor() throws {
        let result = try Tool.run("receive", path("none"), "--lineage", "web")
        #expect(result.status == 1 && result.output.isEmpty && !result.error.isEmpty)
    }
}
