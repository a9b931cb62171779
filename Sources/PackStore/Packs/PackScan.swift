package import CheckpointFormat
package import GuestModel

// The contents of a pack, read from its index if it is sealed and from its records otherwise.
//
// An unsealed pack is read from the start to the first bytes that are not a whole record: its valid
// part. The rest is either left by a crash from a transaction that was never acknowledged, and may
// be truncated; or damage to acknowledged data. It is damage if any whole record after it has a
// `confirmed` beyond it, or if the repository's index records a publication beyond it.

/// The contents of a pack.
package struct PackScan: Sendable {
    /// The records, in order.
    package let entries: [PackIndex.Entry]
    /// Where the valid records end.
    package let validEnd: UInt32
    /// True if the pack has its index and footer.
    package let isSealed: Bool
    /// Size of the file in bytes.
    package let fileByteCount: UInt64
    /// The highest `confirmed` of any whole record.
    package let confirmed: UInt32
    /// Why the valid part ends before the file does; nil if it does not.
    package let tail: FormatError?

    package init(
        entries: [PackIndex.Entry], validEnd: UInt32, isSealed: Bool, fileByteCount: UInt64,
        confirmed: UInt32, tail: FormatError?
    ) {
        self.entries = entries
        self.validEnd = validEnd
        self.isSealed = isSealed
        self.fileByteCount = fileByteCount
        self.confirmed = confirmed
        self.tail = tail
    }

    /// True if the tail is damage to acknowledged data.
    package var isCorrupted: Bool { tail != nil && confirmed > validEnd }

    /// True if a crash came between creating a pack and syncing its envelope: it cannot hold data.
    package static func isHollow(
        _ files: any RepositoryFiles, pack: UInt32
    ) throws(RepositoryError) -> Bool {
        do {
            let head = try files.open(PackName.path(pack), .read)
                .readBytes(Envelope.byteCount, at: 0)
            return Envelope.isTorn(head, kind: .pack)
        } catch {
            throw RepositoryError(error)
        }
    }

    /// Reads the contents of a pack: the index of a sealed one, all of an unsealed one.
    ///
    /// Throws `corrupted` only when a sealed pack's index cannot be read.
    ///
    /// - Parameter isNewest: true for the newest pack, whose seal is not trusted: a power failure
    ///   may have kept the seal and lost records before it. The next pack is created only after the
    ///   seal was synced.
    package static func scan(
        _ reader: PackReader, pack: UInt32, isNewest: Bool
    ) throws(RepositoryError) -> PackScan {
        try scan(try reader.file(pack), isNewest: isNewest)
    }

    /// The same for an open pack.
    package static func scan(
        _ file: PackFile, isNewest: Bool
    ) throws(RepositoryError) -> PackScan {
        try scan(
            file.file, pack: file.pack, isRewritten: file.isRewritten, isNewest: isNewest)
    }

    static func scan(
        _ file: any RepositoryFile, pack: UInt32, isRewritten: Bool, isNewest: Bool
    ) throws(RepositoryError) -> PackScan {
        try naming(pack) { () throws(FileError) in
            let size = try file.byteCount()
            // A rewritten pack gets its name only when it is complete and synced.
            if !isNewest || isRewritten {
                switch try scanSealed(file, pack: pack, size: size, isRewritten: isRewritten) {
                case .success(nil): break
                case .success(let sealed?): return .success(sealed)
                case .failure(let error): return .failure(error)
                }
            }
            return try scanRecords(file, size: size, isRewritten: isRewritten)
        }
    }

    /// Reads the records of a pack, sealed or not, up to the first that is not whole.
    package static func scanRecords(
        _ file: any RepositoryFile, pack: UInt32, isRewritten: Bool
    ) throws(RepositoryError) -> PackScan {
        try naming(pack) { () throws(FileError) in
            try scanRecords(file, size: file.byteCount(), isRewritten: isRewritten)
        }
    }

    /// Reads the index of a sealed pack; nil if the pack is not sealed.
    package static func scanSeal(
        _ file: any RepositoryFile, pack: UInt32, isRewritten: Bool
    ) throws(RepositoryError) -> PackScan? {
        try naming(pack) { () throws(FileError) in
            try scanSealed(file, pack: pack, size: file.byteCount(), isRewritten: isRewritten)
        }
    }

    /// Runs `body`, which reads a pack, and converts its errors.
    private static func naming<T>(
        _ pack: UInt32, _ body: () throws(FileError) -> Result<T, FormatError>
    ) throws(RepositoryError) -> T {
        let result: Result<T, FormatError>
        do throws(FileError) {
            result = try body()
        } catch {
            throw RepositoryError(error)
        }
        do throws(FormatError) {
            return try result.get()
        } catch {
            throw RepositoryError(
                Corruption(
                    file: PackName.path(pack), offset: UInt64(error.offset), object: "pack index",
                    reason: error.reason))
        }
    }

    private static func scanSealed(
        _ file: any RepositoryFile, pack: UInt32, size: UInt64, isRewritten: Bool
    ) throws(FileError) -> Result<PackScan?, FormatError> {
        let smallest = UInt64(Envelope.byteCount + PackFooter.byteCount)
        guard size >= smallest, size <= UInt64(UInt32.max) else { return .success(nil) }
        let end = size - UInt64(PackFooter.byteCount)
        let bytes = try file.readBytes(PackFooter.byteCount, at: end)
        let footer: PackFooter
        do throws(FormatError) {
            guard let found = try PackFooter.decode(bytes) else { return .success(nil) }
            footer = found
        } catch {
            return .failure(FormatError(offset: Int(end), reason: error.reason))
        }
        guard footer.pack == UInt64(pack) else {
            return .failure(
                FormatError(offset: Int(end), reason: "the footer names pack \(footer.pack)"))
        }
        let found = try PackReader.readRecord(file, at: footer.indexOffset)
        do throws(FormatError) {
            let entries = try seal(try found.get(), footer, end: end, isRewritten: isRewritten)
            return .success(
                PackScan(
                    entries: entries, validEnd: UInt32(size), isSealed: true,
                    fileByteCount: size, confirmed: UInt32(size), tail: nil))
        } catch {
            return .failure(
                FormatError(offset: Int(footer.indexOffset), reason: error.reason))
        }
    }

    /// The entries of the pack index that a footer points at.
    private static func seal(
        _ record: (header: RecordHeader, bytes: PageBytes), _ footer: PackFooter, end: UInt64,
        isRewritten: Bool
    ) throws(FormatError) -> [PackIndex.Entry] {
        guard record.header.type == .packIndex,
            UInt64(footer.indexOffset) + UInt64(record.header.recordByteCount) == end
        else {
            throw FormatError(offset: 0, reason: "the footer does not point at the pack index")
        }
        return try record.bytes.withUnsafeBytes { (bytes) throws(FormatError) in
            let start = RecordHeader.byteCount
            return try PackIndex.decode(
                UnsafeRawBufferPointer(
                    rebasing: bytes[start..<start + record.header.payloadCount]),
                recordOffset: footer.indexOffset, isRewritten: isRewritten
            ).entries
        }
    }

    /// Reads an unsealed pack record by record.
    private static func scanRecords(
        _ file: any RepositoryFile, size: UInt64, isRewritten: Bool
    ) throws(FileError) -> Result<PackScan, FormatError> {
        var entries: [PackIndex.Entry] = []
        var offset = UInt32(Envelope.byteCount)
        var addressEnd = UInt64(Envelope.byteCount)
        var confirmed: UInt32 = 0
        var tail: FormatError?
        guard size <= UInt64(UInt32.max) else {
            return .failure(
                FormatError(
                    offset: 0, reason: "the file has \(size) bytes, more than a pack can have"))
        }
        var scanner = try RecordScanner(file, size: size)
        while UInt64(offset) < size, tail == nil {
            let read = try scanner.withRecord(at: offset) { (header, record) throws(FormatError) in
                guard header.type != .packIndex else {
                    throw FormatError(offset: 0, reason: "a pack index has no footer")
                }
                let entry = try entry(header, record, at: offset, isRewritten: isRewritten)
                guard entry.addresses.lowerBound >= addressEnd else {
                    throw FormatError(offset: 24, reason: "addresses do not ascend")
                }
                addressEnd = entry.addresses.upperBound
                entries.append(entry)
                confirmed = max(confirmed, header.confirmed)
                offset += UInt32(header.recordByteCount)
            }
            if case .failure(let error) = read { tail = error }
        }
        if tail != nil {
            confirmed = max(confirmed, try confirmedAfter(file, from: offset, size: size))
        }
        return .success(
            PackScan(
                entries: entries, validEnd: offset, isSealed: false, fileByteCount: size,
                confirmed: confirmed, tail: tail))
    }

    /// Converts a record to an entry of a pack index.
    package static func entry(
        _ header: RecordHeader, _ record: PageBytes, at offset: UInt32, isRewritten: Bool
    ) throws(FormatError) -> PackIndex.Entry {
        try record.withUnsafeBytes { (bytes) throws(FormatError) -> PackIndex.Entry in
            try entry(header, bytes, at: offset, isRewritten: isRewritten)
        }
    }

    private static func entry(
        _ header: RecordHeader, _ record: UnsafeRawBufferPointer, at offset: UInt32,
        isRewritten: Bool
    ) throws(FormatError) -> PackIndex.Entry {
        guard (header.address != 0) == isRewritten else {
            throw FormatError(offset: 24, reason: "its address is \(header.address)")
        }
        var frame: PageGroupTable?
        if header.type == .pageGroup {
            frame = try PageGroupTable.decode(
                UnsafeRawBufferPointer(rebasing: record[RecordHeader.byteCount...]),
                payloadCount: header.payloadCount)
        }
        let entry = PackIndex.Entry(
            type: header.type, offset: offset, payloadCount: header.payloadCount,
            transaction: header.transaction, address: isRewritten ? header.address : offset,
            frame: frame)
        guard entry.addresses.upperBound <= UInt64(UInt32.max) else {
            throw FormatError(offset: 24, reason: "it ends beyond all that a pack can hold")
        }
        return entry
    }

    /// The highest `confirmed` among whole records after a damaged place.
    private static func confirmedAfter(
        _ file: any RepositoryFile, from offset: UInt32, size: UInt64
    ) throws(FileError) -> UInt32 {
        var highest: UInt32 = 0
        var position = UInt64(offset)
        while let (place, header) = try nextWhole(file, from: position, size: size) {
            highest = max(highest, header.confirmed)
            position = UInt64(place) + UInt64(header.recordByteCount)
        }
        return highest
    }
}
