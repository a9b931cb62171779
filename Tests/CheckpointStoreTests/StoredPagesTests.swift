import CheckpointFormat
import GuestModel
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import PackStore

/// What a transaction stored, by frame and by ordinal, beside plain dictionaries.
@Suite struct StoredPagesTests {
    private static func digest(_ number: UInt32) -> PageDigest {
        withUnsafeBytes(of: number) { PageDigest(hashing: $0) }
    }

    /// Frames of the memory and of two disks, some of them far apart.
    private static func frame(_ random: inout SeededGenerator) -> PageFrameNumber {
        let number = UInt64.random(in: 0..<300, using: &random)
        let base: UInt64 = [0, 32_600, 1 << 24].randomElement(using: &random) ?? 0
        let volume = VolumeNumber(UInt16.random(in: 0...2, using: &random))
        return PageFrameNumber(base + number, in: volume)
    }

    @Test func ordinalsAreFoundByFrame() {
        var random = TestSeed.generator(91)
        for _ in 0..<20 {
            var pages = StoredPages(disksIn: .process)
            var ordinals: [PageFrameNumber: UInt32] = [:]
            var orphans: [PageDigest: UInt32] = [:]
            for step in 0..<3000 {
                let frame = StoredPagesTests.frame(&random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0, 1:
                    let ordinal = step == 7 ? 0 : UInt32(step)
                    pages.insert(frame, ordinal: ordinal)
                    ordinals[frame] = ordinal
                case 2:
                    let digest = StoredPagesTests.digest(ordinals[frame] ?? 1_000_000)
                    pages.forget(frame, holding: digest)
                    if let ordinal = ordinals.removeValue(forKey: frame) {
                        orphans[digest] = ordinal
                    }
                default:
                    let number = UInt32.random(in: 0...3000, using: &random)
                    let digest = StoredPagesTests.digest(number)
                    #expect(pages.adopt(digest) == orphans.removeValue(forKey: digest))
                }
                #expect(pages.ordinal(frame) == ordinals[frame])
            }
            for (frame, ordinal) in ordinals { #expect(pages.ordinal(frame) == ordinal) }
        }
    }

    @Test func locationsAreFoundByOrdinal() {
        var random = TestSeed.generator(92)
        for _ in 0..<50 {
            var tables: [(table: PageGroupTable, location: RecordLocation)] = []
            var locations: [UInt32: PageLocation] = [:]
            var next: UInt32 = 0
            for number in 0..<UInt32(20) {
                // Pages of some ordinals are in no group.
                next += UInt32.random(in: 0...3, using: &random)
                let blocks = (0..<Int.random(in: 1...5, using: &random)).map { _ in
                    PageGroupTable.Block(
                        byteCount: UInt32.random(in: 1...4096, using: &random),
                        pageCount: UInt8.random(in: 1...12, using: &random))
                }
                let location = RecordLocation(pack: number % 3, offset: 64 + number * 100_000)
                let table = PageGroupTable(firstOrdinal: next, blocks: blocks)
                tables.append((table, location))
                table.forEachLocation(pack: location.pack, recordOffset: location.offset) {
                    locations[next] = $0
                    next += 1
                }
            }
            var groups = TransactionGroups()
            for (table, location) in tables.shuffled(using: &random) {
                groups.append(table, at: location)
            }
            #expect(groups.pageCount == locations.count)
            for _ in 0..<200 {
                let first = UInt32.random(in: 0...next + 3, using: &random)
                let count = Int.random(in: 0...150, using: &random)
                var found: [PageLocation?] = []
                groups.forEachLocation(from: first, count: count) { found.append($0) }
                #expect(found == (0..<count).map { locations[first + UInt32($0)] })
            }
        }
    }

    /// Each location by the sizes of the blocks before it, as the format defines it.
    @Test func locationsAreThoseOfTheFormat() {
        let table = PageGroupTable(
            firstOrdinal: 5,
            blocks: [.init(byteCount: 100, pageCount: 2), .init(byteCount: 30, pageCount: 1)])
        var found: [PageLocation] = []
        table.forEachLocation(pack: 7, recordOffset: 1000) { found.append($0) }
        let first = 1000 + UInt32(RecordHeader.byteCount) + 8 + 4 * 2
        #expect(
            found == [
                PageLocation(
                    pack: 7, blockOffset: first, blockByteCount: 100, blockPageCount: 2, slot: 0),
                PageLocation(
                    pack: 7, blockOffset: first, blockByteCount: 100, blockPageCount: 2, slot: 1),
                PageLocation(
                    pack: 7, blockOffset: first + 100, blockByteCount: 30, blockPageCount: 1,
                    slot: 0),
            ])
    }
}
