import GuestModel

// A record: packs contain nothing else between their envelope and footer.
//
//   offset size
//        0    4  magic "VREC"
//        4    1  type
//        5    3  zero
//        8    4  size of the payload in bytes, L
//       12    4  confirmed: bytes of this pack that were known to be synced when the record was
//                written; set in publish, mark, forget, pruned and labels records, zero in
//                others
//       16    8  transaction number
//       24    4  address: 0 if equal to the offset; in a rewritten pack the offset that the record
//                had, or would have had, in the original pack (`PackIndex`)
//       28    4  CRC-32C of bytes 0 to 27, the payload and the padding
//       32    L  payload
//     32+L       zero padding up to a multiple of 8
//
// A damaged record before the highest `confirmed` of its pack is corruption. After it, it is what a
// crash left of a transaction that was never acknowledged.

/// The types of records; the numbers are those of the format and never change.
package struct RecordType: RawRepresentable, Hashable, Sendable {
    package let rawValue: UInt8

    package init(rawValue: UInt8) {
        self.rawValue = rawValue
    }

    /// Pages of one transaction: see `PageGroupTable`.
    package static let pageGroup = RecordType(rawValue: 1)
    /// A part of a page map: `MapPart`.
    package static let mapPart = RecordType(rawValue: 2)
    /// A part of a guest's state: see `GuestStateCoding`.
    package static let guestState = RecordType(rawValue: 3)
    /// A checkpoint: `Manifest`.
    ///
    /// The checkpoint exists once it is synced.
    package static let publish = RecordType(rawValue: 4)
    /// No payload: it only records what is confirmed.
    package static let mark = RecordType(rawValue: 5)
    /// The index that seals a pack: `PackIndex`.
    package static let packIndex = RecordType(rawValue: 6)
    /// Checkpoints that no longer exist: `ForgetRecord`.
    package static let forget = RecordType(rawValue: 7)
    /// Packs that were removed: `PrunedRecord`.
    package static let pruned = RecordType(rawValue: 8)
    /// Labels changed after publication: `LabelsRecord`.
    package static let labels = RecordType(rawValue: 9)

    package static let all: [RecordType] = [
        .pageGroup, .mapPart, .guestState, .publish, .mark, .packIndex, .forget, .pruned,
        .labels,
    ]

    /// True if the record is synced by itself and confirms what precedes it in its pack.
    package var isConfirming: Bool {
        [.publish, .mark, .forget, .pruned, .labels].contains(self)
    }
}

extension RecordType: CustomStringConvertible {
    /// The name used in messages.
    package var description: String {
        switch self {
        case .pageGroup: "page group"
        case .mapPart: "page map"
        case .guestState: "guest state"
        case .publish: "manifest"
        case .mark: "mark"
        case .packIndex: "pack index"
        case .forget: "forget record"
        case .pruned: "list of removed packs"
        case .labels: "labels record"
        default: "record of type \(rawValue)"
        }
    }
}

/// The fixed-size header of a record.
package struct RecordHeader: Hashable, Sendable {
    package static let byteCount = 32
    /// "VREC" as a little-endian number.
    package static let magic: UInt32 = 0x4345_5256
    /// Maximum payload size: no record makes a reader allocate more than this.
    package static let payloadLimit = 32 << 20
    /// Valid transaction numbers: enough for two thousand years of one every microsecond, and small
    /// enough that the next one never overflows.
    package static let transactions: ClosedRange<UInt64> = 1...1 << 56

    package let type: RecordType
    package let payloadCount: Int
    package let confirmed: UInt32
    package let transaction: UInt64
    /// The address by which references find it; 0: its offset.
    package let address: UInt32
    package let checksum: UInt32

    /// Distance from the start of this record to the next in bytes.
    package var recordByteCount: Int { RecordHeader.recordByteCount(payload: payloadCount) }

    /// Size in bytes of a record with a payload of the given size.
    package static func recordByteCount(payload: Int) -> Int {
        byteCount + (payload + 7) & ~7
    }

    /// Decodes a header and validates all but the checksum, which needs the payload.
    package init(_ bytes: UnsafeRawBufferPointer) throws(FormatError) {
        var reader = ByteReader(bytes)
        guard try reader.read(UInt32.self) == RecordHeader.magic else {
            throw FormatError(offset: 0, reason: "no record begins here")
        }
        let type = RecordType(rawValue: try reader.read(UInt8.self))
        guard RecordType.all.contains(type) else {
            throw FormatError(offset: 4, reason: "record type \(type.rawValue) is unknown")
        }
        try reader.readZeros(3, "a reserved field of the record")
        let count = Int(try reader.read(UInt32.self))
        guard count <= RecordHeader.payloadLimit else {
            throw FormatError(offset: 8, reason: "its length, \(count) bytes, is over the limit")
        }
        self.type = type
        payloadCount = count
        confirmed = try reader.read(UInt32.self)
        transaction = try reader.read(UInt64.self)
        guard transaction <= RecordHeader.transactions.upperBound else {
            throw FormatError(offset: 16, reason: "its transaction number is \(transaction)")
        }
        address = try reader.read(UInt32.self)
        checksum = try reader.read(UInt32.self)
    }

    /// Verifies the checksum of a whole record, including header and padding.
    package static func check(_ record: UnsafeRawBufferPointer) throws(FormatError) {
        let before = UnsafeRawBufferPointer(rebasing: record[..<28])
        let after = UnsafeRawBufferPointer(rebasing: record[byteCount...])
        let found = Checksum.crc32c(after, continuing: Checksum.crc32c(before))
        let expected = UInt32(
            littleEndian: record.loadUnaligned(fromByteOffset: 28, as: UInt32.self))
        guard found == expected else {
            throw FormatError(
                offset: 28,
                reason: "the checksum is 0x\(String(expected, radix: 16)), but the bytes give "
                    + "0x\(String(found, radix: 16))")
        }
    }
}

