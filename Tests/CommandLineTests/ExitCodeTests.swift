import Foundation
import Testing
import VarveTestSupport

/// Exit codes and messages report what was done.
@Suite(.enabled(if: Tool.isBuilt)) struct ExitCodeTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    /// Runs a shell command line, in which `$varve` is the tool, `$store` the repository and
    /// `$image` an image.
    private func shell(_ line: String) throws -> Tool.Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", line]
        process.environment = [
            "varve": try #require(Tool.path), "store": store, "image": path("image"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        return try Tool.finish(process)
    }

    private func makeImage(_ byte: UInt8 = 7) throws {
        try Data(repeating: byte, count: 40_960).write(to: URL(fileURLWithPath: path("image")))
    }

    /// A repository with this many checkpoints of lineage `web`.
    private func makeStore(_ count: Int) throws {
        #expect(try Tool.run("init", store).status == 0)
        for number in 0..<count {
            try makeImage(UInt8(number + 1))
            let result = try Tool.run("import", store, path("image"), "--lineage", "web")
            #expect(result.status == 0, "\(result.error)")
        }
    }

    private func checkpointCount() throws -> Int {
        try Tool.run("log", store, "--json").objects.count
    }

    // MARK: - Usage

    @Test func noCommandIsWrongUsage() throws {
        for arguments in [[], ["xen"]] {
            let (process, output, error) = try Tool.start(arguments)
            let text = String(
                decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            #expect(process.terminationStatus == 2, "\(arguments)")
            #expect(text.contains("name a command"), "\(text)")
            #expect(output.fileHandleForReading.readDataToEndOfFile().isEmpty)
        }
        for words in ["help", "--help", "xen --help", "help xen", "--version"] {
            let arguments = words.split(separator: " ").map(String.init)
            let (process, output, _) = try Tool.start(arguments)
            #expect(!output.fileHandleForReading.readDataToEndOfFile().isEmpty)
            process.waitUntilExit()
            #expect(process.terminationStatus == 0, "\(arguments)")
        }
        #expect(try shell("\"$varve\" --help >/dev/full").status == 1)
    }

    @Test func everyCommandWorksWithoutProc() throws {
        let probe = try shell("unshare -m sh -c 'mount -t tmpfs none /proc'")
        guard probe.status == 0 else {
            noteSkipped("skipped, commands without /proc: a mount name space cannot be made here")
            return
        }
        try makeStore(2)
        func run(_ words: String) throws -> Tool.Result {
            try shell("unshare -m sh -c 'mount -t tmpfs none /proc; \"$varve\" \(words)'")
        }
        let log = try run("log \"$store\" --json")
        #expect(log.status == 0, "\(log.error)")
        #expect(try log.objects.count == 2)
        #expect(try run("import \"$store\" \"$image\" --lineage web").status == 0)
        #expect(try run("export \"$store\" web \"$store.out\"").status == 0)
        #expect(
            try Data(contentsOf: URL(fileURLWithPath: store + ".out"))
                == Data(contentsOf: URL(fileURLWithPath: path("image"))))
        #expect(try run("show \"$store\" nobody").status == 1)
        #expect(try run("log").status == 2)
        #expect(try run("forget \"$store\" web").status == 0)
        #expect(try run("prune \"$store\"").status == 0)
        #expect(try run("verify \"$store\"").status == 0)
        #expect(try run("init \"$store.new\"").status == 0)
    }

    @Test func anArgumentThatIsNotTextIsRefused() throws {
        let result = try shell("\"$varve\" init \"$store$(printf '\\377')\"")
        #expect(result.status == 2)
        #expect(result.error.contains("is not UTF-8"), "\(result.error)")
        let names = try FileManager.default.contentsOfDirectory(atPath: directory.path.string)
        #expect(names.isEmpty, "\(names)")
    }

    /// A script's unset variable must not mean the current directory.
    @Test func anEmptyNameIsNoStore() throws {
        try makeStore(1)
        let forget = try shell("cd \"$store\" && \"$varve\" forget \"\" web")
        #expect(forget.status == 2, "\(forget.error)")
        #expect(try checkpointCount() == 1)
    }

    // MARK: - Done, but not printed

    /// Standard output that is closed, full, or a pipe without a reader.
    private static let brokenOutputs = [">&-", ">/dev/full", "| true"]

    /// Runs a command with a broken standard output.
    private func broken(_ command: String, _ output: String) throws -> Tool.Result {
        guard output.hasPrefix("|") else { return try shell("\"$varve\" \(command) \(output)") }
        // The reader has exited before the command prints.
        return try shell(
            "mkfifo \"$store.pipe\" 2>/dev/null; exec 3<>\"$store.pipe\" 4>\"$store.pipe\" 3>&-; "
                + "\"$varve\" \(command) >&4; exit $?")
    }

    private func expectDone(
        _ result: Tool.Result, _ words: String, location: SourceLocation = #_sourceLocation
    ) {
        #expect(result.status == 4, "\(result.error)", sourceLocation: location)
        #expect(result.error.contains(words), "\(result.error)", sourceLocation: location)
        #expect(
            result.error.contains("standard output cannot be written"), "\(result.error)",
            sourceLocation: location)
    }

    @Test(arguments: brokenOutputs) func whatIsDoneIsNotCalledFailed(_ output: String) throws {
        expectDone(try broken("init \"$store\"", output), "created repository")
        try makeImage()
        for _ in 0..<3 {
            expectDone(
                try broken("import \"$store\" \"$image\" --lineage web", output),
                "1 checkpoint stored")
        }
        #expect(try checkpointCount() == 3)
        expectDone(try broken("forget \"$store\" web~2", output), "1 checkpoint forgotten")
        expectDone(try broken("forget \"$store\" --keep-last 1", output), "1 checkpoint forgotten")
        #expect(try checkpointCount() == 1)
        expectDone(try broken("prune \"$store\"", output), "freed")
        expectDone(try broken("verify \"$store\"", output), "nothing is damaged")
        expectDone(try broken("verify \"$store\" --json", output), "nothing is damaged")
        expectDone(try broken("repair \"$store\"", output), "nothing is damaged")
        // A command that only prints has failed.
        for command in ["log", "stats", "forget --dry-run --keep-last 1", "prune --dry-run"] {
            let words = command.split(separator: " ", maxSplits: 1).map(String.init)
            let rest = words.count > 1 ? words[1] : ""
            let result = try broken("\(words[0]) \"$store\" \(rest)", output)
            // After its reader has exited, the command ends as if by SIGPIPE, without a message.
            let status: Int32 = output.hasPrefix("|") ? 141 : 1
            #expect(result.status == status, "\(command): \(result.error)")
            #expect(result.error.isEmpty == output.hasPrefix("|"), "\(command)")
        }
        #expect(try broken("export \"$store\" web -", output).status == 1)
        let object = try broken("import \"$store\" \"$image\" --lineage web --json", output)
        #expect(object.error.contains(#"{"error":{"code":"unreported""#), "\(object.error)")
    }

    @Test func allOfAStreamIsStoredThoughItsLinesCannotBePrinted() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(830)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxl, epochCount: 3, pageCount: 200, &random)
        try Data(maker.bytes).write(to: URL(fileURLWithPath: path("image")))
        expectDone(
            try broken("import \"$store\" \"$image\" --lineage web", ">/dev/full"),
            "3 checkpoints stored")
        #expect(try checkpointCount() == 3)
    }

    @Test func damageIsToldThoughNothingCanBePrinted() throws {
        try makeStore(2)
        let pack = path("store/packs/00000001.pack")
        var bytes = try Data(contentsOf: URL(fileURLWithPath: pack))
        bytes[bytes.count / 3] ^= 1
        try bytes.write(to: URL(fileURLWithPath: pack))
        for output in ExitCodeTests.brokenOutputs {
            let verify = try broken("verify \"$store\"", output)
            #expect(verify.status == 3 && verify.error.contains("damaged"), "\(verify.error)")
            let repair = try broken("repair \"$store\"", output)
            #expect(repair.status == 3 && repair.error.contains("damage in"), "\(repair.error)")
        }
        let repaired = try broken("repair \"$store\" --execute", ">/dev/full")
        expectDone(repaired, "is repaired")
        #expect(try Tool.run("verify", store).status == 0)
    }

    /// Only a full verify knows which checkpoints are damaged.
    @Test(arguments: ["--quick", "--sample 100%", ""])
    func whatWasNotLookedForIsNotCounted(_ depth: String) throws {
        var random = TestSeed.generator(931)
        let image = Data((0..<40_960).map { _ in UInt8.random(in: 0...255, using: &random) })
        try image.write(to: URL(fileURLWithPath: path("image")))
        #expect(try Tool.run("init", store).status == 0)
        #expect(
            try Tool.run("import", store, path("image"), "--lineage", "web").status == 0)
        let pack = path("store/packs/00000001.pack")
        var bytes = try Data(contentsOf: URL(fileURLWithPath: pack))
        // Within a page, which is incompressible.
        bytes[10_000] ^= 1
        try bytes.write(to: URL(fileURLWithPath: pack))
        let result = try shell("\"$varve\" verify \"$store\" \(depth)")
        #expect(result.status == 3)
        let isWhole = depth.isEmpty
        #expect(
            result.error.contains("1 checkpoint that cannot be restored") == isWhole
                && result.error.contains("tells which checkpoints") == !isWhole, "\(result.error)")
    }

    // MARK: - Ended by signals

    @Test(arguments: [
        (Int32(SIGINT), Int32(130)), (Int32(SIGTERM), Int32(143)), (Int32(SIGHUP), Int32(129)),
    ])
    func anImportThatIsEndedSaysBySignal(_ signal: Int32, _ status: Int32) throws {
        try makeStore(1)
        let input = Pipe()
        // Of a new lineage, which accepts any size.
        let (process, _, error) = try Tool.start(
            ["import", store, "-", "--lineage", "other", "--json"], input: input)
        try input.fileHandleForWriting.write(contentsOf: Data(repeating: 3, count: 1 << 20))
        kill(process.processIdentifier, signal)
        let text = String(decoding: error.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationReason == .exit && process.terminationStatus == status)
        #expect(text.contains(#"{"error":{"code":"#) && text.contains("interrupted"), "\(text)")
        #expect(try checkpointCount() == 1)
    }

    /// The signal arrives before the command starts, so the first check finds it.
    @Test(arguments: [("INT", Int32(130)), ("TERM", Int32(143)), ("HUP", Int32(129))])
    func anImportOfAHugeHoleEndsBySignal(_ signal: String, _ status: Int32) throws {
        try makeStore(1)
        guard try shell("env --block-signal=TERM true").status == 0 else {
            noteSkipped("skipped, signals that wait: env cannot block signals here")
            return
        }
        // The second time with a parent.
        let made = try shell(
            """
            truncate -s 64G "$image" && truncate -s 1G "$image.small" &&
            "$varve" import "$store" "$image.small" --lineage small
            """)
        #expect(made.status == 0, "\(made.error)")
        let sums = #"cd "$store" && sha256sum packs/*"#
        let packs = try shell(sums).text
        for (image, lineage) in [("$image", "other"), ("$image.small", "small")] {
            let result = try shell(
                """
                env --block-signal=\(signal) sh -c 'kill -\(signal) $$
                exec "$varve" import "$store" "\(image)" --lineage \(lineage)'
                """)
            #expect(result.status == status && result.error.contains("interrupted"))
            #expect(try shell(sums).text == packs)
        }
        #expect(try checkpointCount() == 2)
        #expect(try Tool.run("verify", store).status == 0)
        let next = try Tool.run("import", store, path("image.small"), "--lineage", "small")
        #expect(next.status == 0, "\(next.error)")
    }

    // MARK: - JSON

    @Test func aStreamThatIsCutLeavesAnObject() throws {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(831)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxl, epochCount: 3, pageCount: 200, &random)
        try Data(maker.bytes.dropLast(100)).write(to: URL(fileURLWithPath: path("image")))
        let cut = try Tool.run("import", store, path("image"), "--lineage", "web", "--json")
        #expect(cut.status == 0, "\(cut.error)")
        let objects = try cut.objects
        #expect(objects.count == 3)
        let stream = try #require(objects.last?["stream"] as? [String: Any])
        #expect(stream["epochs"] as? Int == 2 && stream["checkpointsStored"] as? Int == 2)
        #expect(stream["partialEpochDropped"] as? Bool == true)
        #expect((stream["error"] as? String)?.isEmpty == false)
        for line in cut.error.split(separator: "\n") {
            _ = try JSONSerialization.jsonObject(with: Data(line.utf8))
        }
        // No checkpoint was whole.
        let plain = StreamMaker.guest(
            isPV: false, wrapper: .xl, epochCount: 0, pageCount: 200, &random)
        try Data(plain.bytes.dropLast(9)).write(to: URL(fileURLWithPath: path("image")))
        let none = try Tool.run("import", store, path("image"), "--lineage", "other", "--json")
        #expect(none.status == 1 && none.output.isEmpty)
        let object = try JSONSerialization.jsonObject(with: Data(none.error.utf8)) as? [String: Any]
        let error = try #require(object?["error"] as? [String: Any])
        #expect(error["code"] as? String == "failed")
        #expect(error["checkpointsStored"] as? Int == 0)
        #expect((error["message"] as? String)?.contains("truncated") == true)
    }
}
