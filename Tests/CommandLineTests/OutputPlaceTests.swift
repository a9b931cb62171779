import Foundation
import Testing
import VarveTestSupport

/// `export` writes to the file that its path names, and to no other.
@Suite(.enabled(if: Tool.isBuilt)) struct OutputPlaceTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    /// Runs a shell command line in the test's directory, in which `$varve` is the tool.
    private func shell(_ line: String) throws -> Tool.Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", line]
        process.currentDirectoryURL = URL(fileURLWithPath: directory.path.string)
        process.environment = [
            "varve": try #require(Tool.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        return try Tool.finish(process)
    }

    private func export(_ words: String) throws -> Tool.Result {
        try shell("\"$varve\" export store web \(words)")
    }

    private func load(_ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: path(name)))
    }

    private func save(_ text: String, _ name: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: path(name)))
    }

    private func kind(_ name: String) -> mode_t {
        var status = stat()
        return lstat(name.hasPrefix("/") ? name : path(name), &status) == 0
            ? status.st_mode & S_IFMT : 0
    }

    private static let formats = ["raw", "xl", "libxc", "elf"]

    /// A store with a Xen guest, and its export in each format.
    private func makeStore() throws -> [String: Data] {
        #expect(try Tool.run("init", store).status == 0)
        var random = TestSeed.generator(860)
        var maker = StreamMaker()
        maker.xlHeader(configuration: Array("{\"c_info\":{\"name\":\"web\"}}\0".utf8))
        maker.libxlHeader()
        maker.record(1)
        maker.libxcHeaders(isPV: false)
        maker.record(0x10)
        // A hole, and pages of zeros.
        let frames = Array(0..<60) + Array(70..<120)
        maker.pages(
            frames.map { frame in
                let page = frame % 5 == 0 ? [UInt8](repeating: 0, count: 4096) : some(4096, &random)
                return (UInt64(frame), page)
            })
        maker.hvmTail(&random)
        maker.record(0)
        maker.record(0)
        try Data(maker.bytes).write(to: URL(fileURLWithPath: path("stream")))
        #expect(try Tool.run("import", store, path("stream"), "--lineage", "web").status == 0)
        var result: [String: Data] = [:]
        for format in OutputPlaceTests.formats {
            let export = try export("- --format \(format)")
            #expect(export.status == 0 && !export.output.isEmpty, "\(export.error)")
            result[format] = export.output
        }
        return result
    }

    private var names: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: directory.path.string).sorted()
        }
    }

    // MARK: - Targets other than files

    @Test(arguments: ["", " --force"])
    func descriptorsAreWrittenToAsTheyAre(_ force: String) throws {
        let expected = try makeStore()
        try #require(symlink("/dev/stdout", path("link")) == 0)
        let before = kind("/dev/stdout")
        for format in OutputPlaceTests.formats {
            for place in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "/dev/fd/3 3>&1"] {
                let result = try export("\(place) --format \(format)\(force)")
                #expect(result.status == 0, "\(place): \(result.error)")
                #expect(result.output == expected[format], "\(place), \(format)")
            }
            // A file that the shell opened is not replaced: it stays the same file.
            try save("before", "file")
            var (old, new) = (stat(), stat())
            #expect(stat(path("file"), &old) == 0)
            let appended = try export("/dev/stdout --format \(format)\(force) >>file")
            #expect(appended.status == 0, "\(appended.error)")
            #expect(stat(path("file"), &new) == 0 && old.st_ino == new.st_ino)
            #expect(try load("file") == Data("before".utf8) + (expected[format] ?? Data()))
        }
        #expect(kind("/dev/stdout") == before && kind("link") == S_IFLNK)
        for place in ["/dev/stdout >&-", "/dev/fd/9", "/dev/stdin </dev/null", "- >&-"] {
            let result = try export("\(place)\(force)")
            #expect(result.status == 1 && result.error.hasPrefix("varve: "), "\(result.error)")
        }
        #expect(try names == ["file", "link", "store", "stream"])
    }

    /// A file of the store is not written, by whatever path it is reached.
    @Test func filesOfTheStoreAreLeftAlone() throws {
        _ = try makeStore()
        let made = try shell(
            """
            ln store/packs/00000001.pack hard && ln -s store/packs/00000001.pack soft && \
            mkdir store/damaged && echo kept >store/damaged/kept
            """)
        #expect(made.status == 0, "\(made.error)")
        func state() throws -> String {
            try shell("find store hard -type f ! -name '*.mdb' -exec cksum {} + | sort").text
        }
        let before = try state()
        let pack = "store/packs/00000001.pack"
        for format in OutputPlaceTests.formats {
            for place in [
                "- 1<>\(pack)", "- >>\(pack)", "- 1<>hard", "- 1<>store/lock",
                "- 1<>store/repository", "- 1<>store/head", "- 1<>store/index/data.mdb",
                "- 1<>store/damaged/kept",
                "/dev/stdout 1<>\(pack)", "/dev/fd/3 3<>\(pack)", "/dev/fd/3 --force 3<>soft",
                "hard --force", "soft --force", "\(pack) --force",
            ] {
                let result = try export("\(place) --format \(format)")
                #expect(result.status == 1, "\(place), \(format): \(result.error)")
                #expect(
                    result.error.contains("of the repository itself")
                        || result.error.contains("in the repository itself"),
                    "\(place): \(result.error)")
                #expect(try state() == before, "\(place), \(format)")
            }
        }
        // The output of commands is not written to it either.
        for line in [
            "log store 1<>\(pack)", "verify store 1<>\(pack)", "stats store 1<>hard",
            "import store stream --lineage web 1<>\(pack)", "repair store 1<>\(pack)",
            "log store 2>>store/repository",
        ] {
            let result = try shell("\"$varve\" \(line)")
            #expect(result.status == 1, "\(line): \(result.error)")
            if !line.contains("2>") {
                #expect(try state() == before, "\(line)")
                #expect(result.error.contains("standard output is a file of"), "\(result.error)")
            }
        }
    }

    @Test(arguments: ["", " --force"])
    func pipesAndDevicesAreWrittenToAsTheyAre(_ force: String) throws {
        let expected = try makeStore()
        try #require(mkfifo(path("pipe"), 0o600) == 0)
        try #require(symlink("pipe", path("link")) == 0)
        for format in OutputPlaceTests.formats {
            for place in ["pipe", "link"] {
                let result = try shell(
                    "cat pipe & \"$varve\" export store web \(place) --format \(format)\(force) "
                        + "&& wait")
                #expect(result.status == 0, "\(result.error)")
                #expect(result.output == expected[format], "\(place), \(format)")
            }
            #expect(kind("pipe") == S_IFIFO && kind("link") == S_IFLNK)
            #expect(try export("/dev/null --format \(format)\(force)").status == 0)
            let full = try export("/dev/full --format \(format)\(force)")
            #expect(full.status == 1 && full.error.contains("space"), "\(full.error)")
        }
        #expect(kind("/dev/null") == S_IFCHR && kind("/dev/full") == S_IFCHR)
        #expect(try names == ["link", "pipe", "store", "stream"])
    }

    @Test func blockDevicesAreWrittenToAsTheyAre() throws {
        let expected = try makeStore()
        try Data(repeating: 9, count: 4 << 20).write(to: URL(fileURLWithPath: path("disk")))
        try Data(repeating: 9, count: 8192).write(to: URL(fileURLWithPath: path("small")))
        let loop = try shell("losetup --find --show disk")
        guard loop.status == 0 else {
            noteSkipped("skipped, export to a block device: there is no loop device here")
            return
        }
        let device = loop.text.trimmingCharacters(in: .whitespacesAndNewlines)
        defer { _ = try? shell("losetup -d \(device)") }
        for (format, force) in [("raw", ""), ("xl", " --force"), ("elf", "")] {
            let result = try export("\(device) --format \(format)\(force)")
            #expect(result.status == 0, "\(result.error)")
            #expect(kind(device) == S_IFBLK)
            let bytes = try load("disk")
            #expect(bytes.prefix(expected[format]?.count ?? 0) == expected[format], "\(format)")
            #expect(bytes.count == 4 << 20)
        }
        let small = try shell("losetup --find --show small")
        guard small.status == 0 else { return }
        let other = small.text.trimmingCharacters(in: .whitespacesAndNewlines)
        defer { _ = try? shell("losetup -d \(other)") }
        for format in ["raw", "elf"] {
            let result = try export("\(other) --format \(format)")
            #expect(result.status == 1 && result.error.contains("8192 bytes"), "\(result.error)")
        }
        #expect(try load("small") == Data(repeating: 9, count: 8192))
    }

    // MARK: - Links

    @Test(arguments: formats) func theFileOfALinkIsReplacedAndTheLinkStays(
        _ format: String
    ) throws {
        let expected = try makeStore()
        try FileManager.default.createDirectory(
            atPath: path("far"), withIntermediateDirectories: false)
        try save("old memory", "far/file")
        #expect(chmod(path("far/file"), 0o640) == 0)
        try #require(symlink("far/file", path("link")) == 0)
        try #require(symlink("nothing", path("dangling")) == 0)
        let refused = try export("link --format \(format)")
        #expect(refused.status == 1 && refused.error.contains("--force"), "\(refused.error)")
        #expect(try load("far/file") == Data("old memory".utf8))
        let result = try export("link --force --format \(format)")
        #expect(result.status == 0, "\(result.error)")
        #expect(kind("link") == S_IFLNK && kind("far/file") == S_IFREG)
        #expect(try load("far/file") == expected[format])
        var status = stat()
        #expect(stat(path("far/file"), &status) == 0 && status.st_mode & 0o777 == 0o640)
        for force in ["", " --force"] {
            let dangling = try export("dangling --format \(format)\(force)")
            #expect(dangling.status == 1 && dangling.error.contains("does not exist"))
        }
        #expect(kind("nothing") == 0 && kind("dangling") == S_IFLNK)
    }

    // MARK: - Before the work

    /// A missing store is never looked up: the output path is checked first.
    @Test func whatIsNoPlaceIsSaidBeforeTheStoreIsOpened() throws {
        try save("text", "file")
        try FileManager.default.createDirectory(
            atPath: path("folder"), withIntermediateDirectories: false)
        let long = String(repeating: "n", count: 256)
        for (place, words) in [
            ("folder", "is a directory"), ("folder/", "names a directory"),
            ("new/", "names a directory"), ("file/", "names a directory"),
            ("file/below", "Not a directory"), (long, "too long"), ("file", "--force"),
            ("''", "empty path"), ("/dev/fd/999999", "not open"),
        ] {
            for format in OutputPlaceTests.formats {
                let result = try export("\(place) --format \(format)")
                #expect(result.status == 1 && result.error.contains(words), "\(result.error)")
                #expect(!result.error.contains("no repository"), "\(result.error)")
                #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
            }
        }
        #expect(try names == ["file", "folder"])
    }

    @Test func whereNothingCanBeMadeIsSaidBeforeTheWork() throws {
        _ = try makeStore()
        let before = try names
        for (line, words) in [
            ("export store web none/out", "No such file"),
            ("export store web /proc/out", "open failed"),
            ("export store web store/packs/out", "is in the repository itself"),
            ("export store web store/packs/00000001.pack --force", "is in the repository itself"),
        ] {
            for format in OutputPlaceTests.formats {
                let result = try shell("\"$varve\" \(line) --format \(format)")
                #expect(result.status == 1 && result.error.contains(words), "\(result.error)")
            }
        }
        // 64 blocks of 512 bytes.
        for format in ["elf", "xl"] {
            let limited = try shell(
                "ulimit -f 64; \"$varve\" export store web out --format \(format)")
            #expect(limited.status == 1 && limited.error.contains("ulimit -f"), "\(limited.error)")
        }
        #expect(try names == before)
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func whatCannotBeReplacedIsSaidBeforeTheWork() throws {
        _ = try makeStore()
        try save("old", "file")
        try save("other", "other")
        if try shell("unshare -m mount --bind other file").status == 0 {
            let bound = try shell(
                "unshare -m sh -c 'mount --bind other file; "
                    + "\"$varve\" export store web file --force'"
            )
            #expect(bound.status == 1 && bound.error.contains("mount point"), "\(bound.error)")
            let folder = try shell(
                "mkdir other-way deep; unshare -m sh -c 'mount --bind store/packs other-way; "
                    + "mount --bind store deep; \"$varve\" export store web other-way/new; "
                    + "\"$varve\" export store web deep/packs/new; echo $?'; rmdir other-way deep")
            #expect(folder.text == "1\n")
            let refusal = "is in the repository itself"
            #expect(folder.error.components(separatedBy: refusal).count == 3, "\(folder.error)")
        } else {
            noteSkipped("skipped, replacing a mount point: a mount name space cannot be made here")
        }
        if try shell("chattr +i file").status == 0 {
            let fixed = try export("file --force")
            _ = try shell("chattr -i file")
            #expect(fixed.status == 1 && fixed.error.contains("chattr"), "\(fixed.error)")
        } else {
            noteSkipped("skipped, replacing an immutable file: chattr cannot make one here")
        }
        #expect(try load("file") == Data("old".utf8) && load("other") == Data("other".utf8))
        #expect(try names == ["file", "other", "store", "stream"])
    }

    @Test func whatIsTooSmallIsSaidBeforeTheWork() throws {
        let expected = try makeStore()
        let probe = try shell("unshare -m mount -t tmpfs none /mnt")
        guard probe.status == 0 else {
            noteSkipped("skipped, export to a full disk: a mount name space cannot be made here")
            return
        }
        for format in OutputPlaceTests.formats {
            let result = try shell(
                "unshare -m sh -c 'mount -t tmpfs -o size=64k none /mnt; "
                    + "\"$varve\" export store web /mnt/out --format \(format); s=$?; "
                    + "ls -A /mnt; exit $s'")
            #expect(
                result.status == 1 && result.error.contains("are free there"), "\(result.error)")
            #expect(result.output.isEmpty, "\(result.text)")
        }
        let room = (expected["xl"]?.count ?? 0) + (64 << 10)
        let enough = try shell(
            "unshare -m sh -c 'mount -t tmpfs -o size=\(room) none /mnt; "
                + "\"$varve\" export store web /mnt/out --format xl && cat /mnt/out'")
        #expect(enough.status == 0 && enough.output == expected["xl"], "\(enough.error)")
    }

    @Test func theLongestNameIsEnough() throws {
        let expected = try makeStore()
        let name = String(repeating: "n", count: 255)
        for format in OutputPlaceTests.formats {
            for _ in 0..<2 {
                let result = try export("\(name) --force --format \(format)")
                #expect(result.status == 0, "\(result.error)")
                #expect(try load(name) == expected[format])
            }
        }
        #expect(try names == [name, "store", "stream"])
    }

    // MARK: - Names that are not UTF-8

    @Test func namesThatAreNotTextNameExactlyThatFile() throws {
        let expected = try makeStore()
        // Names that differ in only one byte, which would be equal if invalid bytes were dropped.
        for bytes in ["\\377", "a\\300\\257b", "\\364\\217\\274\\277", "\\355\\240\\200", "\\303"] {
            let result = try shell(
                """
                set -e
                n=$(printf '\(bytes)'); d="dir$n"
                rm -rf dirs; mkdir dirs; cd dirs; mkdir "$d"
                printf 'name = "a"\\n' > "$d/config"
                "$varve" export ../store web "$d/raw$n"
                "$varve" export ../store web "$d/xl$n" --format xl --config "$d/config"
                "$varve" import ../store "$d/raw$n" --lineage raw
                "$varve" import ../store "$d/xl$n" --lineage xl
                "$varve" export ../store raw "$d/raw$n" --force
                test "$(ls | wc -l)" = 1 && test "$(ls "$d" | wc -l)" = 3
                cat "$d/raw$n"
                """)
            #expect(result.status == 0, "\(bytes): \(result.error)")
            #expect(result.output.suffix(expected["raw"]?.count ?? 0) == expected["raw"])
        }
        let said = try shell(
            "n=$(printf 'x\\377\\033'); \"$varve\" import store \"$n\" --lineage web; : > \"$n\"; "
                + "\"$varve\" export store web \"$n\"")
        #expect(said.error.contains("x\\xff\\u{1b} cannot be opened"), "\(said.error)")
        #expect(said.error.contains("x\\xff\\u{1b} exists"), "\(said.error)")
        for line in [
            "import store stream --lineage \"$n\"",
            "import store stream --lineage web --label \"$n\"",
            "show store \"$n\"", "log store --lineage=\"$n\"", "export store \"$n\" out",
        ] {
            let result = try shell("n=$(printf 'x\\377'); \"$varve\" \(line)")
            #expect(
                result.status == 2 && result.error.contains("'x\\xff' is not UTF-8")
                    || result.error.contains("=x\\xff' is not UTF-8"), "\(result.error)")
        }
    }
}
