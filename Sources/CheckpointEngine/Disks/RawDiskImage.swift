import GuestModel
import PackStore
import Synchronization

/// A raw image of a disk, to be imported.
public struct RawDiskImage: Sendable {
    /// The disk's name, as `GuestDisk.name`.
    public var name: String
    /// The image; its size, a multiple of the block size, is the disk's.
    public var source: any ImageSource
    /// The disk's logical block size in bytes: 512 or 4096.
    public var sectorByteCount: Int

    /// Names an image of a disk.
    public init(name: String, source: any ImageSource, sectorByteCount: Int = 512) {
        self.name = name
        self.source = source
        self.sectorByteCount = sectorByteCount
    }
}

/// The disks of an import.
final class ImageDisks: DiskSource {
    private let images: [RawDiskImage]
    private let control: WorkControl
    private let total: Int
    /// Bytes read so far, those of the memory included.
    private let done: Atomic<Int>

    init(_ images: [RawDiskImage], _ control: WorkControl, after done: Int, of total: Int) {
        self.images = images
        self.control = control
        self.total = total
        self.done = Atomic(done)
    }

    var disks: [GuestDisk] {
        images.map {
            GuestDisk(
                name: $0.name, byteCount: UInt64($0.source.byteCount),
                sectorByteCount: $0.sectorByteCount)
        }
    }

    var name: String { "" }

    /// Nil: an image does not say.
    func requestsUnderWay(ofDisk index: Int) -> Int? { nil }

    /// Nil: an image does not say what changed.
    func changedBlocks(ofDisk index: Int) -> [BlockRange]? { nil }

    func storedBlocks(ofDisk index: Int) throws -> [BlockRange] {
        let image = images[index].source
        var result: [BlockRange] = []
        var offset = 0
        while offset < image.byteCount, let data = try image.nextData(from: offset) {
            // At least the next byte, whatever the source says.
            let end = min(max(data.upperBound, data.lowerBound + 1, offset + 1), image.byteCount)
            let first = UInt64(min(max(data.lowerBound, offset), end - 1) / Page.byteCount)
            let blocks = first..<UInt64((end - 1) / Page.byteCount) + 1
            if let last = result.last, last.upperBound >= blocks.lowerBound {
                result[result.count - 1] = last.lowerBound..<blocks.upperBound
            } else {
                result.append(blocks)
            }
            offset = end
        }
        return result
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws {
        let image = images[index].source
        let offset = Int(blocks.lowerBound) * Page.byteCount
        let count = min(destination.count, image.byteCount - offset)
        try image.read(UnsafeMutableRawBufferPointer(rebasing: destination[..<count]), at: offset)
        UnsafeMutableRawBufferPointer(rebasing: destination[count...])
            .initializeMemory(as: UInt8.self, repeating: 0)
        let read = done.add(count, ordering: .relaxed).newValue
        try control.report(.reading, .bytes, read, of: total)
    }

    func checkUnchanged() throws {
        for image in images { try image.source.checkUnchanged() }
    }
}
