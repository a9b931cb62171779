import CheckpointFormat
import CheckpointIndex
import PackStore

// How prune treats the open pack.
//
// Nothing in it is freed before it is sealed, so a plan that wants its space treats it as sealed,
// using what is known of it: the writer has its table in memory, a reader reads it. It is sealed
// only if the plan then changes it.
//
// Pages in it that became garbage leave the index nevertheless. Their size, by their share of each
// block, is recorded then; a rebuilt index contains the pages again, without references, and no
// recorded size. So the sum of both is the unused size.

/// The open pack as it will be once sealed.
struct OpenPackScan: Sendable {
    let pack: UInt32
    let entries: [PackIndex.Entry]
    /// Its size with its index and footer in bytes.
    let byteCount: Int

    /// - Parameter entries: its records, all confirmed.
    init?(pack: UInt32, entries: [PackIndex.Entry]) {
        guard let last = entries.last else { return nil }
        self.pack = pack
        self.entries = entries
        let index = PackIndex(entries: entries).encoded.count
        byteCount =
            Int(last.end) + RecordHeader.recordByteCount(payload: index) + PackFooter.byteCount
    }

    /// What a reader finds in it; nil if there is nothing.
    ///
    /// What was appended after the newest confirming record belongs to a transaction in progress.
    init?(reading pack: UInt32, _ reader: PackReader) throws(RepositoryError) {
        guard try PackName.list(reader.files).contains(pack),
            try !PackScan.isHollow(reader.files, pack: pack)
        else { return nil }
        let scan = try PackScan.scan(reader, pack: pack, isNewest: true)
        guard !scan.isSealed, let last = scan.entries.lastIndex(where: { $0.type.isConfirming })
        else { return nil }
        self.init(pack: pack, entries: Array(scan.entries[...last]))
    }
}

extension PrunePreparation {
    /// Approximate unused size of the open pack: earlier garbage, and what this plan adds.
    var openUnusedByteCount: Int {
        survey.dead.values.reduce(droppedByteCount) { sum, location in
            location.pack == openPack ? sum + location.shareByteCount : sum
        }
    }
}

extension PrunePlan {
    /// True if enough of the open pack is unused that sealing it may be worthwhile.
    ///
    /// Unless everything is to be freed, at least a sixteenth of a full pack must be unused:
    /// otherwise a store that is pruned often would consist of small packs. As much must have been
    /// added since a plan last considered it in vain, so that not every prune considers it again.
    func wantsOpenPack(ofAtMost packByteCountMax: Int) -> Bool {
        let unused = openUnusedByteCount
        let options = preparation.options
        let percent = options.unusedPercentMax
        guard percent > 0 else { return unused >= options.rewriteByteCountMin }
        let useless = preparation.repository.activity.read { $0.uselessSeal }
        let known = useless?.pack == preparation.openPack ? useless?.unusedByteCount ?? 0 : 0
        // Counted together: otherwise twice as much as the options allow might stay.
        let left = packs.reduce(unused) { $1.fate == .kept ? $0 + $1.unusedByteCount : $0 }
        return unused - known >= packByteCountMax / 16
            && Double(left) * 100 > percent * Double(byteCount - freedByteCount)
    }

    /// True if the plan changes a pack.
    func changes(_ pack: UInt32) -> Bool {
        packs.contains { $0.number == pack && $0.fate != .kept }
    }
}
