package import GuestModel

// The payload of a labels record: labels that checkpoints were given, or lost, after they were
// published. When it is synced, they have them. Of several records that name one checkpoint the
// last in the order of packs counts; a manifest's own label counts where there is none.
//
//   offset size
//        0    8  when, nanoseconds since 1970 (signed)
//        8    4  changes, C
//       12    4  zero
//       16       C times: id (32), bytes of the label (u16), label (UTF-8; empty: no label)

/// The record that changes labels of checkpoints that exist.
package struct LabelsRecord: Hashable, Sendable {
    /// Changes that one record holds at most: with the longest labels they fit a payload.
    package static let changeCountMax = 1 << 16

    /// What one checkpoint's label becomes.
    package struct Change: Hashable, Sendable {
        package let id: PageDigest
        /// Empty: none.
        package let label: String

        package init(id: PageDigest, label: String) {
            self.id = id
            self.label = label
        }
    }

    package let timeNanoseconds: Int64
    package let changes: [Change]

    package init(timeNanoseconds: Int64, changes: [Change]) {
        precondition(changes.count <= LabelsRecord.changeCountMax, "a record holds 65,536 changes")
        self.timeNanoseconds = timeNanoseconds
        self.changes = changes
    }

    /// Bytes of a change without its label.
    private static let changeByteCount = PageDigest.byteCount + 2

    /// The payload.
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

    /// Reads a payload; fails if a label is none that a checkpoint can have.
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
                    throw FormatError(offset: start, reason: "a label cannot have this form")
                }
                changes.append(Change(id: id, label: label))
            }
            try reader.expectEnd()
            return LabelsRecord(timeNanoseconds: time, changes: changes)
        }
    }
}
