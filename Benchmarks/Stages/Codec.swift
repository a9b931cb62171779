public import CheckpointFormat
import GuestModel

/// Encoding and decoding of page groups, on one thread.
public struct FrameCodec: ~Copyable {
    private let compressor: Compressor
    private let decompressor: Decompressor
    private var records = RecordWriter()

    /// Creates one thread's encoder and decoder.
    public init(level: CompressionLevel = .standard) {
        do {
            compressor = try Compressor(level: level)
            decompressor = try Decompressor()
        } catch {
            preconditionFailure("no memory is left: \(error)")
        }
    }

    /// Bytes of memory in a full page group.
    public static var frameByteCount: Int { PageGroupEncoder.pageCount * Page.byteCount }

    /// Encodes pages that are adjacent in the guest as page groups; each group's bytes are dropped.
    ///
    /// - Returns: bytes of the records.
    public mutating func encode(_ pages: UnsafeRawBufferPointer) -> Int {
        var total = 0
        for offset in stride(from: 0, to: pages.count, by: FrameCodec.frameByteCount) {
            records.removeAll()
            append(pages, offset)
            total += records.count
        }
        return total
    }

    /// Encodes pages and keeps the blocks.
    public mutating func blocks(_ pages: UnsafeRawBufferPointer) -> EncodedBlocks {
        var blocks = EncodedBlocks()
        for offset in stride(from: 0, to: pages.count, by: FrameCodec.frameByteCount) {
            records.removeAll()
            let table = append(pages, offset)
            let head = RecordHeader.byteCount + table.headByteCount
            for block in table.blocks {
                blocks.ranges.append(
                    blocks.bytes.count..<blocks.bytes.count + Int(block.byteCount))
                blocks.pageCounts.append(Int(block.pageCount))
                records.withUnsafeBytes {
                    blocks.bytes.append(contentsOf: $0[head..<head + Int(block.byteCount)])
                }
            }
        }
        return blocks
    }

    @discardableResult
    private mutating func append(_ pages: UnsafeRawBufferPointer, _ offset: Int) -> PageGroupTable {
        let end = min(pages.count, offset + FrameCodec.frameByteCount)
        let block = PageBlockSource(bytes: UnsafeRawBufferPointer(rebasing: pages[offset..<end]))
        return PageGroupEncoder.append(
            [block], firstOrdinal: 0, transaction: 1, compressor: compressor, to: &records)
    }

    /// Decodes blocks one after the other into a buffer for one page group.
    public borrowing func decode(
        _ blocks: EncodedBlocks, into room: UnsafeMutableRawBufferPointer
    ) throws {
        try blocks.bytes.withUnsafeBytes { bytes in
            for (range, count) in zip(blocks.ranges, blocks.pageCounts) {
                try PageBlock.decode(
                    UnsafeRawBufferPointer(rebasing: bytes[range]), decompressor: decompressor,
                    into: UnsafeMutableRawBufferPointer(
                        rebasing: room[..<(count * Page.byteCount)]))
            }
        }
    }
}

/// Stored blocks of page groups in memory.
public struct EncodedBlocks: Sendable {
    /// All blocks, one after the other.
    public fileprivate(set) var bytes: [UInt8] = []
    fileprivate var ranges: [Range<Int>] = []
    fileprivate var pageCounts: [Int] = []
}
