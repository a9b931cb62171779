import CheckpointFormat

// Reading past damage, for readers: what is whole is shown, and what is not is named. A writer
// never goes by it.
//
// Behind a damaged record the next one is where the damaged one's header says that it ends, or else
// the next multiple of 8 at which a whole record begins. Records behind damage count only as far as
// a whole record says that the damaged place was confirmed: otherwise a crash may have left them.

extension PackScan {
    /// Reads the whole records of a pack, and names the places that are not whole.
    ///
    /// Throws `corrupted` only if the envelope is damaged.
    static func salvage(
        _ reader: PackReader, pack: UInt32
    ) throws -> (scan: PackScan, damage: [Corruption]) {
        let file = try reader.file(pack)
        let size = try file.file.byteCount()
        var entries: [PackIndex.Entry] = []
        var damage: [Corruption] = []
        var confirmed: UInt32 = 0
        var offset = UInt32(Envelope.byteCount)
        while UInt64(offset) < size {
            do {
                let (header, record) = try PackReader.readRecord(file.file, at: offset)
                if header.type == .packIndex { break }
                entries.append(
                    try entry(header, record, at: offset, isRewritten: file.isRewritten))
                confirmed = max(confirmed, header.confirmed)
                offset += UInt32(header.recordByteCount)
            } catch let error as FormatError {
                damage.append(
                    Corruption(
                        file: PackName.path(pack), offset: UInt64(offset), object: "record",
                        reason: error.reason))
                guard let next = try nextRecord(file.file, after: offset, size: size) else { break }
                offset = next
            }
        }
        // Rewritten packs are whole and synced before they have their name.
        if file.isRewritten { confirmed = UInt32(size) }
        if let torn = damage.first(where: { $0.offset >= UInt64(confirmed) }) {
            entries.removeAll { UInt64($0.offset) > torn.offset }
            damage.removeAll { $0.offset >= torn.offset }
        }
        let scan = PackScan(
            entries: entries, validEnd: entries.last?.end ?? UInt32(Envelope.byteCount),
            isSealed: false, fileByteCount: size, confirmed: confirmed, tail: nil)
        return (scan, damage)
    }

    /// Where the next whole record behind a damaged one begins; nil if there is none.
    static func nextRecord(
        _ file: any RepositoryFile, after offset: UInt32, size: UInt64
    ) throws(FileError) -> UInt32? {
        let rest = try file.readBytes(Int(size - UInt64(offset)), at: UInt64(offset))
        return rest.withUnsafeBytes { bytes -> UInt32? in
            // Page contents may look like records, so the damaged header's word comes first.
            if let header = try? RecordHeader(bytes), header.recordByteCount < bytes.count,
                wholeRecord(bytes, at: header.recordByteCount) != nil
            {
                return offset + UInt32(header.recordByteCount)
            }
            return stride(from: 8, to: bytes.count, by: 8)
                .first { wholeRecord(bytes, at: $0) != nil }
                .map { offset + UInt32($0) }
        }
    }

    /// The header of a record that is whole; nil if none begins there.
    static func wholeRecord(_ bytes: UnsafeRawBufferPointer, at position: Int) -> RecordHeader? {
        guard position + RecordHeader.byteCount <= bytes.count,
            UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: UInt32.self))
                == RecordHeader.magic
        else { return nil }
        let record = UnsafeRawBufferPointer(rebasing: bytes[position...])
        guard let header = try? RecordHeader(record), header.recordByteCount <= record.count
        else { return nil }
        let whole = UnsafeRawBufferPointer(rebasing: record[..<header.recordByteCount])
        return (try? RecordHeader.check(whole)) == nil ? nil : header
    }
}
