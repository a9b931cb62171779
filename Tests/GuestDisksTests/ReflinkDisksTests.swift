import Foundation
import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct ReflinkDisksTests {
    private static func random(_ count: Int, _ generator: inout SeededGenerator) -> [UInt8] {
        (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
    }

    private static func group(
        _ mounted: MountedFileSystem, _ names: [String] = ["xvda"]
    ) throws -> ReflinkDisks {
        try ReflinkDisks(
            files: names.map { .init(name: $0, path: mounted.path.appending("\($0).raw")) },
            stateDirectory: mounted.path.appending("state"))
    }

    @Test(arguments: MountedFileSystem.Kind.allCases)
    func aCutIsWhatTheFilesWere(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        var generator = SeededGenerator(seed: 1)
        let disks = try ReflinkDisksTests.group(mounted, ["a", "b"])
        let (a, b) = (disks.files[0].path, disks.files[1].path)
        try write(ReflinkDisksTests.random(1 << 20, &generator), to: a, at: 0)
        try write(ReflinkDisksTests.random(512 * 3, &generator), to: b, at: 0)
        let old = (try bytes(of: a), try bytes(of: b))

        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        try write([1, 2, 3], to: a, at: 500_000)
        try write([1, 2, 3], to: b, at: 0)
        #expect(try contents(of: cut, 0) == old.0)
        #expect(try contents(of: cut, 1) == old.1)
        #expect(try cut.storedBlocks(ofDisk: 0) == [0..<256])
        #expect(try cut.storedBlocks(ofDisk: 1) == [0..<1])

        let later = try disks.prepareCut()
        _ = try later.cut(within: .seconds(10))
        let changed = try #require(try later.changedBlocks(ofDisk: 0, since: cut))
        let count = expectCovered(changed, from: old.0, to: try bytes(of: a))
        #expect(count < 64, "a small change is not the whole file")
        try cut.release()
        #expect(try contents(of: later, 0) == bytes(of: a))
        try later.release()
        #expect(try names(in: mounted.path) == ["a.raw", "b.raw", "state"])
        #expect(try names(in: mounted.path.appending("state")).isEmpty)
    }

    /// Against comparing all bytes, with holes, preallocation, truncation and growth.
    @Test(arguments: [
        (MountedFileSystem.Kind.xfs, ""), (.btrfs, ""), (.btrfs, "compress-force"),
        (.btrfs, "nodatacow"),
    ])
    func changedBlocksAreAllThatDiffer(
        _ kind: MountedFileSystem.Kind, _ options: String
    ) throws {
        guard let mounted = MountedFileSystem(kind, options: options) else { return }
        var generator = TestSeed.generator(9701)
        let disks = try ReflinkDisksTests.group(mounted)
        let path = disks.files[0].path
        // Of ten writes.
        let compressible = options.contains("compress") ? 8 : 2
        try write(ReflinkDisksTests.random(600 << 10, &generator), to: path, at: 0)
        var earlier: (cut: any DiskCut, bytes: [UInt8])?
        for round in 0..<16 {
            for _ in 0..<Int.random(in: 1...6, using: &generator) {
                let size = try bytes(of: path).count
                let offset = Int.random(in: 0..<size / 512, using: &generator) * 512
                let length = Int.random(in: 1...60, using: &generator) * 512
                switch Int.random(in: 0..<10, using: &generator) {
                case 0: shell("fallocate -p -o \(offset) -l \(length) \(path)")
                case 1: shell("fallocate -o \(offset) -l \(length) \(path)")
                case 2: shell("truncate -s \(max(4096, offset)) \(path)")
                case 3: shell("truncate -s \(size + length) \(path)")
                case 4: shell("fallocate -z -o \(offset) -l \(length) \(path)")
                // What compresses, and what may be written again unchanged.
                case _ where Int.random(in: 0..<10, using: &generator) < compressible:
                    let byte = UInt8.random(in: 7...9, using: &generator)
                    try write([UInt8](repeating: byte, count: length), to: path, at: offset)
                default:
                    try write(
                        ReflinkDisksTests.random(length, &generator), to: path, at: offset)
                }
            }
            let cut = try disks.prepareCut()
            _ = try cut.cut(within: .seconds(10))
            let now = try bytes(of: path)
            #expect(try contents(of: cut) == now)
            expectCovered(
                try cut.storedBlocks(ofDisk: 0), from: [], to: now, "stored")
            if let earlier {
                let changed = try #require(
                    try cut.changedBlocks(ofDisk: 0, since: earlier.cut))
                expectCovered(
                    changed, from: earlier.bytes, to: now, "round \(round)")
                try earlier.cut.release()
            }
            earlier = (cut, now)
        }
    }

    @Test(arguments: MountedFileSystem.Kind.allCases)
    func theSizeIsThatOfTheCut(_ kind: MountedFileSystem.Kind) throws {
        guard let mounted = MountedFileSystem(kind) else { return }
        let disks = try ReflinkDisksTests.group(mounted)
        let path = disks.files[0].path
        for size in [1 << 20, 4096, 2 << 20, 0, 512] {
            try write([UInt8](repeating: 3, count: 65536), to: path, at: 0)
            let cut = try disks.prepareCut()
            #expect(try cut.disks[0].byteCount == UInt64(bytes(of: path).count))
            shell("truncate -s \(size) \(path)")
            _ = try cut.cut(within: .seconds(10))
            #expect(cut.disks[0].byteCount == UInt64(size))
            #expect(try contents(of: cut) == bytes(of: path))
            try cut.release()
        }
        let cut = try disks.prepareCut()
        shell("truncate -s 1000 \(path)")
        #expect(throws: GuestError.self) { try cut.cut(within: .seconds(1)) }
        try cut.release()
    }

    @Test func filesWrittenInPlaceAreClonedToo() throws {
        guard let mounted = MountedFileSystem(.btrfs) else { return }
        let disks = try ReflinkDisksTests.group(mounted)
        let path = disks.files[0].path
        shell("touch \(path) && chattr +C \(path)")
        try write([UInt8](repeating: 9, count: 1 << 20), to: path, at: 0)
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        try write([1], to: path, at: 5)
        #expect(try contents(of: cut) == [UInt8](repeating: 9, count: 1 << 20))
        try cut.release()
    }

    @Test func filesOnTwoFileSystemsAreOneGroup() throws {
        guard let one = MountedFileSystem(.xfs), let other = MountedFileSystem(.btrfs) else {
            return
        }
        let state = TemporaryDirectory()
        let files = [one, other].map { $0.path.appending("disk") }
        for file in files { try write([UInt8](repeating: 1, count: 8192), to: file, at: 0) }
        let disks = try ReflinkDisks(
            files: [.init(name: "a", path: files[0]), .init(name: "b", path: files[1])],
            stateDirectory: state.path.appending("state"))
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        try write([2], to: files[1], at: 0)
        #expect(try contents(of: cut, 1).allSatisfy { $0 == 1 })
        try cut.release()

        let wrong = try ReflinkDisks(
            files: disks.files, stateDirectory: state.path.appending("state"),
            cloneDirectory: one.path)
        let error = #expect(throws: GuestError.self) { try wrong.prepareCut() }
        #expect(error?.message.contains("different file systems") == true)
        #expect(try names(in: one.path) == ["disk"])
        #expect(try wrong.leftovers().isEmpty)
    }

    @Test func whatCannotBeClonedIsRefusedWithTheRemedy() throws {
        let home = TemporaryDirectory(inMemory: true)
        let path = home.path.appending("disk")
        try write([UInt8](repeating: 1, count: 8192), to: path, at: 0)
        func refusal(_ path: FilePath, _ name: String = "a", sector: Int = 512) throws -> String {
            let disks = try ReflinkDisks(
                files: [.init(name: name, path: path, sectorByteCount: sector)],
                stateDirectory: home.path.appending("state"))
            let error = #expect(throws: GuestError.self) { try disks.prepareCut() }
            #expect(try disks.leftovers().isEmpty)
            return error?.message ?? ""
        }
        let shares = shell("cp --reflink=always \(path) \(path)2").status == 0
        if !shares {
            #expect(try refusal(path).contains("XFS (with reflink=1) or btrfs"))
            #expect(try names(in: home.path) == ["disk", "disk2", "state"])
        }
        #expect(try refusal("/dev/null").contains("not a regular file"))
        #expect(try refusal(home.path).contains("not a regular file"))
        #expect(try refusal(home.path.appending("none")).contains("check the path"))
        #expect(try refusal(path, "").contains("1 to 255 bytes"))
        #expect(try refusal(path, sector: 1024).contains("512 or 4096"))
        shell("truncate -s 1000 \(path)")
        #expect(try refusal(path).contains("multiple of 512"))
    }

    @Test func aStandingCutIsFoundByItsName() throws {
        guard let mounted = MountedFileSystem(.xfs) else { return }
        let disks = try ReflinkDisksTests.group(mounted)
        let path = disks.files[0].path
        try write([UInt8](repeating: 1, count: 1 << 20), to: path, at: 0)
        var cut: (any DiskCut)? = try disks.prepareCut()
        let name = try #require(cut?.name)
        _ = try cut?.cut(within: .seconds(10))
        #expect(try disks.standingCut(name) == nil, "it is owned")
        _ = try cut?.storedBlocks(ofDisk: 0)
        #expect(try disks.leftovers().map(\.isOwned) == [true])
        #expect(try disks.dropLeftovers().isEmpty)
        withExtendedLifetime(cut) {}
        cut = nil
        #expect(try disks.leftovers().map(\.isWhole) == [true])

        // Another process's view.
        let again = try ReflinkDisksTests.group(mounted)
        let found = try #require(try again.standingCut(name))
        #expect(try again.standingCut(name) == nil)
        #expect(found.disks == [GuestDisk(name: "xvda", byteCount: 1 << 20)])
        try write([2], to: path, at: 8192)
        let later = try again.prepareCut()
        _ = try later.cut(within: .seconds(10))
        let changed = try #require(try later.changedBlocks(ofDisk: 0, since: found))
        #expect(changed.contains { $0.contains(2) })
        #expect(try contents(of: found).allSatisfy { $0 == 1 })
        try found.release()
        #expect(try again.standingCut(name) == nil)
        for strange in ["", "cut-", "cut-x", "../state", "cut-/../x", "metadata-1"] {
            #expect(try again.standingCut(strange) == nil)
        }
        try later.release()
    }

    @Test func leftoversAreDropped() throws {
        guard let mounted = MountedFileSystem(.btrfs) else { return }
        let disks = try ReflinkDisksTests.group(mounted, ["a", "b"])
        for file in disks.files { try write([1, 2, 3], to: file.path, at: 509) }
        var cut: (any DiskCut)? = try disks.prepareCut()
        let cuts = try names(in: mounted.path).filter { $0.contains("varve-cut") }
        #expect(cuts.count == 2)
        _ = try cut?.cut(within: .seconds(10))
        cut = nil
        let left = try disks.leftovers()
        #expect(left.count == 1 && left[0].parts.count == 2 && !left[0].isWhole)
        #expect(try disks.dropLeftovers().map(\.name) == left.map(\.name))
        #expect(try names(in: mounted.path) == ["a.raw", "b.raw", "state"])
        #expect(try disks.leftovers().isEmpty)
    }

    /// Each kernel call fails once: the error is thrown, and what is left is in the journal.
    @Test func afterAFailedCallNothingIsLeftWithoutAnEntry() throws {
        guard let mounted = MountedFileSystem(.xfs) else { return }
        let disks = try ReflinkDisksTests.group(mounted, ["a", "b"])
        for file in disks.files {
            try write([UInt8](repeating: 1, count: 8192), to: file.path, at: 0)
        }
        let first = try disks.prepareCut()
        _ = try first.cut(within: .seconds(10))
        _ = try contents(of: first)
        let before = try names(in: mounted.path)
        var number = 0
        while true {
            let calls = FailingCalls(failing: number)
            var thrown: GuestError?
            var cut: (any DiskCut)?
            do {
                cut = try disks.prepareCut()
                _ = try cut?.cut(within: .seconds(10))
                _ = try cut?.changedBlocks(ofDisk: 0, since: first)
                _ = try cut?.storedBlocks(ofDisk: 1)
                if let cut { _ = try contents(of: cut) }
            } catch let error as GuestError {
                thrown = error
            }
            do { try cut?.release() } catch { thrown = thrown ?? error }
            calls.end()
            cut = nil
            guard let failed = calls.failed else { break }
            // Direct reading and FIEMAP are only better than their alternatives.
            let isOptional = ["open", "pread", "FS_IOC_GETFLAGS"].contains(failed)
            #expect(thrown != nil || isOptional, "\(number): \(failed)")
            try disks.dropLeftovers()
            #expect(try names(in: mounted.path) == before, "\(number): \(failed)")
            #expect(try disks.leftovers().count == 1, "\(number): \(failed)")
            number += 1
        }
        #expect(number > 30)
        try first.release()
    }

    /// A clone that is out of sight is not gone: its file system may not be mounted.
    @Test func clonesOfAnotherDirectoryStayNoted() throws {
        for kind in MountedFileSystem.Kind.allCases {
            guard let mounted = MountedFileSystem(kind) else { continue }
            let home = TemporaryDirectory()
            let path = mounted.path.appending("images")
            let file = path.appending("a.raw")
            shell("mkdir \(path)")
            try write([UInt8](repeating: 3, count: 1 << 20), to: file, at: 0)
            func group() throws -> ReflinkDisks {
                try ReflinkDisks(
                    files: [.init(name: "a", path: file)],
                    stateDirectory: home.path.appending("state"))
            }
            var cut: (any DiskCut)? = try group().prepareCut()
            _ = try cut?.cut(within: .seconds(10))
            cut = nil
            shell("mv \(path) \(path).away")
            for made in ["", "mkdir \(path)"] {
                shell(made)
                let error = #expect(throws: GuestError.self) { try group().dropLeftovers() }
                #expect(error?.code == .unavailable)
                #expect(error?.message.contains("mount its file system") == true)
                #expect(try group().leftovers().count == 1)
            }
            shell("rmdir \(path); mv \(path).away \(path)")
            #expect(try names(in: path).count == 2)
            #expect(try group().dropLeftovers().count == 1)
            #expect(try names(in: path) == ["a.raw"])
        }
    }
}
