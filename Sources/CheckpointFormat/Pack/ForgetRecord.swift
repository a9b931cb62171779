package import GuestModel

// The payload of a forget record. Once it is synced, the checkpoints that it lists do not exist.
//
//   offset size
//        0    8  time, nanoseconds since 1970 (signed)
//        8    4  number of checkpoints, C
//       12    4  zero
//       16 32*C  their IDs

/// The record that makes checkpoints cease to exist.
package struct ForgetRecord: Hashable, Sendable {
    /// Maximum number of IDs in one record.
    package static let idCountMax = 1 << 19

    package let timeNanoseconds: Int64
    package let ids: [PageDigest]

    package init(timeNanoseconds: Int64, ids: [PageDigest]) {
        precondition(ids.count <= ForgetRecord.idCountMax, "a record holds at most 16 MiB of IDs")
        self.timeNanoseconds = timeNanoseconds
        self.ids = ids
    }

    /// Encodes the payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 16 + ids.count * PageDigest.byteCount)
        writer.write(timeNanoseconds)
        writer.write(UInt32(ids.count))
        writer.writeZeros(4)
        for id in ids { writer.write(id) }
        return writer.bytes
    }

    /// Decodes a payload.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> ForgetRecord {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> ForgetRecord in
            let time = try reader.read(Int64.self)
            let count = Int(try reader.read(UInt32.self))
            try reader.readZeros(4, "a reserved field of the forget record")
            guard count <= idCountMax, reader.remaining == count * PageDigest.byteCount else {
                throw FormatError(offset: 8, reason: "\(count) IDs do not fit the record")
            }
            var ids: [PageDigest] = []
            ids.reserveCapacity(count)
            for _ in 0..<count { ids.append(try reader.readDigest()) }
            return ForgetRecord(timeNanoseconds: time, ids: ids)
        }
    }
}
