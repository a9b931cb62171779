import CheckpointFormat
import CheckpointStore
import SystemPackage
import Varve

// The pages of the guest's program (domu/dirtier.c) in checkpoints: `XenCases wrote` and `written`.

extension XenCases {
    /// Prints the guest program's count: the newest in its pages.
    static func wrote(_ store: String, _ name: String) throws {
        let repository = try Repository.open(at: FilePath(store), .reading)
        var pages = WrittenPages()
        try VolumeReader(repository.checkpoint(named: name), from: repository).read {
            pages.replace($0, $1)
        }
        print(pages.newestCount)
    }

    /// In each checkpoint of a lineage, every page of the guest's program holds what the guest had
    /// last written to it at one instant.
    ///
    /// The program writes its pages in turn and counts, so the highest count tells the contents of
    /// all of them. This is for checkpoints that another process takes: `compare` makes a full copy
    /// in the pause, and has to take them itself.
    static func written(_ store: String, _ lineage: String) throws {
        let repository = try Repository.open(at: FilePath(store), .reading)
        var pages = WrittenPages()
        var counts: [UInt64] = []
        var last: Checkpoint?
        for checkpoint in try repository.checkpoints(lineage: LineageName(lineage)) {
            let reader = try VolumeReader(checkpoint, from: repository)
            if let last {
                // All other pages are those of the one before, which was read.
                for range in try repository.difference(from: last, to: checkpoint) {
                    let bytes = UnsafeMutableRawBufferPointer.allocate(
                        byteCount: range.byteCount, alignment: Page.byteCount)
                    defer { bytes.deallocate() }
                    var span = bytes.mutableBytes
                    try reader.read(range, into: &span)
                    pages.replace([range], UnsafeRawBufferPointer(bytes))
                }
            } else {
                try reader.read { pages.replace($0, $1) }
            }
            last = checkpoint
            do {
                counts.append(try pages.check())
            } catch {
                throw Failed("checkpoint \(counts.count), \(checkpoint.id.short): \(error)")
            }
        }
        guard Set(counts).count > 1 else {
            throw Failed("the counts of writes in the checkpoints are \(counts)")
        }
        print(
            "# \(counts.count) checkpoints, in each every page as the guest wrote it; writes "
                + counts.map { "\($0)" }.joined(separator: ", "))
    }
}

/// The pages of the program that are found in one checkpoint.
struct WrittenPages {
    private struct Content {
        let index: UInt64
        let count: UInt64
        let sum: UInt64
        let isFilled: Bool
    }

    private static let magic = Array("XENRIG-PAGE-v1\n\0".utf8)
    /// By their frames.
    private var found: [UInt64: Content] = [:]

    /// Takes the contents of frames, in place of what they held before.
    mutating func replace(_ runs: [PageRange], _ contents: UnsafeRawBufferPointer) {
        var offset = 0
        for frame in runs.flatMap(\.frames) {
            found[UInt64(frame)] = WrittenPages.content(
                UnsafeRawBufferPointer(rebasing: contents[offset..<offset + Page.byteCount]))
            offset += Page.byteCount
        }
    }

    /// The number of writes that the program has counted.
    var newestCount: UInt64 { found.values.map(\.count).max() ?? 0 }

    /// A page of memory, if it is one of the program's.
    private static func content(_ bytes: UnsafeRawBufferPointer) -> Content? {
        guard bytes[..<16].elementsEqual(magic) else { return nil }
        let index = bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
        return Content(
            index: index, count: bytes.loadUnaligned(fromByteOffset: 24, as: UInt64.self),
            sum: bytes.loadUnaligned(fromByteOffset: 32, as: UInt64.self),
            isFilled: bytes[40...].allSatisfy { $0 == UInt8(truncatingIfNeeded: index) })
    }

    /// Throws unless all pages are of one instant.
    ///
    /// The guest may have been suspended between the two words that a write changes.
    ///
    /// - Returns: the number of writes until then.
    func check() throws -> UInt64 {
        // A page that the kernel has moved leaves an older one in free memory.
        let pages = Dictionary(found.values.map { ($0.index, $0) }) {
            $0.count > $1.count ? $0 : $1
        }
        let pageCount = UInt64(pages.count)
        let newest = newestCount
        guard pageCount > 1000, newest > 0 else {
            throw Failed("\(pageCount) pages of the program, and \(newest) writes")
        }
        // Write n goes to page (n - 1) modulo the number of pages.
        let last = (newest - 1) % pageCount
        var torn = 0
        for index in 0..<pageCount {
            guard let page = pages[index] else { throw Failed("page \(index) is missing") }
            let age = (last + pageCount - index) % pageCount
            let count = newest > age ? newest - age : 0
            guard page.count == count, page.isFilled else {
                throw Failed(
                    "page \(index) has count \(page.count), and must have \(count) of \(newest)"
                        + (page.isFilled ? "" : "; it is not filled with its number"))
            }
            if page.sum == WrittenPages.mix(index, count) { continue }
            let before = count > pageCount ? count - pageCount : 0
            let isBeingWritten =
                index == last && page.sum == WrittenPages.mix(index, before)
                || index == newest % pageCount && page.sum == WrittenPages.mix(index, newest + 1)
            torn += 1
            guard isBeingWritten, torn == 1 else {
                throw Failed("page \(index) with count \(count) has a wrong sum")
            }
        }
        return newest
    }

    /// `mix` of dirtier.c.
    private static func mix(_ first: UInt64, _ second: UInt64) -> UInt64 {
        let mixed = first &* 0x9E37_79B9_7F4A_7C15 ^ second &* 0xC2B2_AE3D_27D4_EB4F
        return mixed ^ mixed >> 29
    }
}
