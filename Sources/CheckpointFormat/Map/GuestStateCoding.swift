package import GuestModel

// A guest's state as bytes, divided into parts of at most 16 MiB, each the payload of a
// `guestState` record:
//   u32     records
//   then for each: u16 length and UTF-8 of its kind, u64 length and bytes of its state

/// Converts `GuestState` to bytes and back.
package enum GuestStateCoding {
    /// Maximum size of a part in bytes.
    package static let partByteCountMax = 16 << 20

    /// Encodes the state as one sequence of bytes.
    package static func encode(_ state: GuestState) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(UInt32(state.records.count))
        for record in state.records {
            writer.write(text: record.kind)
            writer.write(UInt64(record.bytes.count))
            writer.write(raw: record.bytes)
        }
        return writer.bytes
    }

    /// Decodes the output of `encode`.
    package static func decode(_ bytes: [UInt8]) throws(FormatError) -> GuestState {
        try ByteReader.decode(bytes) { (reader) throws(FormatError) -> GuestState in
            let count = Int(try reader.read(UInt32.self))
            guard count <= reader.remaining / 10 else {
                throw FormatError(offset: 0, reason: "\(count) records do not fit the state")
            }
            var records: [GuestState.Record] = []
            for _ in 0..<count {
                let kind = try reader.readText()
                let length = try reader.read(UInt64.self)
                guard length <= UInt64(reader.remaining) else {
                    throw FormatError(
                        offset: reader.position, reason: "a state record is truncated")
                }
                let field = try reader.read(raw: Int(length))
                records.append(GuestState.Record(kind: kind, bytes: Array(field)))
            }
            try reader.expectEnd()
            return GuestState(records: records)
        }
    }
}
