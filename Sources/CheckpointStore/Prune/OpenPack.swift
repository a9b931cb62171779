import CheckpointFormat

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

extension PageLocation {
    /// A page's share of its block.
    fileprivate var shareByteCount: Int { Int(blockByteCount) / max(1, Int(blockPageCount)) }
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

// MARK: - What the index says

extension Index {
    private static let droppedKey = "open"

    /// Bytes in a pack of pages that left the index while it was open.
    func droppedByteCount(in pack: UInt32) throws -> Int {
        try environment.read { transaction in
            let known = try dropped(transaction)
            return known?.pack == pack ? known?.byteCount ?? 0 : 0
        }
    }

    private func dropped(
        _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) -> (pack: UInt32, byteCount: Int)? {
        guard let bytes = try value(transaction, Index.droppedKey) else { return nil }
        guard bytes.count == 8 else { throw .damagedValue("open pack") }
        let words = [0, 4].map { start in
            bytes[start..<start + 4].reversed().reduce(0 as UInt32) { $0 << 8 | UInt32($1) }
        }
        return (words[0], Int(words[1]))
    }

    /// Notes pages that left the index in the same transaction, if they lay in the open pack.
    ///
    /// - Parameter openPack: the open pack, or one before it: others with higher numbers were begun
    ///   since. The highest counts.
    func noteDropped(
        _ locations: [PageLocation], from openPack: UInt32,
        _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) {
        guard let pack = locations.map(\.pack).max(), pack >= openPack else { return }
        let known = try dropped(transaction)
        if let known, known.pack > pack { return }
        let sum = locations.reduce(known?.pack == pack ? known?.byteCount ?? 0 : 0) {
            $1.pack == pack ? $0 + $1.shareByteCount : $0
        }
        var value = ByteWriter(reserving: 8)
        value.write(pack)
        value.write(UInt32(clamping: sum))
        try setValue(transaction, Index.droppedKey, value.bytes)
    }
}
