import Foundation
import Testing
import VarveTestSupport

/// Disks on the command line: import, export, show, diff.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct VolumeCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    private func save(_ data: Data, _ name: String) throws -> String {
        try data.write(to: URL(fileURLWithPath: path(name)))
        return path(name)
    }

    /// A disk with data at its beginning and in its last, partial block, and a hole between.
    private static func disk(_ random: inout SeededGenerator) -> Data {
        var bytes = [UInt8](repeating: 0, count: 300 * 4096 + 1536)
        for index in 0..<9000 { bytes[index] = .random(in: 0...255, using: &random) }
        bytes[bytes.count - 1] = 77
        return Data(bytes)
    }

    @Test func memoryAndDisksComeBack() throws {
        var random = TestSeed.generator(1620)
        #expect(try Tool.run("init", store).status == 0)
        var images: [(memory: Data, root: Data, data: Data)] = []
        for number in 0..<3 {
            let memory = Data(Images.make(pages: 16, &random))
            let root = VolumeCommandTests.disk(&random)
            let data = number == 1 ? root : VolumeCommandTests.disk(&random)
            images.append((memory, root, data))
            let result = try Tool.run(
                "import", store, try save(memory, "memory"), "--lineage", "web", "--volume",
                "xvda=" + (try save(root, "root")), "--volume", "xvdb=" + (try save(data, "data")))
            #expect(result.status == 0, "\(result.error)")
        }
        for (back, image) in images.reversed().enumerated() {
            for (name, content) in [
                ("memory", image.memory), ("xvda", image.root), ("xvdb", image.data),
            ] {
                let file = path("out-\(back)-\(name)")
                let result = try Tool.run(
                    "export", store, "web~\(back)", file, "--volume", name)
                #expect(result.status == 0, "\(result.error)")
                #expect(try Data(contentsOf: URL(fileURLWithPath: file)) == content, "\(name)")
                let stream = try Tool.run(
                    "export", store, "web~\(back)", "-", "--volume", name)
                #expect(stream.output == content, "\(name) on a pipe")
            }
        }
        let shown = try #require(try Tool.run("show", store, "web", "--json").objects.first)
        let volumes = try #require(shown["volumes"] as? [[String: Any]])
        #expect(volumes.map { $0["name"] as? String } == ["memory", "xvda", "xvdb"])
        #expect(volumes[1]["bytes"] as? Int == 300 * 4096 + 1536)
        #expect(volumes[1]["pages"] as? Int == 4)
        let text = try Tool.run("show", store, "web").text
        #expect(text.contains("xvdb            1.2 MiB, 4 blocks not zero"), "\(text)")
        // The disks of the second were equal, so their common blocks are stored once.
        let difference = try Tool.run("diff", store, "web~2", "web~1", "--volume", "xvda", "--json")
        #expect(try difference.objects.last?["pagesDiffering"] as? Int == 3)
        #expect(try Tool.run("verify", store).status == 0)
    }

    @Test func aDiskAloneIsACheckpoint() throws {
        var random = TestSeed.generator(1621)
        #expect(try Tool.run("init", store).status == 0)
        let disk = VolumeCommandTests.disk(&random)
        let file = try save(disk, "root")
        let result = try Tool.run("import", store, "--lineage", "web", "--volume", "sda=\(file)")
        #expect(result.status == 0, "\(result.error)")
        let again = try Tool.run(
            "import", store, "--lineage", "web", "--volume", "sda=\(file)", "--json")
        #expect(try again.objects.first?["pagesChanged"] as? Int == 0)
        let back = try Tool.run("export", store, "web", "-", "--volume", "sda")
        #expect(back.output == disk)
    }

    /// Swap begins on a disk like this, and whatever is asked for is imported.
    @Test func aSwapAreaIsADisk() throws {
        #expect(try Tool.run("init", store).status == 0)
        var swap = [UInt8](repeating: 0, count: 8192)
        swap.replaceSubrange(4086..<4096, with: Array("SWAPSPACE2".utf8))
        let file = try save(Data(swap), "swap")
        let disk = try Tool.run("import", store, "--lineage", "web", "--volume", "xvda=\(file)")
        #expect(disk.status == 0, "\(disk.error)")
        let gzip = try save(Data([0x1f, 0x8b, 8, 0] + [UInt8](repeating: 0, count: 4092)), "gz")
        let asked = try Tool.run(
            "import", store, "--lineage", "web", "--format", "raw", "--volume", "xvda=\(gzip)")
        #expect(asked.status == 0, "\(asked.error)")
    }

    /// An owner of a block device is what a mount has: open(2), O_EXCL.
    @Test func aDeviceThatIsInUseIsNamed() throws {
        #expect(try Tool.run("init", store).status == 0)
        let file = try save(Data(repeating: 9, count: 65536), "disk")
        guard let loop = try? Tool.shell("losetup --find --show \(file)"), loop.status == 0 else {
            noteSkipped("skipped, a device in use: there is no loop device here")
            return
        }
        let device = loop.text.trimmingCharacters(in: .whitespacesAndNewlines)
        defer { _ = try? Tool.shell("losetup -d \(device)") }
        for isInUse in [false, true] {
            let owner = isInUse ? open(device, O_RDONLY | O_EXCL) : -1
            defer { if owner >= 0 { close(owner) } }
            #expect((owner >= 0) == isInUse)
            let result = try Tool.run(
                "import", store, "--lineage", "web", "--volume", "xvda=\(device)")
            #expect(result.status == 0)
            #expect(
                result.error.contains("is in use: it is mounted, or part of another device")
                    == isInUse, "\(result.error)")
        }
    }

    @Test func changesOfSizeAndOfTheSetOfDisksAreShown() throws {
        var random = TestSeed.generator(1623)
        #expect(try Tool.run("init", store).status == 0)
        let memory = try save(Data(Images.make(pages: 8, &random)), "memory")
        var disk = VolumeCommandTests.disk(&random)
        let names = [["xvda", "xvdb"], ["xvda", "xvdc"]]
        for disks in names {
            let file = try save(disk, "root")
            let result = try Tool.run(
                ["import", store, memory, "--lineage", "web"]
                    + disks.flatMap { ["--volume", "\($0)=\(file)"] })
            #expect(result.status == 0, "\(result.error)")
            disk.append(Data(repeating: 0, count: 4096))
        }
        let last = try #require(
            try Tool.run("diff", store, "web~1", "web", "--volume", "xvda", "--json").objects.last)
        #expect(last["bytes"] as? [Int] == [disk.count - 8192, disk.count - 4096])
        #expect(last["onlyInFirst"] as? [String] == ["xvdb"])
        #expect(last["onlyInSecond"] as? [String] == ["xvdc"])
        let text = try Tool.run("diff", store, "web~1", "web", "--volume", "xvda").text
        #expect(
            text.contains("xvda has \(disk.count - 8192) bytes, and then \(disk.count - 4096)"))
        #expect(text.contains(": xvdb\n") && text.contains(": xvdc\n"), "\(text)")
        let same = try Tool.run("diff", store, "web", "web", "--volume", "xvda").text
        #expect(same == "0 pages differ, in 0 ranges\n")
    }

    /// Ranges in bytes bring an image of the first up to the second, also in the block in which the
    /// disk ends.
    @Test func rangesInBytesGiveTheNextImage() throws {
        var random = TestSeed.generator(1624)
        #expect(try Tool.run("init", store).status == 0)
        let before = VolumeCommandTests.disk(&random)
        var after = before
        after[4096 * 7] ^= 1
        after.replaceSubrange(4096 * 2..<4096 * 3, with: repeatElement(0, count: 4096))
        after[after.count - 1] = 78
        for disk in [before, after] {
            let file = try save(disk, "disk")
            let result = try Tool.run(
                "import", store, "--lineage", "web", "--volume", "xvda=\(file)")
            #expect(result.status == 0, "\(result.error)")
        }
        let lines = try Tool.run(
            "diff", store, "web~1", "web", "--volume", "xvda", "--json"
        ).objects
        var image = before
        var total = 0
        for range in lines.dropLast() {
            let offset = try #require(range["offset"] as? Int)
            let length = try #require(range["length"] as? Int)
            image.replaceSubrange(offset..<offset + length, with: after[offset..<offset + length])
            total += length
        }
        #expect(image == after)
        #expect(total == 2 * 4096 + 1536)
    }

    @Test func whatCannotBeIsSaid() throws {
        var random = TestSeed.generator(1622)
        #expect(try Tool.run("init", store).status == 0)
        let memory = try save(Data(Images.make(pages: 8, &random)), "memory")
        let disk = try save(VolumeCommandTests.disk(&random), "root")
        func refused(_ words: String, _ arguments: String...) throws {
            let result = try Tool.run(["import", store, "--lineage", "web"] + arguments)
            #expect(result.status != 0)
            #expect(result.error.contains(words), "\(result.error)")
        }
        try refused("name an image")
        try refused(
            "two disks are called 'xvda'", "--volume", "xvda=\(disk)", "--volume", "xvda=\(disk)")
        try refused("not a valid name", "--volume", "a/b=\(disk)")
        try refused("the memory is named twice", memory, "--volume", "memory=\(memory)")
        try refused("cannot be opened", "--volume", "xvda=\(disk)-no")
        let odd = try save(Data(repeating: 1, count: 700), "odd")
        try refused("a disk has at least one block", "--volume", "xvda=\(odd)")
        let qcow = try save(
            Data([0x51, 0x46, 0x49, 0xfb] + [UInt8](repeating: 0, count: 4092)), "q")
        try refused("qemu-img convert", "--volume", "xvda=\(qcow)")
        var tar = [UInt8](repeating: 0, count: 8192)
        tar.replaceSubrange(257..<262, with: Array("ustar".utf8))
        let archive = try save(Data(tar), "tar")
        try refused("a tar archive, not a raw image: unpack it", "--volume", "xvda=\(archive)")
        let gzip = try save(Data([0x1f, 0x8b, 8, 0] + [UInt8](repeating: 0, count: 4092)), "gz")
        try refused("compressed by gzip", memory, "--volume", "xvda=\(gzip)")
        try refused("compressed by gzip", "--volume", "memory=\(gzip)")
        #expect(
            try Tool.run(
                "import", store, memory, "--lineage", "web", "--volume", "xvda=\(disk)"
            ).status == 0)
        // Memory alone would run over a disk that has moved on.
        try refused("has disks", memory)
        let alone = try Tool.run(
            "import", store, memory, "--lineage", "web", "--no-disks", "--json")
        #expect(alone.status == 0, "\(alone.error)")
        #expect(try alone.objects.first?["omitsDisks"] as? Bool == true)
        let missing = try Tool.run("export", store, "web", "-", "--volume", "xvda")
        #expect(missing.status == 1 && missing.error.contains("has no volume 'xvda'"))
        let format = try Tool.run(
            "export", store, "web~1", "-", "--volume", "xvda", "--format", "elf")
        #expect(format.status != 0 && format.error.contains("only be exported as raw"))
        #expect(try Tool.run("verify", store).status == 0)
    }
}
