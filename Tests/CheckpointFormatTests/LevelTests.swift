import CheckpointFormat
import GuestModel
import Testing
import VarveTestSupport

/// The level at which a block of a page group is compressed (decision 0013).
@Suite struct LevelTests {
    /// Words of 64 letters with uneven frequencies: an entropy coder compresses them.
    private static func pages(_ count: Int) -> [UInt8] {
        var random = TestSeed.generator(320)
        return (0..<count * Page.byteCount).map { _ in
            UInt8.random(in: 0..<64, using: &random) & UInt8.random(in: 0..<64, using: &random)
        }
    }

    private static func frame(_ pages: [UInt8], _ level: CompressionLevel) throws -> [UInt8] {
        let compressor = try Compressor(level: level)
        var records = RecordWriter()
        pages.withUnsafeBytes { bytes in
            _ = PageGroupEncoder.append(
                [PageBlockSource(bytes: bytes)], firstOrdinal: 0, transaction: 1,
                compressor: compressor, to: &records)
        }
        return records.bytes
    }

    @Test(arguments: [1, 2, 3]) func lonelyPagesHaveNoTableAtTheDefaultLevel(count: Int) throws {
        let pages = LevelTests.pages(count)
        let isFast = try LevelTests.frame(pages, .standard) == LevelTests.frame(pages, .fast)
        #expect(isFast)
    }

    @Test func moreOfThemHaveOne() throws {
        let pages = LevelTests.pages(4)
        let size = try LevelTests.frame(pages, .standard).count
        #expect(try size < LevelTests.frame(pages, .fast).count)
    }

    @Test func whoNamesALevelGetsIt() throws {
        let pages = LevelTests.pages(1)
        let size = try LevelTests.frame(pages, CompressionLevel(rawValue: 3)).count
        #expect(try size < LevelTests.frame(pages, .standard).count)
    }

    @Test func storedPagesAreThePages() throws {
        let pages = LevelTests.pages(16)
        let frame = try LevelTests.frame(pages, .stored)
        let isSame = Array(frame[(32 + 12)..<(32 + 12 + pages.count)]) == pages
        #expect(isSame)
    }

    @Test func levelsAreALadder() throws {
        var level = CompressionLevel(rawValue: 3)
        var ladder = [level.rawValue]
        while level != .stored {
            level = level.faster
            ladder.append(level.rawValue)
        }
        #expect(ladder == [3, 2, 1, -1, -2, -3, -4, -5, -6, -7, Int32.min])
        for _ in 1..<ladder.count { level = level.slower }
        #expect(level.rawValue == 3)
        #expect(CompressionLevel(rawValue: -20).faster == .stored)
    }
}
