package import CheckpointFormat

/// An open pack: the file, and the mapping from addresses to file offsets.
///
/// Both come from the same open, so a pack that is replaced meanwhile is never read with the
/// addresses of another version of it: this version stays readable until it is released.
package final class PackFile: Sendable {
    /// Addresses that are contiguous in the file.
    private struct Segment {
        let addresses: Range<UInt64>
        /// The file offset of the first of them.
        let offset: UInt64
        /// True for blocks of a page group.
        let isFrame: Bool
    }

    /// The pack's number.
    package let pack: UInt32
    package let file: any RepositoryFile
    /// True if prune rewrote it.
    package let isRewritten: Bool
    // Ascending; empty unless it was rewritten.
    private let segments: [Segment]

    /// Opens a pack and checks its envelope.
    package init(
        _ files: any RepositoryFiles, pack: UInt32, repository: RepositoryID
    ) throws(RepositoryError) {
        let path = PackName.path(pack)
        do throws(FileError) {
            file = try files.open(path, .read)
        } catch {
            guard error.isMissing else { throw RepositoryError(error) }
            do throws(FileError) {
                try files.checkPlace(writing: nil)
            } catch {
                throw RepositoryError(error)
            }
            throw PackFile.missing(pack)
        }
        let head: [UInt8]
        do throws(FileError) {
            head = try file.readBytes(Envelope.byteCount, at: 0)
        } catch {
            throw RepositoryError(error)
        }
        let envelope = try PackReader.checkEnvelope(head, pack: pack, repository: repository)
        self.pack = pack
        isRewritten = envelope.isRewritten
        segments = isRewritten ? try PackFile.segments(file, pack: pack) : []
    }

    /// The error for a missing pack.
    package static func missing(_ pack: UInt32) -> RepositoryError { missing(pack...pack) }

    /// The error for missing packs.
    package static func missing(_ packs: ClosedRange<UInt32>) -> RepositoryError {
        RepositoryError(
            Corruption(
                file: PackName.path(packs.lowerBound), offset: 0, object: "pack",
                reason: PackGaps.words(packs)
                    + (packs.count == 1
                        ? "; restore it from a copy" : "; restore them from copies"),
                isOfWholePack: true))
    }

    private static func segments(
        _ file: any RepositoryFile, pack: UInt32
    ) throws(RepositoryError) -> [Segment] {
        let scan: PackScan
        do throws(RepositoryError) {
            scan = try PackScan.scan(file, pack: pack, isRewritten: true, isNewest: false)
        } catch {
            guard error.corruption != nil else { throw error }
            // Its index is damaged, but the records hold the same data.
            scan = try PackScan.scanRecords(file, pack: pack, isRewritten: true)
        }
        return scan.entries.map { entry in
            let addresses = entry.addresses
            let head = addresses.lowerBound - UInt64(entry.address)
            return Segment(
                addresses: addresses, offset: UInt64(entry.offset) + head,
                isFrame: entry.frame != nil)
        }
    }

    /// True if it ends before an address that was read from it before.
    package func ends(before address: UInt32) throws(RepositoryError) -> Bool {
        if isRewritten { return false }
        return try byteCount() < Int(address)
    }

    /// The size of this version of it in bytes.
    package func byteCount() throws(RepositoryError) -> Int {
        do throws(FileError) {
            return Int(try file.byteCount())
        } catch {
            throw RepositoryError(error)
        }
    }

    /// The offset of the record with an address; nil if it is no longer in the pack.
    ///
    /// Not for page groups, of which only the blocks have permanent addresses.
    package func offset(ofRecord address: UInt32) -> UInt64? {
        guard isRewritten else { return UInt64(address) }
        guard let segment = segment(UInt64(address)), !segment.isFrame,
            segment.addresses.lowerBound == UInt64(address)
        else { return nil }
        return segment.offset
    }

    /// The offset of a block; nil if it is no longer in the pack.
    package func offset(ofBlock address: UInt32, byteCount: UInt32) -> UInt64? {
        guard isRewritten else { return UInt64(address) }
        guard let segment = segment(UInt64(address)), segment.isFrame,
            UInt64(address) + UInt64(byteCount) <= segment.addresses.upperBound
        else { return nil }
        return segment.offset + UInt64(address) - segment.addresses.lowerBound
    }

    private func segment(_ address: UInt64) -> Segment? {
        let segment = segments.first(endingBehind: address) { $0.addresses.upperBound }
        return segment.flatMap { $0.addresses.contains(address) ? $0 : nil }
    }
}
