import CheckpointFormat
import CheckpointIndex
import GuestModel

// A manifest's counts against what they count. The id is a digest of the manifest, so a count that
// is wrong was written so: by a program that errs, or by somebody who forges.

/// What the packs hold of one transaction besides its manifest.
struct TransactionTotals: Hashable, Sendable {
    private(set) var pageCount: UInt64 = 0
    private(set) var byteCount: UInt64 = 0
    private(set) var blockByteCount: UInt64 = 0
    /// What lies behind the manifest is none of its own.
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

    /// Adds what the next pack holds.
    mutating func add(_ other: TransactionTotals) {
        guard !isPublished else { return }
        pageCount += other.pageCount
        byteCount += other.byteCount
        blockByteCount += other.blockByteCount
        isPublished = other.isPublished
    }
}

extension Manifest {
    /// Fails unless it counts the frames of its page map right.
    ///
    /// - Parameter differing: frames that differ from its parent, if that is known. It may state
    ///   more: a frame that changed and changed back was counted when it changed.
    func check(_ map: PageMap, differing: Int?) throws(FormatError) {
        let (pages, zeros) = (UInt64(map.pageCount), UInt64(map.zeroPageCount))
        guard frameEnd == map.frameEnd, pageCount == pages, zeroPageCount == zeros else {
            throw FormatError(
                offset: 120,
                reason: "it states \(pageCount) pages below frame \(frameEnd), "
                    + "\(zeroPageCount) of them zero, and its page map has \(pages) below "
                    + "\(map.frameEnd), \(zeros) zero")
        }
        let least = UInt64(parent == .none ? map.pageCount : differing ?? 0)
        guard changedPageCount >= least else {
            throw FormatError(
                offset: 144,
                reason: "it states \(changedPageCount) changed pages, and its page map has "
                    + "\(least)")
        }
    }

    /// Fails unless it counts what its transaction stored right.
    ///
    /// - Parameter totals: of packs from which nothing was taken.
    func check(_ totals: TransactionTotals) throws(FormatError) {
        let metadata = totals.byteCount - totals.blockByteCount
        guard storedPageCount == totals.pageCount, addedByteCount == totals.byteCount,
            metadataByteCount == metadata
        else {
            throw FormatError(
                offset: 152,
                reason: "it states \(storedPageCount) pages stored in \(addedByteCount) bytes, "
                    + "\(metadataByteCount) of them metadata, and the packs hold "
                    + "\(totals.pageCount) in \(totals.byteCount), \(metadata) metadata")
        }
    }
}
