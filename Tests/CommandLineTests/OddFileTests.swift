import Foundation
import Testing
import VarveTestSupport

/// Pipes, links, directories, sockets and devices in place of a store's files: each is named, and
/// none is followed, waited for, read or written.
@Suite(.enabled(if: Tool.isBuilt)) struct OddFileTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }
    private var store: String { path("store") }

    enum Kind: String, CaseIterable {
        case link
        case danglingLink
        case directory
        case pipe
        case socket
        case device
    }

    /// Every file that a store may have.
    static let names = [
        "repository", "lock", "head", "packs", "packs/00000001.pack", "packs/00000003.pack",
        "index", "index/data.mdb", "index/lock.mdb", "index/open", "leases",
        "packs/00000002.pack.new", "damaged",
    ]

    /// Commands that read, and commands that write.
    static let reading = [
        "log \"$store\"", "show \"$store\" web", "stats \"$store\"", "verify \"$store\"",
        "diff \"$store\" web~1 web", "export \"$store\" web \"$out\" --force",
        "prune \"$store\" --dry-run", "forget \"$store\" web~1 --dry-run",
    ]
    static let writing = [
        "import \"$store\" \"$image\" --lineage web", "forget \"$store\" web~1", "prune \"$store\"",
        "repair \"$store\"", "repair \"$store\" --execute", "init \"$store\"",
    ]

    private var variables: [String: String] {
        ["store": store, "image": path("image"), "out": path("out"), "t": path("t")]
    }

    private func makeStore() throws {
        for number in 0..<2 as Range<UInt8> {
            try Data(repeating: number + 1, count: 40_960)
                .write(to: URL(fileURLWithPath: path("image")))
            if number == 0 { #expect(try Tool.run("init", store).status == 0) }
            let result = try Tool.run("import", store, path("image"), "--lineage", "web")
            #expect(result.status == 0, "\(result.error)")
        }
    }

    /// Replaces a file with an odd one; false if this machine does not support it.
    private func put(_ kind: Kind, _ name: String) throws -> Bool {
        let line =
            switch kind {
            case .link: "ln -s \"$t\" \"$p\""
            case .danglingLink: "ln -s \"$t.not-there\" \"$p\""
            case .directory: "mkdir \"$p\" && echo kept > \"$p/kept\""
            case .pipe: "mkfifo \"$p\""
            case .socket:
                "python3 -c 'import socket,os; os.chdir(os.path.dirname(os.environ[\"p\"])); "
                    + "socket.socket(socket.AF_UNIX).bind(os.path.basename(os.environ[\"p\"]))'"
            case .device: "mknod \"$p\" c 1 5"
            }
        let all = variables.merging(["p": "\(store)/\(name)"]) { $1 }
        return try Tool.shell(
            "mkdir -p \"$(dirname \"$p\")\" && rm -rf \"$p\" && \(line)", all
        ).status == 0
    }

    /// The names and kinds of everything in a store, links and pipes included.
    private func listing() throws -> String {
        try Tool.shell("cd \"$store\" && find . -printf '%y %p %l\\n' | sort", variables).text
    }

    /// Every command on a store in which one file is odd.
    private func check(_ kind: Kind, _ name: String) throws -> (runs: Int, named: Int) {
        var (runs, named) = (0, 0)
        for command in OddFileTests.reading + OddFileTests.writing {
            try? FileManager.default.removeItem(atPath: store)
            try FileManager.default.copyItem(atPath: path("whole"), toPath: store)
            try "precious\n".write(toFile: path("t"), atomically: true, encoding: .utf8)
            // These are directories anyway, and the links lead to a file.
            if kind == .directory, ["packs", "index", "leases", "damaged"].contains(name) { break }
            guard try put(kind, name) else { return (0, 0) }
            let result = try Tool.shell("$varve \(command)", variables)
            let words = "\(kind) as \(name), \(command): \(result.status) \(result.error)"
            #expect(![124, 137].contains(result.status), "it hangs: \(words)")
            #expect(result.status <= 4, "\(words)")
            runs += 1
            if result.error.contains(name) || result.text.contains(name) { named += 1 }
            #expect(
                result.status == 0 || result.error.contains(name) || result.text.contains(name)
                    || (name == "repository" && result.status == 1)
                    || command.hasPrefix("init"), "it is not named: \(words)")
            #expect(
                try String(contentsOfFile: path("t"), encoding: .utf8) == "precious\n", "\(words)")
            #expect(!FileManager.default.fileExists(atPath: path("t.not-there")), "\(words)")
            // Only a repair moves it, to the folder `damaged`.
            if !command.contains("--execute") {
                let kinds = try Tool.shell(
                    "find \"$p\" -maxdepth 0 -printf %y",
                    variables.merging(["p": "\(store)/\(name)"]) { $1 })
                let expected =
                    switch kind {
                    case .link, .danglingLink: "l"
                    case .directory: "d"
                    case .pipe: "p"
                    case .socket: "s"
                    case .device: "c"
                    }
                // Leftovers of an interrupted prune are removed by the next writer.
                let isGone = kinds.text.isEmpty && name.hasSuffix(".new")
                #expect(kinds.text == expected || isGone, "\(words)")
            }
        }
        return (runs, named)
    }

    @Test(arguments: OddFileTests.names) func eachIsNamedAndLeftAlone(name: String) throws {
        try makeStore()
        try FileManager.default.moveItem(atPath: store, toPath: path("whole"))
        var (runs, named) = (0, 0)
        for kind in Kind.allCases {
            let (more, moreNamed) = try check(kind, name)
            if more == 0, kind == .device || kind == .socket {
                noteSkipped("skipped, a \(kind) as \(name): it cannot be made here")
            }
            runs += more
            named += moreNamed
        }
        print("\(name): \(runs) commands ended, \(named) named it, none followed it")
        #expect(runs > 40)
    }

    /// A repair that cannot be completed is not begun.
    @Test(arguments: [
        "damaged", "head", "index", "index/data.mdb", "index/lock.mdb", "index/open", "packs",
    ])
    func aRepairThatIsInTheWayOfSomethingOddChangesNothing(name: String) throws {
        try makeStore()
        // Damage, and a file that a repair would move.
        let hurt = try Tool.shell(
            """
            cd "$store" && printf 'aaaa' | dd of=packs/00000001.pack bs=1 seek=300 conv=notrunc && \
            echo junk >packs/notes
            """, variables)
        #expect(hurt.status == 0, "\(hurt.error)")
        let put = try Tool.shell(
            """
            cd "$store" && mkdir ../t && mkdir ../t/kept && { mv \(name) ../saved || true; } && \
            ln -s "$t" \(name)
            """, variables)
        #expect(put.status == 0, "\(put.error)")
        func state() throws -> String {
            try Tool.shell(
                "cd \"$store/..\" && find store t saved -printf '%p %y %s %i %l\\n' | sort; "
                    + "find store t saved -type f -exec cksum {} + | sort", variables
            ).text
        }
        // The first one creates the folder of leases and others.
        _ = try Tool.shell("$varve repair \"$store\"", variables)
        let before = try state()
        for command in ["repair \"$store\"", "repair \"$store\" --execute"] {
            let result = try Tool.shell("$varve \(command)", variables)
            #expect(result.status == 1, "\(command): \(result.status) \(result.error)")
            #expect(
                result.error.contains("\(name) is a symbolic link"), "\(command): \(result.error)")
            #expect(try state() == before, "\(command)")
        }
        let mended = try Tool.shell(
            """
            cd "$store" && rm \(name) && { mv ../saved \(name) || true; } && \
            $varve repair "$store" --execute && $varve verify "$store"
            """, variables)
        #expect(mended.status == 0, "\(mended.error)")
    }

    /// An index created by another user, whose files are links to files of the reader.
    @Test(arguments: ["lock.mdb", "data.mdb", "open"])
    func aLinkInTheIndexIsNotWrittenThrough(name: String) throws {
        try makeStore()
        for command in OddFileTests.reading {
            let result = try Tool.shell(
                """
                rm -f "$store"/index/* && echo precious >"$t" && cd "$store" && \
                ln -s ../../t index/\(name) && $varve \(command); status=$?; \
                test "$(cat "$t")" = precious || exit 99; exit $status
                """, variables)
            #expect(result.status <= 3, "\(name), \(command): \(result.status) \(result.error)")
        }
    }

    /// A file of the index that is a hard link to another file is neither written nor truncated.
    @Test(arguments: ["lock.mdb", "data.mdb", "open"])
    func aSecondNameInTheIndexIsNotWrittenThrough(name: String) throws {
        try makeStore()
        for command in OddFileTests.reading + OddFileTests.writing where !command.contains("--exec")
        {
            let result = try Tool.shell(
                """
                rm -f "$store"/index/* && echo precious >"$t" && ln "$t" "$store"/index/\(name) && \
                $varve \(command); status=$?; \
                test "$(cat "$t")" = precious || exit 99; exit $status
                """, variables)
            #expect(result.status <= 3, "\(name), \(command): \(result.status) \(result.error)")
        }
    }

    /// The store itself may be named by a link: that is the user's argument.
    @Test func aLinkToTheStoreIsFollowed() throws {
        try makeStore()
        let result = try Tool.shell(
            "ln -s store \"$store.link\" && $varve verify \"$store.link\" && "
                + "$varve import \"$store.link\" \"$image\" --lineage web", variables)
        #expect(result.status == 0, "\(result.error)")
    }
}
