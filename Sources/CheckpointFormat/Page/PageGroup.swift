import CPageKernels
import GuestModel

// The payload of a page group record: up to 64 pages of one transaction, in blocks.
//
//   offset  size
//        0     4  ordinal of the first page within its transaction
//        4     1  number of pages, P: 1 to 64
//        5     1  number of blocks, B: 1 to P
//        6     2  zero
//        8   4*B  for each block: bits 0 to 23 stored size in bytes, bits 24 to 31 number of pages
//    8+4*B        the blocks, consecutively
//
// A block is a run of pages that were adjacent in the guest, as one zstd frame; or, if that is not
// shorter, the raw pages (stored size = 4096 * pages). Reading one page requires only its block.
// Ordinals number the pages that a transaction stores; its page maps refer to them (`MapPart`), so
// that no digest is stored twice.

/// The location of a page: within a block, within a pack.
package struct PageLocation: Hashable, Sendable {
    /// The pack's number.
    package var pack: UInt32
    /// Byte offset of the block in the pack.
    package var blockOffset: UInt32
    /// Stored size of the block in bytes.
    package var blockByteCount: UInt32
    /// Number of pages in the block: 1 to 64.
    package var blockPageCount: UInt8
    /// Index of this page in the block.
    package var slot: UInt8

    package init(
        pack: UInt32, blockOffset: UInt32, blockByteCount: UInt32, blockPageCount: UInt8,
        slot: UInt8
    ) {
        self.pack = pack
        self.blockOffset = blockOffset
        self.blockByteCount = blockByteCount
        self.blockPageCount = blockPageCount
        self.slot = slot
    }

    /// Size of a location in the index in bytes.
    package static let byteCount = 14
}

/// The structure of a page group, without the pages.
package struct PageGroupTable: Hashable, Sendable {
    /// The sizes of one block, as stored.
    package struct Block: Hashable, Sendable {
        fileprivate let field: UInt32

        package init(byteCount: UInt32, pageCount: UInt8) {
            precondition(byteCount < 1 << 24, "a block has at most 64 pages")
            field = byteCount | UInt32(pageCount) << 24
        }

        fileprivate init(field: UInt32) { self.field = field }

        package var byteCount: UInt32 { field & 0xff_ffff }
        package var pageCount: UInt8 { UInt8(truncatingIfNeeded: field >> 24) }
    }

    /// Maximum number of pages in a page group.
    ///
    /// The writer uses at most 16.
    package static let pageLimit = 64

    /// The first page's ordinal within its transaction.
    package let firstOrdinal: UInt32
    /// The blocks in order.
    package let blocks: [Block]

    package init(firstOrdinal: UInt32, blocks: [Block]) {
        self.firstOrdinal = firstOrdinal
        self.blocks = blocks
    }

    /// Number of pages in all blocks.
    package var pageCount: Int { blocks.reduce(0) { $0 + Int($1.pageCount) } }

    /// Size of the payload before the first block in bytes.
    package var headByteCount: Int { PageGroupTable.headByteCount(blocks.count) }

    private static func headByteCount(_ blockCount: Int) -> Int { 8 + 4 * blockCount }

    /// Size of the whole payload in bytes.
    package var payloadCount: Int { blocks.reduce(headByteCount) { $0 + Int($1.byteCount) } }

    /// Calls `body` with the locations of the pages, in ordinal order, for a record at `offset`.
    package func forEachLocation<E: Error>(
        pack: UInt32, recordOffset offset: UInt32, _ body: (PageLocation) throws(E) -> Void
    ) throws(E) {
        try PageGroupTable.forEachLocation(
            of: 0..<pageCount, in: blocks[...], pack: pack, recordOffset: offset, body)
    }

    /// The same for some pages of the blocks of a table, by their positions in it.
    package static func forEachLocation<E: Error>(
        of pages: Range<Int>, in blocks: ArraySlice<Block>, pack: UInt32,
        recordOffset offset: UInt32, _ body: (PageLocation) throws(E) -> Void
    ) throws(E) {
        var blockOffset = offset + UInt32(RecordHeader.byteCount + headByteCount(blocks.count))
        var first = 0
        for block in blocks {
            guard first < pages.upperBound else { return }
            let end = first + Int(block.pageCount)
            var page = max(first, pages.lowerBound)
            while page < min(end, pages.upperBound) {
                try body(
                    PageLocation(
                        pack: pack, blockOffset: blockOffset, blockByteCount: block.byteCount,
                        blockPageCount: block.pageCount, slot: UInt8(page - first)))
                page += 1
            }
            blockOffset += block.byteCount
            first = end
        }
    }

    /// The payload up to the first block.
    package var encodedHead: [UInt8] {
        var writer = ByteWriter(reserving: headByteCount)
        writer.write(firstOrdinal)
        writer.write(UInt8(pageCount))
        writer.write(UInt8(blocks.count))
        writer.writeZeros(2)
        for block in blocks { writer.write(block.field) }
        return writer.bytes
    }

    /// Decodes the table at the start of a payload; `payloadCount` is the record's payload size.
    package static func decode(
        _ payload: UnsafeRawBufferPointer, payloadCount: Int
    ) throws(FormatError) -> PageGroupTable {
        var reader = ByteReader(payload)
        let firstOrdinal = try reader.read(UInt32.self)
        let pageCount = Int(try reader.read(UInt8.self))
        let blockCount = Int(try reader.read(UInt8.self))
        try reader.readZeros(2, "a reserved field of the page group")
        var blocks: [Block] = []
        blocks.reserveCapacity(blockCount)
        for _ in 0..<blockCount {
            blocks.append(Block(field: try reader.read(UInt32.self)))
        }
        let table = PageGroupTable(firstOrdinal: firstOrdinal, blocks: blocks)
        try table.check()
        guard table.pageCount == pageCount else {
            throw FormatError(offset: 4, reason: "its blocks do not hold the pages it claims")
        }
        guard table.payloadCount == payloadCount else {
            throw FormatError(offset: 8, reason: "its blocks do not add up to its length")
        }
        return table
    }

    /// Validates a table from any source.
    package func check() throws(FormatError) {
        guard !blocks.isEmpty, pageCount <= PageGroupTable.pageLimit else {
            throw FormatError(
                offset: 4, reason: "it has \(blocks.count) blocks, \(pageCount) pages")
        }
        guard UInt64(firstOrdinal) + UInt64(pageCount) <= UInt64(UInt32.max) else {
            throw FormatError(offset: 0, reason: "its ordinals begin at \(firstOrdinal)")
        }
        for block in blocks {
            guard block.pageCount > 0, block.byteCount > 0,
                Int(block.byteCount) <= Int(block.pageCount) * Page.byteCount
            else {
                throw FormatError(
                    offset: 8,
                    reason: "a block of \(block.pageCount) pages has \(block.byteCount) bytes")
            }
        }
    }
}

