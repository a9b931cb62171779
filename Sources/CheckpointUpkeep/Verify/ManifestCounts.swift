import CheckpointFormat
import CheckpointIndex
import GuestModel

// Checks a manifest's counts against what they count. The ID is a digest of the manifest, so a
// wrong count was written that way: by a faulty program, or by a forger.

/// What the packs contain of one transaction, apart from its manifest.
struct TransactionTotals: Hashable, Sendable {
    private(set) var pageCount: UInt64 = 0
    private(set) var byteCount: UInt64 = 0
    private(set) var blockByteCount: UInt64 = 0
    /// Records after the manifest do not belong to it.
    private var isPublished = false

    /// Adds the next record.
    mutating func add(_ entry: PackIndex.Entry) {
        guard !isPublished else { return }
        guard entry.type != .publish else {
            isPublished = true
            return
        }
        byteCount += UInt64(entry.end - entry.offset)
        guard let frame = entry.frame else { return }
        pageCount += UInt64(frame.pageCount)
        blockByteCount += UInt64(frame.payloadCount - frame.headByteCount)
    }

    /// Adds the contents of the next pack.
    mutating func add(_ other: TransactionTotals) {
        guard !isPublished else { return }
        pageCount += other.pageCount
        byteCount += other.byteCount
        blockByteCount += other.blockByteCount
        isPublished = other.isPublished
    }
}

extension Manifest {
    /// Fails unless its counts match the frames of its page map.
    ///
    /// - Parameter differing: the number of frames that differ from its parent, if known. The
    ///   manifest may state more: a frame that changed and changed back was counted when it
    ///   changed.
    func check(_ map: PageMap, differing: Int?) throws(FormatError) {
        for volume in volumes {
            let map = map[volume.number]
            let (pages, zeros) = (UInt64(map.pageCount), UInt64(map.zeroPageCount))
            guard volume.frameEnd == map.frameEnd, volume.pageCount == pages,
                volume.zeroPageCount == zeros
            else {
                throw FormatError(
                    offset: 144,
                    reason: "it states \(volume.pageCount) pages of '\(volume.name)' below "
                        + "\(volume.frameEnd), \(volume.zeroPageCount) of them zero, but its page "
                        + "map has \(pages) below \(map.frameEnd), \(zeros) zero")
            }
        }
        let least = parent == .none ? pageCount : UInt64(differing ?? 0)
        guard changedPageCount >= least else {
            throw FormatError(
                offset: 144,
                reason: "it states \(changedPageCount) changed pages, but its page map has "
                    + "\(least)")
        }
    }

    /// Fails unless its counts match what its transaction stored.
    ///
    /// - Parameter totals: totals of packs from which nothing was removed.
    func check(_ totals: TransactionTotals) throws(FormatError) {
        let metadata = totals.byteCount - totals.blockByteCount
        guard storedPageCount == totals.pageCount, addedByteCount == totals.byteCount,
            metadataByteCount == metadata
        else {
            throw FormatError(
                offset: 88,
                reason: "it states \(storedPageCount) pages stored in \(addedByteCount) bytes, "
                    + "\(metadataByteCount) of them metadata, but the packs have "
                    + "\(totals.pageCount) in \(totals.byteCount), \(metadata) metadata")
        }
    }
}
