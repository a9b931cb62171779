import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import LinuxGuest

@Suite struct NewFileTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func status(_ path: String) throws -> stat {
        var result = stat()
        try #require(stat(path, &result) == 0)
        return result
    }

    private func make(_ path: String, replacing: Bool) throws {
        let file = try NewFile(FilePath(path), replacing: replacing)
        try #require(write(file.descriptor, "new", 3) == 3)
        try file.finish()
    }

    @Test func isForItsOwnerAloneWhateverTheMaskOfPermissionsIs() throws {
        try make(path("file"), replacing: false)
        #expect(try status(path("file")).st_mode & 0o777 == 0o600)
    }

    @Test func whatReplacesAFileKeepsItsPermissions() throws {
        for mode in [0o640, 0o604, 0o600, 0o755] as [mode_t] {
            try Data("old".utf8).write(to: URL(fileURLWithPath: path("file")))
            try #require(chmod(path("file"), mode) == 0)
            try make(path("file"), replacing: true)
            #expect(try status(path("file")).st_mode & 0o777 == mode)
            #expect(try String(contentsOfFile: path("file"), encoding: .utf8) == "new")
        }
    }

    @Test(.enabled(if: geteuid() == 0, "only root can give a file away"))
    func whatReplacesAFileKeepsItsOwner() throws {
        try Data("old".utf8).write(to: URL(fileURLWithPath: path("file")))
        try #require(chown(path("file"), 65534, 4711) == 0)
        try #require(chmod(path("file"), 0o640) == 0)
        try make(path("file"), replacing: true)
        let new = try status(path("file"))
        #expect(new.st_uid == 65534)
        #expect(new.st_gid == 4711)
        #expect(new.st_mode & 0o777 == 0o640)
    }

    // MARK: - Names

    private var names: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: directory.path.string).sorted()
        }
    }

    private func content(_ name: String) throws -> String {
        try String(contentsOfFile: path(name), encoding: .utf8)
    }

    @Test func namesMayBeAsLongAsNamesMayBe() throws {
        for count in [240, 241, 255] {
            let name = String(repeating: "n", count: count)
            for replacing in [false, true] {
                try make(path(name), replacing: replacing)
                #expect(try names == [name])
            }
            try FileManager.default.removeItem(atPath: path(name))
        }
        let error = #expect(throws: GuestError.self) {
            try NewFile(FilePath(path(String(repeating: "n", count: 256))))
        }
        #expect(error?.message.contains("too long") == true)
    }

    @Test func aLinkStaysAndItsFileIsReplaced() throws {
        try FileManager.default.createDirectory(
            atPath: path("deep"), withIntermediateDirectories: false)
        try Data("old memory".utf8).write(to: URL(fileURLWithPath: path("deep/file")))
        try #require(symlink("deep/file", path("link")) == 0)
        let error = #expect(throws: GuestError.self) { try NewFile(FilePath(path("link"))) }
        #expect(error?.message.contains("exists") == true)
        try make(path("link"), replacing: true)
        #expect(
            try FileManager.default.destinationOfSymbolicLink(atPath: path("link")) == "deep/file")
        #expect(try content("deep/file") == "new")
        #expect(try names == ["deep", "link"])
    }

    @Test func onlyAFileIsReplaced() throws {
        try #require(mkfifo(path("pipe"), 0o600) == 0)
        for name in [path("pipe"), "/dev/null", "/dev/stderr", directory.path.string] {
            #expect(throws: GuestError.self, "\(name)") {
                try NewFile(FilePath(name), replacing: true)
            }
        }
        #expect(try status(path("pipe")).st_mode & S_IFMT == S_IFIFO)
    }

    @Test func whatHasNoRoomIsRefusedBefore() throws {
        let memory = TemporaryDirectory(inMemory: true)
        let error = #expect(throws: GuestError.self) {
            try NewFile(memory.path.appending("file"), byteCount: 1 << 50)
        }
        #expect(error?.message.contains("free") == true, "\(error as Any)")
        let names = try FileManager.default.contentsOfDirectory(atPath: memory.path.string)
        #expect(names.isEmpty, "\(names)")
        _ = try NewFile(memory.path.appending("file"), byteCount: 4096)
    }

    // MARK: - Ways to create a name

    /// File systems with missing features, simulated by failing calls: no way to create a name may
    /// overwrite another name, or leave any file.
    private static let lacks: [(name: String, calls: [String: Int32], way: [String])] = [
        ("everything is there", [:], ["link"]),
        ("no files without a name", ["O_TMPFILE": EOPNOTSUPP], ["renameat2"]),
        ("FAT: no links", ["O_TMPFILE": EOPNOTSUPP, "link": EPERM], ["renameat2"]),
        (
            "no renaming without replacing", ["O_TMPFILE": EOPNOTSUPP, "renameat2": EINVAL],
            ["renameat2", "link"]
        ),
        (
            "neither", ["O_TMPFILE": EISDIR, "renameat2": ENOSYS, "link": EPERM],
            ["renameat2", "link", "rename"]
        ),
        ("links of nameless files are forbidden", ["link": EPERM], ["renameat2"]),
    ]

    /// Makes calls fail on this thread, and records those that create names.
    private func fail(_ calls: [String: Int32], _ seen: Seen) {
        KernelFault.set { name in
            seen.note(name)
            return calls[name]
        }
    }

    private final class Seen: @unchecked Sendable {
        // Unchecked: written and read by one thread.
        private(set) var names: [String] = []
        func note(_ name: String) {
            if ["link", "rename", "renameat2"].contains(name) { names.append(name) }
        }
        func clear() { names = [] }
    }

    @Test func everyFileSystemHasAWayToANewName() throws {
        defer { KernelFault.set(nil) }
        for lack in NewFileTests.lacks {
            let seen = Seen()
            fail(lack.calls, seen)
            let file = try NewFile(FilePath(path("file")))
            try #require(write(file.descriptor, "new", 3) == 3)
            seen.clear()
            try file.finish()
            KernelFault.set(nil)
            #expect(seen.names == lack.way, "\(lack.name)")
            #expect(try names == ["file"], "\(lack.name)")
            #expect(try content("file") == "new", "\(lack.name)")
            // Also with the name of a file that is to be replaced.
            fail(lack.calls, seen)
            let next = try NewFile(FilePath(path("file")), replacing: true)
            try #require(write(next.descriptor, "newer", 5) == 5)
            try next.finish()
            KernelFault.set(nil)
            #expect(try names == ["file"], "\(lack.name)")
            #expect(try content("file") == "newer", "\(lack.name)")
            try FileManager.default.removeItem(atPath: path("file"))
        }
    }

    @Test func aNameThatWasTakenMeanwhileIsLeftInEachWay() throws {
        defer { KernelFault.set(nil) }
        for lack in NewFileTests.lacks {
            fail(lack.calls, Seen())
            do {
                let file = try NewFile(FilePath(path("file")))
                try Data("theirs".utf8).write(to: URL(fileURLWithPath: path("file")))
                let error = #expect(throws: GuestError.self) { try file.finish() }
                #expect(error?.message.contains("exists") == true, "\(lack.name): \(error as Any)")
                file.abandon()
            }
            KernelFault.set(nil)
            #expect(try names == ["file"], "\(lack.name)")
            #expect(try content("file") == "theirs", "\(lack.name)")
            try FileManager.default.removeItem(atPath: path("file"))
        }
    }
}
