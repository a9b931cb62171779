// The seal of a pack: one record of type `packIndex`, then a footer as the pack's last 32 bytes.
//
// The record's payload locates every record before it, so that the repository's index can be
// rebuilt from it without reading pages:
//   varint  number of entries
//   then for each record, in order of offset (without gaps):
//     u8      type
//     varint  payload bytes
//     zigzag  transaction number, less that of the previous entry
//     in a rewritten pack also:
//       zigzag  address, less the end address of the previous record (64 at first)
//     for a page group also:
//       varint  first ordinal
//       varint  number of blocks, then for each: varint stored bytes, varint pages
//
// Footer:
//   offset size
//        0    8  magic "VARVEEND"
//        8    4  offset of the index record
//       12    4  zero
//       16    8  pack number
//       24    4  zero
//       28    4  CRC-32C of bytes 0 to 27
//
// References to a position in a pack stay valid when prune rewrites the pack: positions are
// addresses, and the index of a rewritten pack maps each address to its new offset. A page group
// that lost some blocks becomes one record for each run of blocks that were kept, with an address
// chosen so that its blocks keep theirs.

/// The index of a pack: every record before it, in order.
package struct PackIndex: Hashable, Sendable {
    /// One record.
    package struct Entry: Hashable, Sendable {
        package let type: RecordType
        /// Byte offset of the record in the pack.
        package let offset: UInt32
        package let payloadCount: Int
        package let transaction: UInt64
        /// The address by which references find the record: `offset`, unless the pack was
        /// rewritten.
        package let address: UInt32
        /// The table of a page group; nil for other records.
        package let frame: PageGroupTable?

        package init(
            type: RecordType, offset: UInt32, payloadCount: Int, transaction: UInt64,
            address: UInt32? = nil, frame: PageGroupTable?
        ) {
            precondition((type == .pageGroup) == (frame != nil), "page groups have tables")
            self.type = type
            self.offset = offset
            self.payloadCount = payloadCount
            self.transaction = transaction
            self.address = address ?? offset
            self.frame = frame
        }

        /// Offset of the record that follows.
        ///
        /// No pack contains a record that ends beyond 2^32.
        package var end: UInt32 {
            UInt32(
                clamping: UInt64(offset)
                    + UInt64(RecordHeader.recordByteCount(payload: payloadCount)))
        }

        /// Addresses that belong to this record: its blocks' if it is a page group, otherwise its
        /// own.
        ///
        /// These are ascending and disjoint in each pack, even if page groups were split.
        package var addresses: Range<UInt64> {
            guard let frame else {
                return UInt64(address)..<UInt64(address) + UInt64(end - offset)
            }
            let head = RecordHeader.byteCount + frame.headByteCount
            let first = UInt64(address) + UInt64(head)
            return first..<first + UInt64(frame.payloadCount - frame.headByteCount)
        }
    }

    package let entries: [Entry]
    /// True if prune rewrote the pack.
    package let isRewritten: Bool

    package init(entries: [Entry], isRewritten: Bool = false) {
        precondition(
            isRewritten || entries.allSatisfy { $0.address == $0.offset },
            "only a rewritten pack has addresses that differ from offsets")
        self.entries = entries
        self.isRewritten = isRewritten
    }

    /// Encodes the payload of the index record.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: entries.count * 16)
        writer.writeVarint(UInt64(entries.count))
        var transaction: UInt64 = 0
        var address = Int64(Envelope.byteCount)
        for entry in entries {
            writer.write(entry.type.rawValue)
            writer.writeVarint(UInt64(entry.payloadCount))
            writer.writeZigzag(Int64(bitPattern: entry.transaction &- transaction))
            transaction = entry.transaction
            if isRewritten {
                writer.writeZigzag(Int64(entry.address) - address)
                address = Int64(entry.address) + Int64(entry.end - entry.offset)
            }
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

    /// Decodes the payload of an index record that begins at `recordOffset` in its pack.
    package static func decode(
        _ payload: UnsafeRawBufferPointer, recordOffset: UInt32, isRewritten: Bool
    ) throws(FormatError) -> PackIndex {
        var reader = ByteReader(payload)
        // An entry takes at least 3 bytes, and its record 32: the count is limited by both.
        let count = try reader.readVarint(
            limit: min(payload.count / 3, Int(recordOffset) / RecordHeader.byteCount),
            "the number of entries")
        var entries: [Entry] = []
        entries.reserveCapacity(count)
        var offset = UInt32(Envelope.byteCount)
        var context = Context(isRewritten: isRewritten)
        for _ in 0..<count {
            let entry = try decodeEntry(&reader, offset: offset, &context)
            // An end beyond 2^32 is clamped to that, and the index record itself lies below it.
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
        return PackIndex(entries: entries, isRewritten: isRewritten)
    }

    /// State for decoding values that are relative to the previous entry.
    private struct Context {
        let isRewritten: Bool
        var transaction: UInt64 = 0
        /// The end address of the previous record.
        var address = Int64(Envelope.byteCount)
        /// The end of the previous record's address range.
        var addressEnd = UInt64(Envelope.byteCount)
    }

    private static func decodeEntry(
        _ reader: inout ByteReader, offset: UInt32, _ context: inout Context
    ) throws(FormatError) -> Entry {
        let start = reader.position
        let type = RecordType(rawValue: try reader.read(UInt8.self))
        guard RecordType.all.contains(type), type != .packIndex else {
            throw FormatError(offset: start, reason: "record type \(type.rawValue) is unknown")
        }
        let payloadCount = try reader.readVarint(
            limit: RecordHeader.payloadLimit, "the payload length")
        context.transaction &+= UInt64(bitPattern: try reader.readZigzag())
        guard context.transaction <= RecordHeader.transactions.upperBound else {
            throw FormatError(
                offset: start, reason: "a transaction number is \(context.transaction)")
        }
        var address = offset
        if context.isRewritten {
            let (value, overflow) = context.address.addingReportingOverflow(
                try reader.readZigzag())
            guard !overflow, let exact = UInt32(exactly: value) else {
                throw FormatError(offset: start, reason: "an address is out of range")
            }
            address = exact
        }
        var frame: PageGroupTable?
        if type == .pageGroup {
            let firstOrdinal = try reader.readVarint(limit: Int(UInt32.max), "the ordinal")
            let blockCount = try reader.readVarint(
                limit: PageGroupTable.pageLimit, "the number of blocks")
            var blocks: [PageGroupTable.Block] = []
            for _ in 0..<blockCount {
                let byteCount = try reader.readVarint(limit: 0xff_ffff, "the length of a block")
                let pages = try reader.readVarint(
                    limit: PageGroupTable.pageLimit, "the number of pages in a block")
                blocks.append(
                    PageGroupTable.Block(byteCount: UInt32(byteCount), pageCount: UInt8(pages)))
            }
            let table = PageGroupTable(firstOrdinal: UInt32(firstOrdinal), blocks: blocks)
            try table.check()
            guard table.payloadCount == payloadCount else {
                throw FormatError(offset: start, reason: "a page group's blocks do not add up")
            }
            frame = table
        }
        let entry = Entry(
            type: type, offset: offset, payloadCount: payloadCount,
            transaction: context.transaction, address: address, frame: frame)
        if context.isRewritten {
            guard entry.addresses.lowerBound >= context.addressEnd,
                entry.addresses.upperBound <= UInt64(UInt32.max)
            else { throw FormatError(offset: start, reason: "addresses do not ascend") }
            context.address = Int64(address) + Int64(entry.end - entry.offset)
            context.addressEnd = entry.addresses.upperBound
        }
        return entry
    }
}

/// The last 32 bytes of a sealed pack.
package struct PackFooter: Hashable, Sendable {
    package static let byteCount = 32
    private static let magic = Array("VARVEEND".utf8)

    /// Offset of the index record.
    package let indexOffset: UInt32
    /// The pack's number, repeated.
    package let pack: UInt64

    package init(indexOffset: UInt32, pack: UInt64) {
        self.indexOffset = indexOffset
        self.pack = pack
    }

    /// The encoded 32 bytes.
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

    /// Decodes a footer; nil if the bytes are not a footer.
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
