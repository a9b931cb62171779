import Glibc
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import PackStore

/// Writes that bypass the page cache, use it, or both.
@Suite struct LargeWritesTests {
    private let directory = TemporaryDirectory()

    /// Appends, overwrites and truncations compared with an array; no disk accepts an `alignment`
    /// of 256, so all writes use the cache in that case.
    @Test(arguments: [4096, 256], 0..<4 as Range<UInt64>)
    func aFileHoldsWhatAnArrayDoes(alignment: Int, round: UInt64) throws {
        var random = TestSeed.generator(8_000 + round)
        let files = PosixFiles(
            root: directory.path,
            largeWrites: LargeWrites.Limits(byteCountMin: 10_000, alignment: alignment))
        let file = try files.open("file", .create)
        var bytes: [UInt8] = []
        for _ in 0..<60 {
            switch Int.random(in: 0..<10, using: &random) {
            case 0..<7:
                let isLong = Int.random(in: 0..<4, using: &random) == 0
                let count = Int.random(in: 1...(isLong ? 2_500_000 : 60_000), using: &random)
                let new = LargeWritesTests.noise(count, &random)
                try file.write(new, at: UInt64(bytes.count))
                bytes += new
            case 7 where !bytes.isEmpty:
                let start = Int.random(in: 0..<bytes.count, using: &random)
                let count = Int.random(in: 1...min(bytes.count - start, 80_000), using: &random)
                let new = LargeWritesTests.noise(count, &random)
                try file.write(new, at: UInt64(start))
                bytes.replaceSubrange(start..<start + count, with: new)
            case 8:
                let count = Int.random(in: 0...bytes.count, using: &random)
                try file.truncate(to: UInt64(count))
                bytes.removeLast(bytes.count - count)
            default: try file.sync()
            }
            // Reading puts nearby pages into the cache; they must not stay there after later
            // writes.
            let start = Int.random(in: 0...bytes.count, using: &random)
            let part = try file.readBytes(100_000, at: UInt64(start))
            let isSame = part == Array(bytes[start..<min(start + 100_000, bytes.count)])
            #expect(isSame)
        }
        #expect(try file.byteCount() == UInt64(bytes.count))
        let whole = try files.open("file", .read).readBytes(bytes.count + 1, at: 0)
        let isSame = whole == bytes
        #expect(isSame)
    }

    /// The part of a write that bypasses the cache consists of whole blocks, and of all of them.
    @Test func theMiddleIsAllWholeBlocks() throws {
        let file = open(directory.path.appending("file").string, O_RDWR | O_CREAT, 0o600)
        defer { close(file) }
        let writes = LargeWrites(to: file, LargeWrites.Limits(byteCountMin: 8192, alignment: 4096))
        guard !writes.middle(of: 8192, at: 0).isEmpty else {
            noteSkipped(
                "skipped: the file system of \(directory.path) cannot write past the page cache")
            return
        }
        #expect(writes.middle(of: 8191, at: 0).isEmpty)
        #expect(writes.middle(of: 8192, at: 0) == 0..<8192)
        #expect(writes.middle(of: 8192, at: 1) == 4095..<8191)
        #expect(writes.middle(of: 8192, at: 4095) == 1..<4097)
        #expect(writes.middle(of: 20_000, at: 100_000) == 2400..<18_784)
    }

    /// The middle of a large write is not in the page cache, its surroundings are.
    @Test func theMiddleLeavesTheCacheAlone() throws {
        let name = directory.path.appending("file")
        let files = PosixFiles(root: directory.path)
        let file = try files.open("file", .create)
        var random = TestSeed.generator(8_050)
        try file.write(LargeWritesTests.noise(1_000_000, &random), at: 0)
        let resident = try #require(LargeWritesTests.residentPages(name.string))
        let probe = LargeWrites(to: open(name.string, O_RDWR), LargeWrites.Limits())
        guard !probe.middle(of: 1 << 20, at: 0).isEmpty, resident.contains(false) else {
            // A file system in memory has only the cache.
            let isInMemory = resident.allSatisfy { $0 }
            #expect(isInMemory)
            noteSkipped(
                "skipped: the file system of \(directory.path) writes all through the cache")
            return
        }
        #expect(!resident[..<(1_000_000 / 4096)].contains(true))
        #expect(resident[1_000_000 / 4096])
    }

    /// Which pages of a file are in the page cache (`mincore(2)`).
    private static func residentPages(_ name: String) -> [Bool]? {
        let file = open(name, O_RDONLY)
        guard file >= 0 else { return nil }
        defer { close(file) }
        let byteCount = Int(lseek(file, 0, SEEK_END))
        guard let map = mmap(nil, byteCount, PROT_READ, MAP_SHARED, file, 0), map != MAP_FAILED
        else { return nil }
        defer { munmap(map, byteCount) }
        var pages = [UInt8](repeating: 0, count: (byteCount + 4095) / 4096)
        guard mincore(map, byteCount, &pages) == 0 else { return nil }
        return pages.map { $0 & 1 == 1 }
    }

    private static func noise(_ count: Int, _ random: inout SeededGenerator) -> [UInt8] {
        let seed = random.next()
        return (0..<count).map {
            UInt8(truncatingIfNeeded: (seed &+ UInt64($0)) &* 0x9e37_79b9 >> 13)
        }
    }
}
