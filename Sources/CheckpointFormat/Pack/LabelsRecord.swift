package import GuestModel

// The payload of a labels record: labels that were set on checkpoints, or removed, after these were
// published. They take effect once the record is synced. If several records list one checkpoint,
// the last in pack order counts; without one, the manifest's own label counts.
//
//   offset size
//        0    8  time, nanoseconds since 1970 (signed)
//        8    4  number of changes, C
//       12    4  zero
//       16       C times: ID (32), length of the label (u16), label (UTF-8; empty: no label)

/// The record that changes labels of existing checkpoints.
package struct LabelsRecord: Hashable, Sendable {
    /// Maximum number of changes in one record: with the longest labels they fit in a payload.
    package static let changeCountMax = 1 << 16

    /// A change of one checkpoint's label.
    package struct Change: Hashable, Sendable {
        package let id: PageDigest
        /// The new label; empty: none.
        package let label: String

        package init(id: PageDigest, label: String) {
            self.id = id
            self.label = label
        }
    }

    package let timeNanoseconds: Int64
    package let changes: [Change]

    package init(timeNanoseconds: Int64, changes: [Change]) {
        precondition(changes.count <= LabelsRecord.changeCountMax, "too many changes for a record")
        self.timeNanoseconds = timeNanoseconds
        self.changes = changes
    }

    /// Size of a change without its label in bytes.
    private static let changeByteCount = PageDigest.byteCount + 2

    /// Encodes the payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 16 + changes.count * (LabelsRecord.changeByteCount + 16))
        writer.write(timeNanoseconds)
        writer.write(UInt32(changes.count))
        writer.writeZeros(4)
        for change in changes {
            writer.write(change.id)
            writer.write(text: change.label)
        }
        return writer.bytes
    }

    /// Decodes a payload; fails if a label is not valid.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> LabelsRecord {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> LabelsRecord in
            let time = try reader.read(Int64.self)
            let count = Int(try reader.read(UInt32.self))
            try reader.readZeros(4, "a reserved field of the labels record")
            guard count <= changeCountMax, count <= reader.remaining / changeByteCount else {
                throw FormatError(offset: 8, reason: "\(count) changes do not fit the record")
            }
            var changes: [Change] = []
            changes.reserveCapacity(count)
            for _ in 0..<count {
                let id = try reader.readDigest()
                let start = reader.position
                let label = try reader.readText()
                guard label.isEmpty || NameForm.canBeStored(label) else {
                    throw FormatError(offset: start, reason: "a label is malformed")
                }
                changes.append(Change(id: id, label: label))
            }
            try reader.expectEnd()
            return LabelsRecord(timeNanoseconds: time, changes: changes)
        }
    }
}
