import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct LoopDeviceTests {
    private let home = TemporaryDirectory()

    private func found(_ file: String, _ values: [String: String] = [:]) throws -> ReflinkDisks.File
    {
        let directory = home.path.appending("7:3")
        for folder in ["loop", "queue"] {
            try FileManager.default.createDirectory(
                atPath: directory.appending(folder).string, withIntermediateDirectories: true)
        }
        var texts = [
            "loop/backing_file": file, "loop/offset": "0", "loop/sizelimit": "0",
            "queue/logical_block_size": "512",
        ]
        texts.merge(values) { $1 }
        for (name, text) in texts {
            try Data("\(text)\n".utf8).write(
                to: URL(fileURLWithPath: directory.appending(name).string))
        }
        return try LoopDevice.file(in: directory, named: "xvda")
    }

    @Test func itsFileIsTheDisk() throws {
        let file = home.path.appending("a (b).img")
        try write([1], to: file, at: 0)
        #expect(try found(file.string) == ReflinkDisks.File(name: "xvda", path: file))
        #expect(
            try found(file.string, ["queue/logical_block_size": "4096"]).sectorByteCount == 4096)
        for values in [["loop/offset": "512"], ["loop/sizelimit": "4096"]] {
            let error = #expect(throws: GuestError.self) { try found(file.string, values) }
            #expect(error?.message.contains("losetup") == true)
        }
        let error = #expect(throws: GuestError.self) { try found("\(file) (deleted)") }
        #expect(error?.message.contains("removed") == true)
    }

    @Test func otherPathsAreNone() throws {
        for path in ["/dev/null", "/nowhere", home.path.string] {
            #expect(try LoopDevice.file(of: FilePath(path), named: "xvda") == nil)
        }
    }

    @Test func aLoopDeviceOfTheSystemIsFound() throws {
        guard let mounted = MountedFileSystem(.xfs) else { return }
        let lines = try String(contentsOfFile: "/proc/mounts", encoding: .utf8)
            .split(separator: "\n")
        let line = try #require(lines.first { $0.contains(" \(mounted.path) ") })
        let device = FilePath(String(line.prefix { $0 != " " }))
        let file = try #require(try LoopDevice.file(of: device, named: "xvda"))
        #expect(file.path.lastComponent == "image" && file.sectorByteCount == 512)
    }
}
