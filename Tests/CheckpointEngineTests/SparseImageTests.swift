import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import LinuxGuest
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// An image with only some pages present; it counts the bytes read.
private final class SparseImage: ImageSource {
    let byteCount: Int
    /// Pages with contents, by number.
    let pages: [Int: [UInt8]]
    /// Ranges that may have data, ascending; the rest is holes.
    private let data: [Range<Int>]
    private let read = Atomic(0)

    /// - Parameter data: in bytes; every page with contents is in one of these ranges.
    init(pageCount: Int, _ pages: [Int: [UInt8]], data: [Range<Int>]) {
        byteCount = pageCount * Page.byteCount
        self.pages = pages
        self.data = data
    }

    var readByteCount: Int { read.load(ordering: .sequentiallyConsistent) }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        read.add(buffer.count, ordering: .sequentiallyConsistent)
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        for page in offset / Page.byteCount..<(offset + buffer.count) / Page.byteCount {
            guard let bytes = pages[page] else { continue }
            let start = page * Page.byteCount - offset
            UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Page.byteCount])
                .copyBytes(from: bytes)
        }
    }

    func nextData(from offset: Int) throws -> Range<Int>? {
        guard let next = data.first(where: { $0.upperBound > offset }) else { return nil }
        return max(offset, next.lowerBound)..<next.upperBound
    }

    func checkUnchanged() throws {}
}

/// The same image without information about holes: the oracle.
private struct PlainImage: ImageSource {
    let image: SparseImage
    var byteCount: Int { image.byteCount }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        try image.read(buffer, at: offset)
    }

    func checkUnchanged() throws {}
}

/// Holes of sparse images are not read, and give the same checkpoint as reading them.
@Suite struct SparseImageTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private static func page(_ random: inout SeededGenerator) -> [UInt8] {
        (0..<Page.byteCount / 8).flatMap { _ in
            withUnsafeBytes(of: random.next()) { Array($0) }
        }
    }

    /// Data ranges that begin and end anywhere, with zero pages among them.
    private static func image(
        pageCount: Int, _ random: inout SeededGenerator
    ) -> SparseImage {
        var data: [Range<Int>] = []
        var pages: [Int: [UInt8]] = [:]
        var position = Int.random(in: 0...200 * Page.byteCount, using: &random)
        while position < pageCount * Page.byteCount {
            let few = Bool.random(using: &random)
            let count = Int.random(in: 1...(few ? 9000 : 400 * Page.byteCount), using: &random)
            let end = min(position + count, pageCount * Page.byteCount)
            data.append(position..<end)
            // Whole pages only: a page that is partly a hole is read too.
            for number in position / Page.byteCount...(end - 1) / Page.byteCount
            where Int.random(in: 0..<40, using: &random) == 0 {
                pages[number] = page(&random)
            }
            position = end + Int.random(in: 1...(few ? 20_000 : 2 << 20), using: &random)
        }
        return SparseImage(pageCount: pageCount, pages, data: data)
    }

    @Test func isWhatReadingGives() throws {
        var random = TestSeed.generator(1050)
        let sparse = try Repository.create(at: directory.path.appending("sparse"))
        let plain = try Repository.create(at: directory.path.appending("plain"))
        var skipped = 0
        for round in 0..<(TestSeed.isLong ? 60 : 8) {
            // Every other image continues a history: data becomes a hole, and the reverse.
            let lineage = "web\(round / 4)"
            let image = SparseImageTests.image(pageCount: 3000 + round / 4 * 17, &random)
            let found = try sparse.importImage(image, lineage: LineageName(lineage))
            skipped += image.byteCount - image.readByteCount
            let expected = try plain.importImage(
                PlainImage(image: image), lineage: LineageName(lineage))
            #expect(found.root == expected.root, "round \(round)")
            #expect(found.pageCount == expected.pageCount)
            #expect(found.zeroPageCount == expected.zeroPageCount)
            #expect(found.changedPageCount == expected.changedPageCount)
            #expect(found.storedPageCount == expected.storedPageCount)
        }
        #expect(skipped > 16 << 20)
        #expect(try sparse.verify().isClean)
    }

    /// By counting, not by time: only existing data is read; 64 GiB in the long form.
    @Test func aLargeSparseImageIsHardlyRead() throws {
        var random = TestSeed.generator(1051)
        let repository = try Repository.create(at: directory.path.appending("store"))
        let pageCount = ((TestSeed.isLong ? 64 : 4) << 30) / Page.byteCount
        var pages: [Int: [UInt8]] = [:]
        for _ in 0..<10 {
            pages[Int.random(in: 0..<pageCount, using: &random)] = SparseImageTests.page(&random)
        }
        let data = pages.keys.sorted().map { $0 * Page.byteCount..<($0 + 1) * Page.byteCount }
        let image = SparseImage(pageCount: pageCount, pages, data: data)
        let checkpoint = try repository.importImage(image, lineage: "web")
        #expect(checkpoint.pageCount == pageCount)
        #expect(checkpoint.zeroPageCount == pageCount - pages.count)
        #expect(image.readByteCount <= pages.count * ImageReads.pageCountMax * Page.byteCount)
        for (number, expected) in pages {
            let reader = try VolumeReader(checkpoint, from: repository)
            var bytes = [UInt8](repeating: 0, count: Page.byteCount)
            var span = bytes.mutableSpan
            var destination = span.mutableBytes
            try reader.readBytes(at: UInt64(number * Page.byteCount), into: &destination)
            #expect(bytes == expected)
        }
    }

    private enum ImageReads {
        /// Pages that may be read for one page with contents: a short hole before it, and the page.
        static let pageCountMax = 65
    }

    /// A file with holes, as a guest.
    @Test func aSparseFileIsAGuestToo() throws {
        var random = TestSeed.generator(1052)
        let path = directory.path.appending("image").string
        let descriptor = open(path, O_RDWR | O_CREAT, 0o600)
        defer { close(descriptor) }
        #expect(ftruncate(descriptor, 3000 * Page.byteCount) == 0)
        var pages: [UInt64: [UInt8]] = [:]
        for number in [0, 7, 1500, 1501, 2999] {
            let page = SparseImageTests.page(&random)
            pages[UInt64(number)] = page
            #expect(pwrite(descriptor, page, page.count, number * Page.byteCount) == page.count)
        }
        let repository = try Repository.create(at: directory.path.appending("store"))
        let checkpoint = try CaptureSession(
            of: try ImageFile(reading: FilePath(path)), in: repository, lineage: "image"
        ).capture().checkpoint
        #expect(checkpoint.zeroPageCount == 2995)
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        let found = restored.with { $0.pages }
        #expect(pages.allSatisfy { found[$0.key] == $0.value })
        #expect(found.count { $0.value.contains { $0 != 0 } } == pages.count)
        // Truncated while it is open: an error, and no zeros.
        let cut = try ImageFile(reading: FilePath(path))
        #expect(ftruncate(descriptor, 100 * Page.byteCount) == 0)
        #expect(throws: GuestError.self) { try cut.memoryRoot() }
    }
}
