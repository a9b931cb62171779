// What seals a pack: one record of type `packIndex`, then a footer as the pack's last 32 bytes.
//
// The record's payload says where every record before it lies, so that the repository's index is
// rebuilt from it without reading pages:
//   varint  entries
//   then for each record, in order of offset (they follow each other without a gap):
//     u8      type
//     varint  payload bytes
//     zigzag  transaction, less that of the entry before
//     for a page frame besides:
//       varint  first ordinal
//       varint  blocks, then for each: varint stored bytes, varint pages
//
// Footer:
//   offset size
//        0    8  magic "VARVEEND"
//        8    4  offset of the index record
//       12    4  zero
//       16    8  pack number
//       24    4  zero
//       28    4  CRC-32C of bytes 0 to 27

/// The index of a pack: every record before it, in order.
package struct PackIndex: Hashable, Sendable {
    /// One record.
    package struct Entry: Hashable, Sendable {
        package let type: RecordType
        /// Byte offset of the record in the pack.
        package let offset: UInt32
        package let payloadCount: Int
        package let transaction: UInt64
        /// What a page frame holds; nil for other records.
        package let frame: PageFrameTable?

        package init(
            type: RecordType, offset: UInt32, payloadCount: Int, transaction: UInt64,
            frame: PageFrameTable?
        ) {
            precondition((type == .pageFrame) == (frame != nil), "page frames have tables")
            self.type = type
            self.offset = offset
            self.payloadCount = payloadCount
            self.transaction = transaction
            self.frame = frame
        }

        /// Offset of the record after this one.
        package var end: UInt32 {
            offset + UInt32(RecordHeader.recordByteCount(payload: payloadCount))
        }
    }

    package let entries: [Entry]

    package init(entries: [Entry]) {
        self.entries = entries
    }

    /// The payload of the index record.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: entries.count * 16)
        writer.writeVarint(UInt64(entries.count))
        var transaction: UInt64 = 0
        for entry in entries {
            writer.write(entry.type.rawValue)
            writer.writeVarint(UInt64(entry.payloadCount))
            writer.writeZigzag(Int64(bitPattern: entry.transaction &- transaction))
            transaction = entry.transaction
            guard let frame = entry.frame else { continue }
            writer.writeVarint(UInt64(frame.firstOrdinal))
            writer.writeVarint(UInt64(frame.blocks.count))
            for block in frame.blocks {
                writer.writeVarint(UInt64(block.byteCount))
                writer.writeVarint(UInt64(block.pageCount))
            }
        }
        return writer.bytes
    }

    /// Reads the payload of an index record that begins at `recordOffset` in its pack.
    package static func decode(
        _ payload: UnsafeRawBufferPointer, recordOffset: UInt32
    ) throws(FormatError) -> PackIndex {
        var reader = ByteReader(payload)
        // An entry takes at least 3 bytes, so the count cannot ask for more than the payload has.
        let count = try reader.readVarint(limit: payload.count / 3, "the number of entries")
        var entries: [Entry] = []
        entries.reserveCapacity(count)
        var offset = UInt32(Envelope.byteCount)
        var transaction: UInt64 = 0
        for _ in 0..<count {
            let entry = try decodeEntry(&reader, offset: offset, after: transaction)
            transaction = entry.transaction
            guard entry.end <= recordOffset else {
                throw FormatError(offset: reader.position, reason: "an entry ends past the index")
            }
            offset = entry.end
            entries.append(entry)
        }
        try reader.expectEnd()
        guard offset == recordOffset else {
            throw FormatError(offset: 0, reason: "the index does not cover the pack")
        }
        return PackIndex(entries: entries)
    }

    private static func decodeEntry(
        _ reader: inout ByteReader, offset: UInt32, after transaction: UInt64
    ) throws(FormatError) -> Entry {
        let start = reader.position
        let type = RecordType(rawValue: try reader.read(UInt8.self))
        guard RecordType.all.contains(type), type != .packIndex else {
            throw FormatError(offset: start, reason: "record type \(type.rawValue) is unknown")
        }
        let payloadCount = try reader.readVarint(
            limit: RecordHeader.payloadLimit, "a payload's length")
        let current = transaction &+ UInt64(bitPattern: try reader.readZigzag())
        var frame: PageFrameTable?
        if type == .pageFrame {
            let firstOrdinal = try reader.readVarint(limit: Int(UInt32.max), "an ordinal")
            let blockCount = try reader.readVarint(
                limit: PageFrameTable.pageLimit, "the number of blocks")
            var blocks: [PageFrameTable.Block] = []
            for _ in 0..<blockCount {
                let byteCount = try reader.readVarint(limit: 0xff_ffff, "a block's length")
                let pages = try reader.readVarint(
                    limit: PageFrameTable.pageLimit, "a block's pages")
                blocks.append(
                    PageFrameTable.Block(byteCount: UInt32(byteCount), pageCount: UInt8(pages)))
            }
            let table = PageFrameTable(firstOrdinal: UInt32(firstOrdinal), blocks: blocks)
            try table.check()
            guard table.payloadCount == payloadCount else {
                throw FormatError(offset: start, reason: "a page frame's blocks do not add up")
            }
            frame = table
        }
        return Entry(
            type: type, offset: offset, payloadCount: payloadCount, transaction: current,
            frame: frame)
    }
}

/// The last 32 bytes of a sealed pack.
package struct PackFooter: Hashable, Sendable {
    package static let byteCount = 32
    private static let magic = Array("VARVEEND".utf8)

    /// Offset of the index record.
    package let indexOffset: UInt32
    /// The pack's number, again.
    package let pack: UInt64

    package init(indexOffset: UInt32, pack: UInt64) {
        self.indexOffset = indexOffset
        self.pack = pack
    }

    /// The 32 bytes.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: PackFooter.byteCount)
        writer.write(raw: PackFooter.magic)
        writer.write(indexOffset)
        writer.writeZeros(4)
        writer.write(pack)
        writer.writeZeros(4)
        writer.write(writer.bytes.withUnsafeBytes { Checksum.crc32c($0) })
        return writer.bytes
    }

    /// Reads a footer; nil if the bytes are no footer at all.
    package static func decode(_ bytes: [UInt8]) throws(FormatError) -> PackFooter? {
        guard bytes.count == byteCount, bytes.starts(with: magic) else { return nil }
        return try ByteReader.decode(bytes) { (reader) throws(FormatError) -> PackFooter in
            var checked = reader
            let found = Checksum.crc32c(try checked.read(raw: byteCount - 4))
            guard try checked.read(UInt32.self) == found else {
                throw FormatError(offset: 28, reason: "the footer's checksum is wrong")
            }
            _ = try reader.read(UInt64.self)
            let indexOffset = try reader.read(UInt32.self)
            try reader.readZeros(4, "a reserved field of the footer")
            let pack = try reader.read(UInt64.self)
            try reader.readZeros(4, "a reserved field of the footer")
            return PackFooter(indexOffset: indexOffset, pack: pack)
        }
    }
}
