import Glibc

// Packs as bytes, read and written by the format's document and without the library's code: a
// forged store has right checksums, right lengths and a right seal, unless a forgery changes them.

/// A record of a pack, every field of which may have any value.
package struct ForgedRecord: Hashable, Sendable {
    package var type: UInt8
    package var reserved: [UInt8] = [0, 0, 0]
    package var confirmed: UInt32
    package var transaction: UInt64
    /// 0 in original packs.
    package var address: UInt32
    package var payload: [UInt8]
    /// The length that it states, if not the payload's.
    package var statedCount: UInt32?
    /// Its address when it was read, which references use; nil for an added record.
    var origin: UInt32?

    /// A new record.
    package init(type: UInt8, transaction: UInt64, payload: [UInt8]) {
        (self.type, self.transaction, self.payload) = (type, transaction, payload)
        (confirmed, address) = (0, 0)
    }

    init(_ bytes: ArraySlice<UInt8>, at offset: UInt32) {
        let start = bytes.startIndex
        let count = Int(Little.read(bytes, 8, 4))
        type = bytes[start + 4]
        reserved = Array(bytes[start + 5..<start + 8])
        confirmed = UInt32(Little.read(bytes, 12, 4))
        transaction = Little.read(bytes, 16, 8)
        address = UInt32(Little.read(bytes, 24, 4))
        payload = Array(bytes[start + 32..<start + 32 + count])
        origin = address == 0 ? offset : address
    }

    /// Its size in the file.
    package var byteCount: Int { 32 + (payload.count + 7) & ~7 }

    var bytes: [UInt8] {
        var head = Array("VREC".utf8) + [type] + reserved
        head += Little.bytes(UInt64(statedCount ?? UInt32(payload.count)), 4)
        head += Little.bytes(UInt64(confirmed), 4) + Little.bytes(transaction, 8)
        head += Little.bytes(UInt64(address), 4)
        let rest = payload + [UInt8](repeating: 0, count: (8 - payload.count % 8) % 8)
        return head + Little.bytes(UInt64(Castagnoli.checksum(head + rest)), 4) + rest
    }
}

/// A pack, every record of which may have any value.
package struct ForgedPack: Hashable, Sendable {
    /// The number in its file's name.
    package var number: UInt32
    /// The 60 bytes before the checksum.
    package var envelope: [UInt8]
    package var records: [ForgedRecord]
    package var isSealed: Bool
    /// The payload of the pack's index, instead of the right one.
    package var index: [UInt8]?
    /// The 28 bytes of the footer before its checksum, instead of the right ones.
    package var footer: [UInt8]?

    package init(_ bytes: [UInt8], number: UInt32) {
        self.number = number
        envelope = Array(bytes[..<60])
        records = []
        isSealed = bytes.suffix(32).starts(with: Array("VARVEEND".utf8))
        var offset = 64
        let end = bytes.count - (isSealed ? 32 : 0)
        while offset < end {
            let record = ForgedRecord(bytes[offset...], at: UInt32(offset))
            if record.type != 6 { records.append(record) }
            offset += record.byteCount
        }
    }

    /// True if its records have addresses of their own.
    package var isRewritten: Bool { envelope[40] & 4 != 0 }

    /// The file offset of each record.
    var offsets: [UInt32] {
        var offset: UInt32 = 64
        return records.map { record in
            defer { offset += UInt32(record.byteCount) }
            return offset
        }
    }

    package var bytes: [UInt8] {
        var bytes = envelope + Little.bytes(UInt64(Castagnoli.checksum(envelope)), 4)
        for record in records { bytes += record.bytes }
        guard isSealed else { return bytes }
        let indexOffset = UInt64(bytes.count)
        let seal = ForgedRecord(type: 6, transaction: 0, payload: index ?? rightIndex)
        bytes += seal.bytes
        let foot = footer ?? rightFooter(indexOffset)
        return bytes + foot + Little.bytes(UInt64(Castagnoli.checksum(foot)), 4)
    }

    package func rightFooter(_ indexOffset: UInt64) -> [UInt8] {
        Array("VARVEEND".utf8) + Little.bytes(indexOffset, 8) + Little.bytes(UInt64(number), 8)
            + Little.bytes(0, 4)
    }

    /// The payload of the pack's index.
    package var rightIndex: [UInt8] {
        var bytes = Varint.bytes(UInt64(records.count))
        var (transaction, address): (UInt64, Int64) = (0, 64)
        for record in records {
            bytes += [record.type] + Varint.bytes(UInt64(record.payload.count))
            bytes += Varint.zigzag(Int64(bitPattern: record.transaction &- transaction))
            transaction = record.transaction
            if isRewritten {
                bytes += Varint.zigzag(Int64(record.address) - address)
                address = Int64(record.address) + Int64(record.byteCount)
            }
            guard record.type == 1, record.payload.count >= 8 else { continue }
            bytes += Varint.bytes(Little.read(record.payload[...], 0, 4))
            let count = min(Int(record.payload[5]), (record.payload.count - 8) / 4)
            bytes += Varint.bytes(UInt64(count))
            for block in 0..<count {
                let field = Little.read(record.payload[...], 8 + 4 * block, 4)
                bytes += Varint.bytes(field & 0xff_ffff) + Varint.bytes(field >> 24)
            }
        }
        return bytes
    }
}

/// Numbers in little-endian order.
package enum Little {
    package static func read(_ bytes: ArraySlice<UInt8>, _ offset: Int, _ width: Int) -> UInt64 {
        let start = bytes.startIndex + offset
        return bytes[start..<start + width].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    package static func bytes(_ value: UInt64, _ width: Int) -> [UInt8] {
        (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }
}

/// Unsigned LEB128.
package enum Varint {
    package static func bytes(_ value: UInt64) -> [UInt8] {
        var (rest, bytes) = (value, [UInt8]())
        while rest >= 128 {
            bytes.append(UInt8(rest & 127) | 128)
            rest >>= 7
        }
        return bytes + [UInt8(rest)]
    }

    /// The first number in some bytes, as far as they have one.
    static func first(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        var value: UInt64 = 0
        for (index, byte) in bytes.prefix(10).enumerated() {
            value |= UInt64(byte & 127) << UInt64(7 * index)
            if byte < 128 { break }
        }
        return value
    }

    package static func zigzag(_ value: Int64) -> [UInt8] {
        bytes(UInt64(bitPattern: (value << 1) ^ (value >> 63)))
    }
}

/// CRC-32C, bit by bit over a table.
enum Castagnoli {
    private static let table: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in
            value & 1 == 0 ? value >> 1 : value >> 1 ^ 0x82f6_3b78
        }
    }

    static func checksum(_ bytes: [UInt8]) -> UInt32 {
        ~bytes.reduce(~0 as UInt32) { $0 >> 8 ^ table[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] }
    }
}
