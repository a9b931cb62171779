package import GuestModel

// The payload of a forget record. When it is synced, the checkpoints that it names do not exist.
//
//   offset size
//        0    8  when, nanoseconds since 1970 (signed)
//        8    4  checkpoints, C
//       12    4  zero
//       16 32*C  their ids

/// The record that makes checkpoints cease to exist.
package struct ForgetRecord: Hashable, Sendable {
    /// Ids that one record holds at most.
    package static let idCountMax = 1 << 19

    package let timeNanoseconds: Int64
    package let ids: [PageDigest]

    package init(timeNanoseconds: Int64, ids: [PageDigest]) {
        precondition(ids.count <= ForgetRecord.idCountMax, "a record holds 16 MiB of ids")
        self.timeNanoseconds = timeNanoseconds
        self.ids = ids
    }

    /// The payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 16 + ids.count * PageDigest.byteCount)
        writer.write(timeNanoseconds)
        writer.write(UInt32(ids.count))
        writer.writeZeros(4)
        for id in ids { writer.write(id) }
        return writer.bytes
    }

    /// Reads a payload.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> ForgetRecord {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> ForgetRecord in
            let time = try reader.read(Int64.self)
            let count = Int(try reader.read(UInt32.self))
            try reader.readZeros(4, "a reserved field of the forget record")
            guard count <= idCountMax, reader.remaining == count * PageDigest.byteCount else {
                throw FormatError(offset: 8, reason: "\(count) ids do not fill the record")
            }
            var ids: [PageDigest] = []
            ids.reserveCapacity(count)
            for _ in 0..<count { ids.append(try reader.readDigest()) }
            return ForgetRecord(timeNanoseconds: time, ids: ids)
        }
    }
}
