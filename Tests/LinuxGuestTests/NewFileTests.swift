import Foundation
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

@Suite struct NewFileTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func status(_ path: String) throws -> stat {
        var result = stat()
        try #require(stat(path, &result) == 0)
        return result
    }

    private func make(_ path: String, replacing: Bool) throws {
        let file = try NewFile(path, replacing: replacing)
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
}
