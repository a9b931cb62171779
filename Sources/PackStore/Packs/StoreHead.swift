package import CheckpointFormat

// The file `head` records how far the packs were confirmed. The packs cannot show that a newer one
// is lost, and the index, which can, may be lost together with it.
//
// It is written after the first confirming record of a pack was synced, and when a writer closes.
// So it names the newest pack in which anything is confirmed, and a position in that pack which may
// precede the last confirming record. A head that lags or is missing is not damage; a head is never
// ahead, because confirmed records are never removed.
//
// It is always replaced as a whole, so a crash leaves the old or the new one, and a copy of the
// store that shares its files by hard links keeps the old one.

/// How far the packs were confirmed according to the file `head`.
package struct StoreHead: Sendable {
    package static let path = "head"
    /// Most packs that can be lost at once, 64 TiB; a head that names a later pack is wrong.
    private static let lostPackCountMax: UInt32 = 1 << 20

    /// The end of a confirming record, in the newest pack in which anything was confirmed when it
    /// was written; nil if the file does not say.
    package private(set) var confirmed: RecordLocation?
    /// Why an existing file cannot be read.
    package private(set) var problem: FormatError?

    /// Reads the file; a missing or unreadable one yields no position.
    ///
    /// A reader beside a writer lists the packs after this: a writer confirms nothing in a pack
    /// before the pack has its name.
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
                reason: "it is not a head of this repository, and the next writer replaces it")
            return
        }
        let newest = try PackName.newest(files)
        guard place.pack <= newest || place.pack - newest <= StoreHead.lostPackCountMax else {
            problem = FormatError(
                offset: 32, reason: "it names pack \(place.pack), but the newest is \(newest)")
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

    /// Records that the packs are confirmed up to a position, and syncs; does nothing if the file
    /// already says so.
    ///
    /// If this throws, the file has either its old contents or the new.
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

    /// Removes the file after a repair of the packs; the next writer that closes creates it.
    package static func remove(_ files: any RepositoryFiles) throws(FileError) {
        do throws(FileError) {
            try files.remove(path)
        } catch {
            if !error.isMissing { throw error }
        }
        try files.syncDirectory("")
    }

    /// The damage to the file; nil if there is none.
    package var corruption: Corruption? {
        problem.map {
            Corruption(
                file: StoreHead.path, offset: UInt64($0.offset), object: "head", reason: $0.reason)
        }
    }
}
