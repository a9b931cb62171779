package import CheckpointFormat

// The file `head` says how far the packs were confirmed. Packs cannot tell that a newer one is
// lost, and the index, which can, may be lost together with it.
//
// It is written after the first confirming record of a pack was synced, and when a writer closes.
// So it names the newest pack in which anything is confirmed, and a place within that pack which
// may lie before the last confirming record. A head that lags, or is missing, says less and is no
// damage; one that says too much never exists, because what is confirmed is never taken back.
//
// It is replaced whole each time, so a crash leaves the old one or the new one, and a copy of the
// store that shares its files by hard links keeps the old one.

/// How far the packs were confirmed, as far as the file `head` was told.
package struct StoreHead: Sendable {
    package static let path = "head"
    /// Packs that may be lost at once, 64 TiB of them; a head that names one further on is wrong.
    private static let lostPackCountMax: UInt32 = 1 << 20

    /// The place behind a confirming record, in a pack in which nothing newer was confirmed when
    /// it was written; nil if the file says nothing.
    package private(set) var confirmed: RecordLocation?
    /// Why it cannot be read though it is there.
    package private(set) var problem: FormatError?

    /// Reads the file; one that is missing, or may not be read, says nothing.
    ///
    /// Who reads beside a writer lists the packs after this: a writer confirms nothing in a pack
    /// before it has its name.
    package init(
        _ files: any RepositoryFiles, _ repository: RepositoryID
    ) throws(FileError) {
        let bytes: [UInt8]
        do throws(FileError) {
            bytes = try files.open(StoreHead.path, .read).readBytes(Envelope.byteCount, at: 0)
        } catch {
            if error.isMissing || error.isForbidden { return }
            throw error
        }
        guard let place = StoreHead.place(bytes, repository) else {
            problem = FormatError(
                offset: 0,
                reason: "it is no head of this repository, and the next writer replaces it")
            return
        }
        let newest = try PackName.newest(files)
        guard place.pack <= newest || place.pack - newest <= StoreHead.lostPackCountMax else {
            problem = FormatError(
                offset: 32, reason: "it names pack \(place.pack), and the newest is \(newest)")
            return
        }
        confirmed = place
    }

    private static func place(_ bytes: [UInt8], _ repository: RepositoryID) -> RecordLocation? {
        guard let envelope = try? Envelope.decode(bytes, kind: .head),
            envelope.repository == repository
        else { return nil }
        let pack = UInt32(truncatingIfNeeded: envelope.number >> 32)
        let offset = UInt32(truncatingIfNeeded: envelope.number)
        guard 1...PackName.numberMax ~= pack, offset > UInt32(Envelope.byteCount) else {
            return nil
        }
        return RecordLocation(pack: pack, offset: offset)
    }

    /// States that the packs are confirmed up to a place, and syncs; does nothing if it says so.
    ///
    /// If this throws, the file says what it said, or this.
    package mutating func raise(
        to location: RecordLocation, _ files: any RepositoryFiles, _ repository: RepositoryID
    ) throws(FileError) {
        if let confirmed, confirmed >= location { return }
        let envelope = Envelope(
            kind: .head, repository: repository,
            number: UInt64(location.pack) << 32 | UInt64(location.offset))
        try files.replace(StoreHead.path, with: envelope.encoded)
        confirmed = location
        problem = nil
    }

    /// Removes the file: packs were repaired, and the next writer that closes makes it.
    package static func remove(_ files: any RepositoryFiles) throws(FileError) {
        do throws(FileError) {
            try files.remove(path)
        } catch {
            if !error.isMissing { throw error }
        }
        try files.syncDirectory("")
    }

    /// What is damaged; nil if nothing is.
    package var corruption: Corruption? {
        problem.map {
            Corruption(
                file: StoreHead.path, offset: UInt64($0.offset), object: "head", reason: $0.reason)
        }
    }
}
