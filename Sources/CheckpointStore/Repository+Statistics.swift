import CheckpointFormat
import CheckpointIndex
import GuestModel
public import PackStore

/// The contents of a repository and their cost.
public struct RepositoryStatistics: Hashable, Sendable {
    /// Number of checkpoints.
    public var checkpointCount = 0
    /// Number of pages of all checkpoints, including zero pages.
    public var pageCount = 0
    /// Number of zero pages of all checkpoints; they take no space.
    public var zeroPageCount = 0
    /// Number of distinct pages stored.
    public var uniquePageCount = 0
    /// Number of changed pages of all checkpoints.
    public var changedPageCount = 0
    /// Size in bytes of all pages of all checkpoints, as full copies.
    public var logicalByteCount = 0
    /// Size of all packs in bytes.
    public var byteCount = 0
    /// How many of those bytes are not page contents.
    public var metadataByteCount = 0
    /// Bytes of all packs not written by a published checkpoint: abandoned transactions.
    public var abandonedByteCount = 0

    /// Size of full copies divided by the size of the packs.
    public var ratio: Double {
        byteCount == 0 ? 0 : Double(logicalByteCount) / Double(byteCount)
    }

    /// Metadata bytes per changed page.
    public var metadataBytesPerChangedPage: Double {
        changedPageCount == 0 ? 0 : Double(metadataByteCount) / Double(changedPageCount)
    }
}

extension Repository {
    /// Computes statistics of the repository.
    ///
    /// Reads the index, and the index of each pack, but no records of checkpoints.
    public func statistics() throws(RepositoryError) -> RepositoryStatistics {
        try requireWhole()
        return try besideAWriter { try count() }
    }

    private func count() throws(RepositoryError) -> RepositoryStatistics {
        var result = RepositoryStatistics()
        for entry in try withCurrentIndex({ try $0.catalog() }) {
            result.checkpointCount += 1
            result.pageCount += Int(entry.pageCount)
            result.zeroPageCount += Int(entry.zeroPageCount)
            result.changedPageCount += Int(entry.changedPageCount)
        }
        result.logicalByteCount = result.pageCount * Page.byteCount
        result.uniquePageCount = try withIndex { try $0.pageCount() }
        let published = try withIndex { try $0.publishedTransactions() }.union([0])
        var pageBytes = 0
        let packs = try PackName.list(reader.files)
        for pack in packs {
            let size = try byteCount(of: pack)
            result.byteCount += size
            var known = 0
            if try !PackScan.isHollow(reader.files, pack: pack) {
                let scan = try PackScan.scan(
                    reader, pack: pack, isNewest: pack == packs.last)
                known = Envelope.byteCount
                if scan.isSealed, let last = scan.entries.last { known += size - Int(last.end) }
                for entry in scan.entries where published.contains(entry.transaction) {
                    known += Int(entry.end - entry.offset)
                    pageBytes += entry.frame.map { $0.payloadCount - $0.headByteCount } ?? 0
                }
            }
            result.abandonedByteCount += max(0, size - known)
        }
        result.metadataByteCount = result.byteCount - pageBytes - result.abandonedByteCount
        return result
    }

    package func byteCount(of pack: UInt32) throws(RepositoryError) -> Int {
        do throws(FileError) {
            return Int(try reader.files.open(PackName.path(pack), .read).byteCount())
        } catch {
            throw RepositoryError(error)
        }
    }
}
