import CheckpointFormat
import CheckpointIndex
import GuestModel
public import PackStore
import Synchronization

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
    /// Computes statistics of the repository, all of one moment.
    ///
    /// Reads the index, and the index of each pack, but no records of checkpoints. A prune of this
    /// process waits meanwhile before it changes the next pack.
    public func statistics() throws(RepositoryError) -> RepositoryStatistics {
        try requireWhole()
        for _ in 0..<Repository.countAttempts {
            let found = try besideAWriter { () throws(RepositoryError) in
                try packChanges.withLock { _ throws(RepositoryError) in try count() }
            }
            if let found { return found }
        }
        throw RepositoryError(
            .busy, "packs were removed or rewritten each time they were counted; try again later")
    }

    private static let countAttempts = 50

    /// The index, and the packs at the same moment.
    private func countedIndex() throws(RepositoryError) -> (
        IndexCounts, packs: [UInt32], newestByteCount: Int
    )? {
        try catchUp()
        for _ in 0..<Repository.countAttempts {
            let before = try withIndex { try $0.moment() }
            let packs = try PackName.list(files)
            guard let newest = packs.last else { return (try withIndex { try $0.counts() }, [], 0) }
            let size = try byteCount(of: newest)
            let counts = try withIndex { try $0.counts() }
            if counts.moment == before { return (counts, packs, size) }
        }
        return nil
    }

    /// - Returns: nil if a pack was removed or rewritten meanwhile, by another process or because
    ///   only an abandoned transaction had written to it.
    private func count() throws(RepositoryError) -> RepositoryStatistics? {
        guard let (counts, packs, newestByteCount) = try countedIndex() else { return nil }
        var result = RepositoryStatistics()
        result.checkpointCount = counts.checkpointCount
        result.pageCount = counts.pageCount
        result.zeroPageCount = counts.zeroPageCount
        result.changedPageCount = counts.changedPageCount
        result.logicalByteCount = result.pageCount * Page.byteCount
        result.uniquePageCount = counts.uniquePageCount
        let published = counts.transactions.union([0])
        var pageBytes = 0
        for pack in packs {
            let newest = pack == packs.last ? newestByteCount : nil
            do throws(RepositoryError) {
                let part = try count(pack, newestByteCount: newest, published)
                result.byteCount += part.byteCount
                result.abandonedByteCount += part.abandoned
                pageBytes += part.pages
            } catch {
                if try !PackName.list(files).contains(pack) { return nil }
                throw error
            }
        }
        if !isWritable, try !areUnchanged(packs, byteCount: result.byteCount - newestByteCount) {
            return nil
        }
        result.metadataByteCount = result.byteCount - pageBytes - result.abandonedByteCount
        return result
    }

    /// Counts one pack.
    ///
    /// - Parameter newestByteCount: the part to count of the newest pack, which may have grown.
    private func count(
        _ pack: UInt32, newestByteCount: Int?, _ published: Set<UInt64>
    ) throws(RepositoryError) -> (byteCount: Int, abandoned: Int, pages: Int) {
        if try PackScan.isHollow(files, pack: pack) {
            let size = if let newestByteCount { newestByteCount } else { try byteCount(of: pack) }
            return (size, size, 0)
        }
        // Not the one that the reader keeps open, which may be an older version.
        let file = try PackFile(files, pack: pack, repository: id)
        let size = if let newestByteCount { newestByteCount } else { try file.byteCount() }
        let scan = try PackScan.scan(file, isNewest: newestByteCount != nil)
        var (known, pages) = (Envelope.byteCount, 0)
        if scan.isSealed, let last = scan.entries.last { known += max(0, size - Int(last.end)) }
        for entry in scan.entries
        where Int(entry.end) <= size && published.contains(entry.transaction) {
            known += Int(entry.end - entry.offset)
            pages += entry.frame.map { $0.payloadCount - $0.headByteCount } ?? 0
        }
        return (size, max(0, size - known), pages)
    }

    /// True if the packs still exist, and those before the newest have a size in total.
    private func areUnchanged(
        _ packs: [UInt32], byteCount: Int
    ) throws(RepositoryError) -> Bool {
        guard try PackName.list(files).starts(with: packs) else { return false }
        var total = 0
        for pack in packs.dropLast() { total += try self.byteCount(of: pack) }
        return total == byteCount
    }

    package func byteCount(of pack: UInt32) throws(RepositoryError) -> Int {
        do throws(FileError) {
            return Int(try reader.files.open(PackName.path(pack), .read).byteCount())
        } catch {
            throw RepositoryError(error)
        }
    }
}
