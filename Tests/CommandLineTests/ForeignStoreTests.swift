import Foundation
import Testing
import VarveTestSupport

/// Another user's store, and a store full of links, are read and left unchanged.
///
/// Nothing is created, written or followed: the system calls are traced.
@Suite(.serialized, .enabled(if: Tool.isBuilt && geteuid() == 0)) struct ForeignStoreTests {
    private static let stranger = 54_321
    private static let reader = 54_322

    private let directory = TemporaryDirectory()
    private var root: String { directory.path.string }
    private var store: String { "\(root)/store" }

    private static let commands = [
        "log \"$store\"", "show \"$store\" web", "verify \"$store\"",
        "export \"$store\" web \"$out\" --force", "stats \"$store\"", "prune \"$store\" --dry-run",
        "diff \"$store\" web~1 web",
    ]

    private var variables: [String: String] {
        ["store": store, "root": root, "out": "\(root)/out", "trace": "\(root)/trace"]
    }

    private func shell(_ line: String) throws -> Tool.Result { try Tool.shell(line, variables) }

    private static let hasStrace: Bool = {
        let result = try? Tool.shell("strace -qq -e trace=none true")
        if result?.status == 0 { return true }
        noteSkipped(
            "skipped, the system's calls of a reader: strace is not installed or may not trace")
        return false
    }()

    private func makeStore() throws {
        let made = try shell(
            """
            cd "$root" && chmod 755 . && $varve init store && \
            for i in 1 2; do head -c 409600 /dev/urandom >image; \
            $varve import store image --lineage web || exit 1; done
            """)
        #expect(made.status == 0, "\(made.error)")
    }

    /// All metadata and contents of every file of the store.
    private func state() throws -> String {
        try shell(
            "cd \"$store\" && find . -printf '%p %y %m %U %G %s %i %l %T@ %C@\\n' | sort; "
                + "find . -type f -exec cksum {} + 2>/dev/null | sort"
        ).text
    }

    /// The operations of a traced command on the store: each call that writes, creates or removes,
    /// and each that left it through a link.
    private func offences(_ trace: String) -> (calls: Int, offences: [String]) {
        var (calls, found) = (0, [String]())
        let writing = [
            "O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE",
        ]
        let changing = [
            "mkdir", "mknod", "rename", "link", "unlink", "rmdir", "symlink", "chmod", "chown",
            "utime", "truncate", "fallocate", "write", "setxattr", "fsync", "fdatasync", "flock",
            "F_OFD_SETLK", "F_SETLK", "copy_file_range", "sync_file_range",
        ]
        for line in trace.split(separator: "\n").map(String.init) {
            guard line.contains(store) else {
                // The target of a link.
                if line.contains("\(root)/precious") { found.append(line) }
                continue
            }
            // Its output names the store too.
            if line.contains("execve(") || line.hasPrefix("write(1<") || line.hasPrefix("write(2<")
            {
                continue
            }
            calls += 1
            let call = line.prefix { $0 != "(" }
            if call == "readlink" || call == "readlinkat" { continue }
            let isOpen = call.contains("open")
            if isOpen
                ? writing.contains(where: { line.contains($0) })
                : changing.contains(where: { call.contains($0) || line.contains("\($0),") })
            {
                found.append(line)
            }
            if line.contains("\(root)/precious") { found.append(line) }
            // The first is the user's argument; all others follow nothing.
            let isRoot = line.contains("AT_FDCWD") && line.contains("\"\(store)\"")
            if isOpen, !isRoot, !line.contains("O_NOFOLLOW") { found.append(line) }
        }
        return (calls, found)
    }

    /// Runs each command under strace; returns the calls found.
    private func trace(_ what: String, expecting statuses: Set<Int32>) throws {
        for command in ForeignStoreTests.commands {
            let before = try state()
            let result = try shell(
                "rm -f \"$trace\".*; strace -ff -y -qq -s 300 -o \"$trace\" -e trace=%file,%desc "
                    + "$varve \(command)")
            #expect(statuses.contains(result.status), "\(command): \(result.error)")
            // A file for each thread, so that calls of several threads are not interleaved.
            let text = try shell("cat \"$trace\".*").text
            let (calls, found) = offences(text)
            print("\(what), \(command): \(calls) calls in the store, \(found.count) of them wrong")
            #expect(calls > 3, "\(command)")
            #expect(found.isEmpty, "\(command): \(found.prefix(5))")
            #expect(try state() == before, "\(command)")
        }
    }

    @Test func aForeignStoreIsReadAndLeftAsItIs() throws {
        try makeStore()
        let image = try shell("cat \"$root/image\"").output
        #expect(try shell("chown -R \(ForeignStoreTests.stranger) \"$store\"").status == 0)
        let before = try state()
        for command in ForeignStoreTests.commands {
            let result = try shell("$varve \(command)")
            #expect(result.status == 0, "\(command): \(result.error)")
            #expect(result.error.isEmpty, "\(command): \(result.error)")
        }
        #expect(try shell("cat \"$out\"").output == image)
        #expect(try state() == before)
        if ForeignStoreTests.hasStrace { try trace("a foreign store", expecting: [0]) }
    }

    /// Another user's index is not trusted: it may contain anything.
    @Test func aForeignIndexIsNotOpened() throws {
        try makeStore()
        let log = try shell("$varve log \"$store\"").text
        let made = try shell(
            """
            chown -R \(ForeignStoreTests.stranger) "$store" && cd "$store"/index && \
            head -c 50000 /dev/urandom >data.mdb && mkfifo open && rm lock.mdb && mkdir lock.mdb
            """)
        #expect(made.status == 0, "\(made.error)")
        let before = try state()
        let result = try shell("$varve log \"$store\" && $varve verify \"$store\"")
        #expect(result.status == 0 && result.text.hasPrefix(log), "\(result.error)")
        #expect(try state() == before)
    }

    /// A user's own index in a store that belongs to another user, as after a command of the
    /// administrator: reads do not use it, and writes are refused.
    @Test func aForeignIndexInAnOwnStoreIsNotOpened() throws {
        try makeStore()
        #expect(try shell("chown -R \(ForeignStoreTests.stranger) \"$store\"/index").status == 0)
        let before = try state()
        let log = try shell("$varve log \"$store\"")
        #expect(log.status == 0 && log.text.contains("web"), "\(log.error)")
        let refused = try shell("$varve import \"$store\" \"$root/image\" --lineage web")
        #expect(refused.status == 1)
        #expect(refused.error.contains("store/index"), "\(refused.error)")
        #expect(refused.error.contains("chown"), "\(refused.error)")
        #expect(try state() == before)
    }

    /// A user's own store with a file of another user in it.
    @Test(arguments: ["packs", "lock", "repository", "head", "leases", "damaged", "index"])
    func whatAWriterOpensIsItsOwn(name: String) throws {
        try makeStore()
        let made = try shell(
            """
            cd "$store" && mkdir -p -m 700 leases damaged && \
            chown -hR \(ForeignStoreTests.stranger) \(name)
            """)
        #expect(made.status == 0, "\(made.error)")
        let log = try shell("$varve log \"$store\"")
        #expect(log.status == 0 && log.text.contains("web"), "\(log.error)")
        let before = try state()
        for command in [
            "import \"$store\" \"$root/image\" --lineage web", "forget \"$store\" web~1",
            "label \"$store\" web new", "prune \"$store\"", "repair \"$store\" --execute",
        ] {
            let result = try shell("$varve \(command)")
            #expect(result.status == 1, "\(command): \(result.error)")
            #expect(
                result.error.contains("\(store)/\(name) belongs to another user")
                    && result.error.contains("chown -R"), "\(command): \(result.error)")
            #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
            #expect(try state() == before, "\(command)")
        }
        try expectPlan(leaves: before)
        let mended = try shell(
            """
            chown -R 0 "$store" && $varve import "$store" "$root/image" --lineage web && \
            $varve verify "$store"
            """)
        #expect(mended.status == 0, "\(mended.error)")
    }

    /// The leftovers of an interrupted creation must belong to the user as well.
    @Test func initTakesOverNothingOfOthers() throws {
        let made = try shell(
            """
            cd "$root" && mkdir store && mkdir store/packs && \
            chown \(ForeignStoreTests.stranger) store/packs && $varve init store
            """)
        #expect(made.status == 1 && made.error.contains("store/packs belongs to another user"))
        let names = try FileManager.default.contentsOfDirectory(atPath: store)
        #expect(names == ["packs"])
    }

    /// Every user who may read the store can see what a repair would do.
    private func expectPlan(leaves before: String) throws {
        let plan = try shell("$varve repair \"$store\"")
        #expect(plan.status == 0 && plan.text.contains("nothing is damaged"), "\(plan.error)")
        #expect(try state() == before)
    }

    @Test func writingToAForeignStoreIsRefused() throws {
        try makeStore()
        #expect(try shell("chown -R \(ForeignStoreTests.stranger) \"$store\"").status == 0)
        let before = try state()
        for command in [
            "import \"$store\" \"$root/image\" --lineage web", "forget \"$store\" web~1",
            "prune \"$store\"", "repair \"$store\" --execute",
        ] {
            let result = try shell("$varve \(command)")
            #expect(result.status == 1, "\(command): \(result.error)")
            #expect(
                result.error.contains(store) && result.error.contains("run this as that user"),
                "\(command): \(result.error)")
            #expect(try state() == before, "\(command)")
        }
        try expectPlan(leaves: before)
        // And its owner was never locked out.
        let owner = try shell(
            """
            chown -R 0 "$store" && $varve import "$store" "$root/image" --lineage web && \
            $varve prune "$store" && $varve verify "$store"
            """)
        #expect(owner.status == 0, "\(owner.error)")
    }

    /// A user who may only read.
    @Test func aUserWhoMayOnlyReadReads() throws {
        try makeStore()
        let probe = try shell(
            """
            chmod -R a+rX "$store" && mkdir -m 777 "$root/tmp" && \
            setpriv --reuid=\(ForeignStoreTests.reader) --clear-groups $varve --version
            """)
        guard probe.status == 0 else {
            noteSkipped("skipped, a user who may only read: setpriv, or the tool's folder, refuses")
            return
        }
        let before = try state()
        for command in ForeignStoreTests.commands where !command.contains("$out") {
            let result = try shell(
                "TMPDIR=\"$root/tmp\" setpriv --reuid=\(ForeignStoreTests.reader) --clear-groups "
                    + "$varve \(command)")
            #expect(result.status == 0, "\(command): \(result.error)")
        }
        #expect(try state() == before)
        #expect(try shell("ls -A \"$root/tmp\"").text.isEmpty)
    }

    /// A store in which every file, or all but one, is a link to a file of the reader.
    @Test func aStoreFullOfLinksReachesNothing() throws {
        try makeStore()
        let names = try shell("cd \"$store\" && find . -type f -printf '%P\\n' | sort").text
            .split(separator: "\n").map(String.init)
        #expect(names.count >= 5)
        for owner in [0, ForeignStoreTests.stranger] {
            for spared in [nil, "repository"] {
                let made = try shell(
                    """
                    cd "$root" && rm -rf store2 && cp -a store store2 && rm -rf precious && \
                    echo precious >precious && cd store2 && find . -type f | while read f; do \
                    test "$f" = "./\(spared ?? "-")" && continue; \
                    ln -sf "$root/precious" "$f"; done; \
                    chown -hR \(owner) .
                    """)
                #expect(made.status == 0, "\(made.error)")
                for command in ForeignStoreTests.commands {
                    let result = try Tool.shell(
                        "$varve \(command); s=$?; test \"$(cat \"$root/precious\")\" = precious "
                            + "|| exit 99; exit $s",
                        variables.merging(["store": "\(root)/store2"]) { $1 })
                    #expect([1, 3].contains(result.status), "\(command): \(result.status)")
                    #expect(result.error.contains("symbolic link"), "\(command): \(result.error)")
                }
            }
        }
        guard ForeignStoreTests.hasStrace else { return }
        // The index and the lock are links, the packs are packs: all packs are read.
        let made = try shell(
            """
            cd "$store" && for f in index/data.mdb index/lock.mdb index/open; do \
            ln -sf "$root/precious" $f; done; chown -hR \(ForeignStoreTests.stranger) .
            """)
        #expect(made.status == 0)
        try trace("a store full of links", expecting: [0])
    }
}
