import CheckpointFormat
import Foundation
import GuestModel
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// The kernel confirms that the buffers for pages are excluded from core dumps.
@Suite struct PageMemoryTests {
    /// True if all of the memory has flag `dd` in /proc/self/smaps; nil if it is not listed.
    private func isHidden(_ bytes: UnsafeRawBufferPointer) throws -> Bool? {
        guard let file = FileHandle(forReadingAtPath: "/proc/self/smaps") else { return nil }
        let text = String(decoding: file.readDataToEndOfFile(), as: UTF8.self)
        let wanted =
            UInt(bitPattern: bytes.baseAddress)..<UInt(bitPattern: bytes.baseAddress)
            + UInt(bytes.count)
        var found = wanted.lowerBound
        var range: Range<UInt>?
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            let ends = words[0].split(separator: "-").map { UInt($0, radix: 16) }
            if ends.count == 2, let start = ends[0], let end = ends[1] {
                range = start..<end
            } else if words[0] == "VmFlags:", let mapping = range, mapping.contains(found) {
                guard words.contains("dd") else {
                    print("\(mapping) has the flags \(line)")
                    return false
                }
                found = mapping.upperBound
                if found >= wanted.upperBound { return true }
            }
        }
        return false
    }

    private func expectHidden(_ bytes: UnsafeRawBufferPointer, _ what: String) throws {
        guard let isHidden = try isHidden(bytes) else {
            noteSkipped("skipped, flags of memory: /proc/self/smaps cannot be read")
            return
        }
        #expect(isHidden, "\(what)")
    }

    @Test func buffersOfPagesAreHidden() throws {
        let memory = PageMemory.allocate(byteCount: 100_000)
        defer { PageMemory.deallocate(memory) }
        #expect(memory.count == 100_000 && memory.allSatisfy { $0 == 0 })
        try expectHidden(UnsafeRawBufferPointer(memory), "allocated")
        let pool = try StagingPool(byteCount: 8 << 20)
        let slot = pool.take()
        try expectHidden(UnsafeRawBufferPointer(slot.bytes), "the staging pool")
        let read = PageBytes(byteCount: 10_000) { room in
            room.initializeMemory(as: UInt8.self, repeating: 7)
            return 9_000
        }
        #expect(read.count == 9_000 && read[100..<200].allSatisfy { $0 == 7 })
        try read[1_000..<9_000].withUnsafeBytes { try expectHidden($0, "bytes that were read") }
    }

    @Test func recordsOfPagesAreHidden() throws {
        var random = TestSeed.generator(1403)
        var pages = [UInt64](repeating: 0, count: 16 * 512)
        for index in pages.indices { pages[index] = random.next() }
        for level in [CompressionLevel.standard, .stored] {
            var records = RecordWriter()
            let compressor = try Compressor(level: level)
            for number in 0..<16 as Range<UInt32> {
                pages.withUnsafeBytes { bytes in
                    _ = PageGroupEncoder.append(
                        [PageBlockSource(bytes: bytes)], firstOrdinal: number * 16,
                        transaction: 1, compressor: compressor, to: &records)
                }
            }
            try records.withUnsafeBytes { try expectHidden($0, "records at \(level)") }
        }
    }
}