/// A block to be encoded: adjacent pages in memory.
package struct PageBlockSource {
    /// The pages; 1 to 16 times 4096 bytes.
    package let bytes: UnsafeRawBufferPointer

    package init(bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
    }

    /// Number of pages in the block.
    package var pageCount: Int { bytes.count / Page.byteCount }
}

/// Encodes page groups.
package enum PageGroupEncoder {
    /// Number of pages that the writer puts into one page group.
    package static let pageCount = 16
    /// At the standard level, smaller blocks than this many pages are compressed at level -1.
    private static let tablePageCount = 4

    /// Appends one page group record.
    ///
    /// - Returns: the page group's table.
    package static func append(
        _ blocks: [PageBlockSource], firstOrdinal: UInt32, transaction: UInt64,
        compressor: borrowing Compressor, to records: inout RecordWriter
    ) -> PageGroupTable {
        let head = 8 + 4 * blocks.count
        let limit = blocks.reduce(head) {
            $0 + max($1.bytes.count, Compressor.bound($1.bytes.count))
        }
        var sizes: [PageGroupTable.Block] = []
        sizes.reserveCapacity(blocks.count)
        records.append(.pageGroup, transaction: transaction, limit: limit) { payload in
            var end = head
            for block in blocks {
                let rest = UnsafeMutableRawBufferPointer(rebasing: payload[end...])
                let stored = store(block, compressor: compressor, into: rest)
                sizes.append(
                    PageGroupTable.Block(
                        byteCount: UInt32(stored), pageCount: UInt8(block.pageCount)))
                end += stored
            }
            let pages = sizes.reduce(0) { $0 + Int($1.pageCount) }
            precondition(pages <= PageGroupTable.pageLimit, "a page group holds at most 64 pages")
            payload.storeBytes(of: firstOrdinal.littleEndian, as: UInt32.self)
            payload.storeBytes(of: UInt8(pages), toByteOffset: 4, as: UInt8.self)
            payload.storeBytes(of: UInt8(blocks.count), toByteOffset: 5, as: UInt8.self)
            payload.storeBytes(of: 0, toByteOffset: 6, as: UInt16.self)
            for (index, size) in sizes.enumerated() {
                let field = size.byteCount | UInt32(size.pageCount) << 24
                payload.storeBytes(
                    of: field.littleEndian, toByteOffset: 8 + 4 * index, as: UInt32.self)
            }
            return end
        }
        return PageGroupTable(firstOrdinal: firstOrdinal, blocks: sizes)
    }

    /// Level 1 pays off for blocks that are worth a symbol table: for a page or two, building and
    /// reading the table takes twice as long as the page itself, and saves a seventh (decision
    /// 0013).
    private static func level(
        of block: PageBlockSource, _ compressor: borrowing Compressor
    ) -> CompressionLevel {
        block.pageCount < tablePageCount && compressor.level == .standard
            ? .fast : compressor.level
    }

    private static func store(
        _ block: PageBlockSource, compressor: borrowing Compressor,
        into rest: UnsafeMutableRawBufferPointer
    ) -> Int {
        let bytes = block.bytes
        // Encrypted and compressed memory is recognized by a sample, six times as fast as by
        // trying.
        if compressor.level != .stored, !ckernels_is_incompressible(bytes.baseAddress, bytes.count),
            let count = compressor.compress(bytes, at: level(of: block, compressor), into: rest)
        {
            return count
        }
        rest.copyMemory(from: bytes)
        return block.bytes.count
    }
}

/// Decodes blocks of page groups.
package enum PageBlock {
    /// Fills `pages` from a stored block.
    package static func decode(
        _ stored: UnsafeRawBufferPointer, decompressor: borrowing Decompressor,
        into pages: UnsafeMutableRawBufferPointer
    ) throws(FormatError) {
        if stored.count == pages.count {
            pages.copyMemory(from: stored)
        } else {
            try decompressor.decompress(stored, into: pages)
        }
    }
}
