import CheckpointFormat
import CheckpointIndex
import PackStore

// The open pack in the eyes of prune.
//
// Nothing in it is freed before it is sealed, so a plan that wants its space back is made as though
// it were, from what is known of it: the writer has its table in memory, a reader reads it. Only if
// the plan then does something about it is it sealed.
//
// Pages that died in it leave the index all the same. What they took is noted with that, by their
// share of each block; a rebuilt index has the pages again, without references, and the note
// is empty. So the sum of both says what is unused.

/// The open pack, as it will be when it is sealed.
struct OpenPackScan: Sendable {
    let pack: UInt32
    let entries: [PackIndex.Entry]
    /// Its bytes with its index and footer.
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
    /// What was appended after the newest confirming record belongs to a transaction under way.
    init?(reading pack: UInt32, _ reader: PackReader) throws {
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
    /// About how much of the open pack is unused: what died before, and what dies now.
    var openUnusedByteCount: Int {
        survey.dead.values.reduce(droppedByteCount) { sum, location in
            location.pack == openPack ? sum + location.shareByteCount : sum
        }
    }
}

extension PrunePlan {
    /// True if so much of the open pack is unused that sealing it may be worth it.
    ///
    /// Unless everything is wanted back, less than a sixteenth of a full pack is left to grow: a
    /// ring that is pruned often would consist of small packs. As much must have been added since
    /// a plan looked at it in vain, so that such a ring does not look each time.
    func wantsOpenPack(ofAtMost packByteCountMax: Int) -> Bool {
        let unused = openUnusedByteCount
        let options = preparation.options
        let percent = options.unusedPercentMax
        guard percent > 0 else { return unused >= options.rewriteByteCountMin }
        let useless = preparation.repository.activity.read { $0.uselessSeal }
        let known = useless?.pack == preparation.openPack ? useless?.unusedByteCount ?? 0 : 0
        // Both together: what may stay would else be twice as much as the options say.
        let left = packs.reduce(unused) { $1.fate == .kept ? $0 + $1.unusedByteCount : $0 }
        return unused - known >= packByteCountMax / 16
            && Double(left) * 100 > percent * Double(byteCount - freedByteCount)
    }

    /// True if something is done about a pack.
    func changes(_ pack: UInt32) -> Bool {
        packs.contains { $0.number == pack && $0.fate != .kept }
    }
}
