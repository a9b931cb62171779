import Foundation
import Testing
import VarveTestSupport

/// The files of a store and of an export can be read only by their owner, with any umask.
@Suite(.enabled(if: Tool.isBuilt)) struct PrivateFileTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    /// The permissions and name of everything below a directory.
    private func modes(_ root: String) throws -> [String] {
        try Tool.shell("cd \"$root\" && find . -printf '%m %y %P\\n' | sort", ["root": root]).text
            .split(separator: "\n").map(String.init)
    }

    @Test(arguments: ["000", "022", "077"])
    func everythingIsForItsOwnerAlone(umask: String) throws {
        let variables = ["d": directory.path.string]
        func run(_ line: String, _ expected: Int32 = 0) throws {
            let result = try Tool.shell("umask \(umask); cd \"$d\"; \(line)", variables)
            #expect(result.status == expected, "\(line): \(result.error)")
        }
        try run("head -c 400000 /dev/urandom | head -c 401408 >image; truncate -s 401408 image")
        try run("$varve init store && $varve import store image --lineage web")
        // Killed with the index open, so that its mark and LMDB's files are still there.
        try run(
            """
            mkfifo in; $varve import store - --lineage slow <in & exec 3>in; \
            head -c 100000 image >&3; sleep 0.5; find store -printf '%m %y %P\\n' >live; \
            kill -9 $(pgrep -P $!) $!; exit 0
            """)
        try run("$varve export store web out && $varve export store web out2 --force")
        try run("$varve verify store")
        // A damaged pack is kept in a separate folder.
        try run(
            "printf 'aaaa' | "
                + "dd of=store/packs/00000001.pack bs=1 seek=5000 conv=notrunc 2>/dev/null")
        try run("$varve repair store --execute; $varve prune store; ls store/damaged >/dev/null")
        let live = try String(contentsOfFile: path("live"), encoding: .utf8)
            .split(separator: "\n").map(String.init)
        #expect(live.contains { $0.hasSuffix(" index/open") }, "\(live)")
        let all = try modes(path("store"))
        #expect(all.contains { $0.contains(" damaged/") }, "\(all)")
        for line in all + live {
            let mode = line.contains(" d ") ? "700 " : "600 "
            #expect(line.hasPrefix(mode), "umask \(umask): \(line)")
        }
        for name in ["out", "out2"] {
            let mode = try Tool.shell("stat -c %a \"$d/\(name)\"", variables).text
            #expect(mode == "600\n", "\(name): \(mode)")
        }
    }

    /// An existing directory keeps its permissions; if others may write to it, this is reported.
    @Test(arguments: ["777", "775", "1777", "770", "755", "750", "700"])
    func initSaysThatOthersMayWrite(mode: String) throws {
        let result = try Tool.shell(
            "cd \"$d\" && mkdir there && chmod \(mode) there && $varve init there && "
                + "stat -c 'mode %a' there", ["d": directory.path.string])
        #expect(result.status == 0, "\(result.error)")
        #expect(result.text.hasPrefix("created repository"), "\(result.text)")
        #expect(result.text.hasSuffix("mode \(mode)\n"), "\(result.text)")
        let bits = try #require(Int(mode, radix: 8))
        let lines = result.error.split(separator: "\n")
        #expect(lines.count == (bits & 0o022 == 0 ? 0 : 1), "\(result.error)")
        for line in lines {
            #expect(
                line.contains("(mode \(mode))") && line.hasSuffix("chmod 700 there"), "\(line)")
        }
        #expect(try modes(path("there")).contains("700 d packs"))
    }

    /// If the owner lets others read the file `repository` and the packs, they can read new packs.
    @Test func whoMayReadTheRepositoryMayReadNewPacks() throws {
        let variables = ["d": directory.path.string]
        let result = try Tool.shell(
            """
            cd "$d"; umask 077; head -c 40960 /dev/urandom >image
            $varve init store && chmod g+rx store store/packs && chmod g+r store/repository &&
            $varve import store image --lineage web
            """, variables)
        #expect(result.status == 0, "\(result.error)")
        let all = try modes(path("store"))
        #expect(all.contains("640 f packs/00000001.pack"), "\(all)")
        #expect(all.contains("600 f index/data.mdb"), "\(all)")
    }

    @Test func aReplacedFileKeepsItsPermissions() throws {
        let result = try Tool.shell(
            """
            cd "$d"; umask 022; head -c 40960 /dev/urandom >image; echo old >out; chmod 640 out
            $varve init store && $varve import store image --lineage web &&
            $varve export store web out --force && cmp image out && stat -c %a out
            """, ["d": directory.path.string])
        #expect(result.status == 0 && result.text.hasSuffix("640\n"), "\(result.text)")
    }
}