/// Builds consecutive records in one buffer.
///
/// From the first page group on, the buffer is in `PageMemory`.
package struct RecordWriter {
    /// Complete records with checksums; the bytes after `count` are undefined.
    ///
    /// Memory that records will overwrite is not cleared: that takes half as long as copying a
    /// page.
    private var room = PageBuffer(byteCount: 0, isHidden: false)
    /// Size of the records so far in bytes.
    package private(set) var count = 0

    /// A copy of the records so far.
    package var bytes: [UInt8] { withUnsafeBytes { Array($0) } }

    package init() {}

    /// Runs `body` with the records so far.
    package func withUnsafeBytes<T, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        defer { withExtendedLifetime(room) {} }
        return try body(UnsafeRawBufferPointer(rebasing: room.bytes[..<count]))
    }

    /// Empties the buffer but keeps its storage.
    package mutating func removeAll() {
        count = 0
    }

    /// Makes the buffer uniquely owned, with a capacity of at least `byteCount` bytes.
    private mutating func reserve(_ byteCount: Int, isHidden: Bool) {
        let isHidden = isHidden || room.isHidden
        if isKnownUniquelyReferenced(&room), room.bytes.count >= byteCount,
            room.isHidden == isHidden
        {
            return
        }
        let larger = PageBuffer(
            byteCount: max(byteCount, room.bytes.count * 2), isHidden: isHidden)
        larger.bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: room.bytes[..<count]))
        room = larger
    }

    /// Appends one record, whose payload `body` writes; the payload has at most `limit` bytes.
    ///
    /// - Returns: the record's bytes within the buffer.
    @discardableResult
    package mutating func append(
        _ type: RecordType, transaction: UInt64, confirmed: UInt32 = 0, address: UInt32 = 0,
        limit: Int, _ body: (UnsafeMutableRawBufferPointer) -> Int
    ) -> Range<Int> {
        let start = count
        let limitEnd = start + RecordHeader.recordByteCount(payload: limit)
        reserve(limitEnd, isHidden: type == .pageGroup)
        let record = UnsafeMutableRawBufferPointer(rebasing: room.bytes[start..<limitEnd])
        let payloadCount = body(
            UnsafeMutableRawBufferPointer(rebasing: record[RecordHeader.byteCount...]))
        precondition(
            payloadCount <= limit && payloadCount <= RecordHeader.payloadLimit, "payload too long")
        let total = RecordHeader.recordByteCount(payload: payloadCount)
        for index in RecordHeader.byteCount + payloadCount..<total { record[index] = 0 }
        record.storeBytes(of: RecordHeader.magic.littleEndian, as: UInt32.self)
        let kind = UInt32(type.rawValue).littleEndian
        record.storeBytes(of: kind, toByteOffset: 4, as: UInt32.self)
        record.storeBytes(of: UInt32(payloadCount).littleEndian, toByteOffset: 8, as: UInt32.self)
        record.storeBytes(of: confirmed.littleEndian, toByteOffset: 12, as: UInt32.self)
        record.storeBytes(of: transaction.littleEndian, toByteOffset: 16, as: UInt64.self)
        record.storeBytes(of: address.littleEndian, toByteOffset: 24, as: UInt32.self)
        let whole = UnsafeRawBufferPointer(rebasing: record[..<total])
        let head = Checksum.crc32c(UnsafeRawBufferPointer(rebasing: whole[..<28]))
        let rest = UnsafeRawBufferPointer(rebasing: whole[RecordHeader.byteCount...])
        let checksum = Checksum.crc32c(rest, continuing: head)
        record.storeBytes(of: checksum.littleEndian, toByteOffset: 28, as: UInt32.self)
        count = start + total
        return start..<count
    }

    /// Appends one record with a given payload.
    @discardableResult
    package mutating func append(
        _ type: RecordType, transaction: UInt64, confirmed: UInt32 = 0, address: UInt32 = 0,
        payload: [UInt8]
    ) -> Range<Int> {
        append(
            type, transaction: transaction, confirmed: confirmed, address: address,
            limit: payload.count
        ) {
            $0.copyBytes(from: payload)
            return payload.count
        }
    }
}
