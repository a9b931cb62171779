package import CheckpointFormat
import GuestModel

// Reading past damage, for readers: undamaged records are returned, and damage is reported. Writers
// never use this.
//
// The record after a damaged one begins where the damaged one's header says that it ends, or else
// at the next multiple of 8 at which a whole record begins. Records after damage count only up to
// the point that a whole record states to be confirmed: the rest may have been left by a crash.

extension PackScan {
    /// Reads the whole records of a pack, and reports the damaged places.
    ///
    /// Throws `corrupted` only if the envelope is damaged.
    package static func salvage(
        _ reader: PackReader, pack: UInt32
    ) throws(RepositoryError) -> (scan: PackScan, damage: [Corruption]) {
        let file = try reader.file(pack)
        do throws(FileError) {
            return try salvage(file, pack: pack)
        } catch {
            throw RepositoryError(error)
        }
    }

    private static func salvage(
        _ file: PackFile, pack: UInt32
    ) throws(FileError) -> (scan: PackScan, damage: [Corruption]) {
        // No record begins above 2^32.
        let size = min(try file.file.byteCount(), UInt64(UInt32.max))
        var entries: [PackIndex.Entry] = []
        var damage: [Corruption] = []
        var confirmed: UInt32 = 0
        var offset = UInt32(Envelope.byteCount)
        while UInt64(offset) < size {
            let record = try PackReader.readRecord(file.file, at: offset)
            do throws(FormatError) {
                let (header, record) = try record.get()
                if try isSeal(header, at: offset, size: size) { break }
                let entry = try entry(
                    header, record, at: offset, isRewritten: file.isRewritten)
                if let last = entries.last,
                    entry.addresses.lowerBound < last.addresses.upperBound
                {
                    throw FormatError(offset: 24, reason: "addresses do not ascend")
                }
                entries.append(entry)
                confirmed = max(confirmed, header.confirmed)
                offset += UInt32(header.recordByteCount)
            } catch {
                damage.append(
                    Corruption(
                        file: PackName.path(pack), offset: UInt64(offset), object: "record",
                        reason: error.reason))
                guard let next = try nextRecord(file.file, after: offset, size: size) else { break }
                offset = next
            }
        }
        // Rewritten packs are complete and synced before they get their names.
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

    /// True if a record is the pack index at the end of a file: nothing follows it but the footer
    /// or a part of one.
    ///
    /// Fails if it is a pack index in any other place.
    package static func isSeal(
        _ header: RecordHeader, at offset: UInt32, size: UInt64
    ) throws(FormatError) -> Bool {
        guard header.type == .packIndex else { return false }
        let end = UInt64(offset) + UInt64(header.recordByteCount)
        guard end + UInt64(PackFooter.byteCount) >= size else {
            throw FormatError(offset: 4, reason: "a pack index has no footer")
        }
        return true
    }

    private static let windowByteCount = 1 << 20

    /// The offset of the next whole record after a damaged one; nil if there is none.
    package static func nextRecord(
        _ file: any RepositoryFile, after offset: UInt32, size: UInt64
    ) throws(FileError) -> UInt32? {
        // Page contents may look like records, so the damaged header is consulted first.
        let head = try file.readBytes(RecordHeader.byteCount, at: UInt64(offset))
        if let header = try? head.withUnsafeBytes({ try RecordHeader($0) }),
            let end = UInt32(exactly: UInt64(offset) + UInt64(header.recordByteCount)),
            UInt64(end) < size, try whole(file, at: end) != nil
        {
            return end
        }
        return try nextWhole(file, from: UInt64(offset) + 8, size: size)?.offset
    }

    /// The first whole record at a multiple of 8 bytes at or after an offset; nil if there is none.
    ///
    /// Reads 1 MiB at a time.
    static func nextWhole(
        _ file: any RepositoryFile, from start: UInt64, size: UInt64
    ) throws(FileError) -> (offset: UInt32, header: RecordHeader)? {
        var window = start
        let end = min(size, UInt64(UInt32.max))
        while window < end {
            let bytes = try file.readPages(windowByteCount, at: window)
            let places = bytes.withUnsafeBytes { bytes in
                stride(from: 0, to: bytes.count - 3, by: 8).filter {
                    UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self))
                        == RecordHeader.magic
                }
            }
            for place in places {
                guard let offset = UInt32(exactly: window + UInt64(place)) else { return nil }
                if let header = try whole(file, at: offset) { return (offset, header) }
            }
            window += UInt64(windowByteCount)
        }
        return nil
    }

    /// The header of a whole record; nil if none begins there.
    private static func whole(
        _ file: any RepositoryFile, at offset: UInt32
    ) throws(FileError) -> RecordHeader? {
        guard case .success(let record) = try PackReader.readRecord(file, at: offset) else {
            return nil
        }
        return record.header
    }
}
