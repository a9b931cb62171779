import CPageKernels
import GuestModel

// The payload of a page group record: up to 64 pages of one transaction, in blocks.
//
//   offset  size
//        0     4  ordinal of the first page within its transaction
//        4     1  pages, P: 1 to 64
//        5     1  blocks, B: 1 to P
//        6     2  zero
//        8   4*B  for each block: bits 0 to 23 its stored bytes, bits 24 to 31 its pages
//    8+4*B        the blocks, one after the other
//
// A block is pages that were adjacent in the guest, as one zstd frame; or, when that is no shorter,
// the pages themselves (stored bytes = 4096 * pages). One page can be read with its block alone.
// Ordinals count the pages that a transaction stores; its page maps name them (`MapPart`), so that
// no digest is written twice.

/// Where one page lies: within a block, within a pack.
package struct PageLocation: Hashable, Sendable {
    /// The pack's number.
    package var pack: UInt32
    /// Byte offset of the block in the pack.
    package var blockOffset: UInt32
    /// Stored bytes of the block.
    package var blockByteCount: UInt32
    /// Pages in the block: 1 to 64.
    package var blockPageCount: UInt8
    /// Which of them this page is.
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

    /// Bytes of a location in the index.
    package static let byteCount = 14
}

/// What a page group holds, without the pages.
package struct PageGroupTable: Hashable, Sendable {
    /// One block's size.
    package struct Block: Hashable, Sendable {
        package let byteCount: UInt32
        package let pageCount: UInt8

        package init(byteCount: UInt32, pageCount: UInt8) {
            self.byteCount = byteCount
            self.pageCount = pageCount
        }
    }

    /// Most pages a frame holds.
    ///
    /// The writer stops at 16.
    package static let pageLimit = 64

    /// The first page's ordinal within its transaction.
    package let firstOrdinal: UInt32
    /// The blocks in order.
    package let blocks: [Block]

    package init(firstOrdinal: UInt32, blocks: [Block]) {
        self.firstOrdinal = firstOrdinal
        self.blocks = blocks
    }

    /// Pages in all blocks.
    package var pageCount: Int { blocks.reduce(0) { $0 + Int($1.pageCount) } }

    /// Bytes of the payload before the first block.
    package var headByteCount: Int { 8 + 4 * blocks.count }

    /// Bytes of the whole payload.
    package var payloadCount: Int { blocks.reduce(headByteCount) { $0 + Int($1.byteCount) } }

    /// The locations of the pages, in ordinal order, for a frame whose record begins at `offset`.
    package func forEachLocation<E: Error>(
        pack: UInt32, recordOffset offset: UInt32, _ body: (PageLocation) throws(E) -> Void
    ) throws(E) {
        var blockOffset = offset + UInt32(RecordHeader.byteCount + headByteCount)
        for block in blocks {
            for slot in 0..<block.pageCount {
                try body(
                    PageLocation(
                        pack: pack, blockOffset: blockOffset, blockByteCount: block.byteCount,
                        blockPageCount: block.pageCount, slot: slot))
            }
            blockOffset += block.byteCount
        }
    }

    /// The payload up to the first block.
    package var encodedHead: [UInt8] {
        var writer = ByteWriter(reserving: headByteCount)
        writer.write(firstOrdinal)
        writer.write(UInt8(pageCount))
        writer.write(UInt8(blocks.count))
        writer.writeZeros(2)
        for block in blocks { writer.write(block.byteCount | UInt32(block.pageCount) << 24) }
        return writer.bytes
    }

    /// Reads the table at the head of a payload; `payloadCount` is the record's.
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
            let field = try reader.read(UInt32.self)
            blocks.append(
                Block(
                    byteCount: field & 0xff_ffff, pageCount: UInt8(truncatingIfNeeded: field >> 24))
            )
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

    /// The rules for a table from wherever it was read.
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

/// A block of a frame to be encoded: adjacent pages in memory.
package struct PageBlockSource {
    /// The pages; 1 to 16 times 4096 bytes.
    package let bytes: UnsafeRawBufferPointer

    package init(bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
    }

    /// Pages in the block.
    package var pageCount: Int { bytes.count / Page.byteCount }
}

/// Encodes page groups.
package enum PageGroupEncoder {
    /// Pages that the writer puts into one frame.
    package static let pageCount = 16
    /// Pages of the smallest block that is compressed at level 1 if that is the level.
    private static let tablePageCount = 4

    /// Appends one frame record.
    ///
    /// - Returns: the frame's table.
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
            precondition(pages <= PageGroupTable.pageLimit, "a frame holds at most 64 pages")
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

    /// Level 1 is for blocks that are worth a table of symbols: for a page or two its table takes
    /// longer to make and to read than the page, twice over, and saves a seventh (decision 0013).
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
        // Encrypted and compressed memory is known by its looks, six times as fast as by trying.
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
