import CheckpointFormat
import CheckpointIndex
import GuestModel
public import PackStore

/// What a repository holds and what it costs.
public struct RepositoryStatistics: Hashable, Sendable {
    /// Checkpoints.
    public var checkpointCount = 0
    /// Pages of all checkpoints together, zero pages among them.
    public var pageCount = 0
    /// Zero pages of all checkpoints together; they cost nothing.
    public var zeroPageCount = 0
    /// Different pages that are stored.
    public var uniquePageCount = 0
    /// Changed pages of all checkpoints together.
    public var changedPageCount = 0
    /// Bytes of all pages of all checkpoints, as full copies would have them.
    public var logicalByteCount = 0
    /// Bytes of all packs.
    public var byteCount = 0
    /// Of those, bytes that are not page contents.
    public var metadataByteCount = 0
    /// Of all, bytes that no published checkpoint wrote: abandoned transactions.
    public var abandonedByteCount = 0

    /// Full copies over packs.
    public var ratio: Double {
        byteCount == 0 ? 0 : Double(logicalByteCount) / Double(byteCount)
    }

    /// Metadata bytes for each changed page.
    public var metadataBytesPerChangedPage: Double {
        changedPageCount == 0 ? 0 : Double(metadataByteCount) / Double(changedPageCount)
    }
}

extension Repository {
    /// Counts what the repository holds.
    ///
    /// Asks the index, and reads the index of each pack; no record of a checkpoint.
    public func statistics() throws(RepositoryError) -> RepositoryStatistics {
        try requireWhole()
        return try besideAWriter { try count() }
    }

    private func count() throws -> RepositoryStatistics {
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
