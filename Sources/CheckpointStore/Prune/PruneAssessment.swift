import CheckpointFormat
import GuestModel

/// What of each sealed pack stays, given what is kept of the catalog.
struct PruneAssessment: Sendable {
    /// One sealed pack.
    struct Pack: Sendable {
        let number: UInt32
        let byteCount: Int
        /// Bytes if it is written anew; 0 if nothing of it stays.
        let cutByteCount: Int
        /// True if it holds a list of removed packs, which a newer one must take over.
        let holdsPruned: Bool

        /// Bytes that nobody needs.
        ///
        /// Heads of page frames that were cut can outweigh them; then it stays as it is.
        var unusedByteCount: Int { max(0, byteCount - cutByteCount) }
    }

    /// Which blocks stay, which records do.
    private struct Kept: Sendable {
        /// Addresses of blocks that the index names, sorted, for each pack.
        var blocks: [UInt32: [UInt32]] = [:]
        /// Transactions under way: all that they wrote stays.
        var transactions: Set<UInt64> = []
        /// Page maps, states and manifests.
        var records: [UInt32: Set<UInt32>] = [:]

        func hasBlock(_ entry: PackIndex.Entry, in pack: UInt32, _ address: UInt32) -> Bool {
            if transactions.contains(entry.transaction) { return true }
            guard let blocks = blocks[pack] else { return false }
            var (low, high) = (0, blocks.count)
            while low < high {
                let middle = (low + high) / 2
                if blocks[middle] < address { low = middle + 1 } else { high = middle }
            }
            return low < blocks.count && blocks[low] == address
        }
    }

    /// Sealed packs, ascending.
    private(set) var packs: [Pack] = []
    /// Forgotten checkpoints whose manifests go with these packs if the packs are written anew.
    private(set) var leaving: [CheckpointID: UInt32] = [:]
    private var kept = Kept()
    private let reader: PackReader
    private let survey: PruneSurvey

    /// Assesses the packs before `openPack`.
    ///
    /// - Parameter transactions: those under way in this process.
    init(
        _ survey: PruneSurvey, openPack: UInt32, transactions: Set<UInt64>, repository: Repository
    ) throws {
        self.survey = survey
        reader = repository.reader
        kept.transactions = transactions
        let numbers = try PackName.list(reader.files).filter {
            $0 < openPack && !survey.pruned.contains($0)
        }
        // A place in an array for each pack: the index's pages come in no order of packs.
        var places = [Int?](repeating: nil, count: Int(openPack))
        for (place, pack) in numbers.enumerated() { places[Int(pack)] = place }
        var blocks = [[UInt32]](repeating: [], count: numbers.count)
        try repository.withIndex { index in
            try index.forEachPage { digest, location in
                guard location.pack < openPack, let place = places[Int(location.pack)],
                    survey.dead.isEmpty || survey.dead[digest] != location
                else { return }
                blocks[place].append(location.blockOffset)
            }
        }
        for (place, pack) in numbers.enumerated() {
            blocks[place].sortUnique()
            kept.blocks[pack] = blocks[place]
            blocks[place] = []
        }
        keepRecords(of: try transactionsWithBlocks(numbers))
        for pack in numbers {
            let scan = try PackScan.scan(reader, pack: pack, isNewest: false)
            guard scan.isSealed else { continue }
            let cut = try cut(pack, scan.entries)
            packs.append(
                Pack(
                    number: pack, byteCount: Int(scan.fileByteCount), cutByteCount: cut.byteCount,
                    holdsPruned: scan.entries.contains { $0.type == .pruned }))
        }
    }

    /// What stays of a pack.
    func cut(_ pack: UInt32) throws -> PackCut {
        try cut(pack, try PackScan.scan(reader, pack: pack, isNewest: false).entries)
    }

    private func cut(_ pack: UInt32, _ entries: [PackIndex.Entry]) throws -> PackCut {
        try PackCut(
            entries, keepsBlock: { kept.hasBlock($0, in: pack, $1) },
            keepsRecord: { try keeps($0, in: pack) })
    }

    private func keeps(_ entry: PackIndex.Entry, in pack: UInt32) throws -> Bool {
        switch entry.type {
        case .forget:
            // As long as a manifest is in the packs, something must say that it counts no more.
            let location = RecordLocation(pack: pack, offset: entry.address)
            return try ForgetRecord.read(reader, at: location).ids.contains {
                survey.known.contains(CheckpointID($0))
            }
        case .mark, .pruned:
            // A sealed pack is confirmed by its footer; removals are stated anew before it goes.
            return false
        default:
            return kept.transactions.contains(entry.transaction)
                || kept.records[pack]?.contains(entry.address) == true
        }
    }

    /// Transactions of which pages stay: their page maps say which pages these are.
    private func transactionsWithBlocks(_ packs: [UInt32]) throws -> Set<UInt64> {
        var result: Set<UInt64> = []
        for pack in packs {
            for entry in try PackScan.scan(reader, pack: pack, isNewest: false).entries {
                guard let frame = entry.frame, !result.contains(entry.transaction) else { continue }
                var address = UInt32(entry.addresses.lowerBound)
                for block in frame.blocks {
                    if kept.hasBlock(entry, in: pack, address) {
                        result.insert(entry.transaction)
                        break
                    }
                    address += block.byteCount
                }
            }
        }
        return result
    }

    private mutating func keepRecords(of transactions: Set<UInt64>) {
        for member in survey.members {
            let manifest = member.checkpoint.manifest
            let location = member.checkpoint.location
            guard
                member.isRoot || member.isNeeded || transactions.contains(manifest.transaction)
            else {
                leaving[member.checkpoint.id] = location.pack
                continue
            }
            let states = member.isRoot ? manifest.stateParts : []
            for location in [location] + manifest.mapParts + states {
                kept.records[location.pack, default: []].insert(location.offset)
            }
        }
    }
}

extension [UInt32] {
    /// Sorts, and drops equal ones.
    fileprivate mutating func sortUnique() {
        sort()
        var count = 0
        for index in indices where count == 0 || self[count - 1] != self[index] {
            self[count] = self[index]
            count += 1
        }
        removeLast(self.count - count)
    }
}
