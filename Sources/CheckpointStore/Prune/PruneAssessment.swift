import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

// Determines which packs to examine, and what to keep of them.
//
// Only packs that may contain garbage are examined: those with a dead page, those with records of a
// checkpoint whose standing changed, and the index's candidates. For the others, the index has the
// result of the last examination, and packs never recorded contain no garbage. An error in that
// costs only space.
//
// What to keep of an examined pack is decided by data read here: its index says which blocks it has
// and which transaction wrote each, that transaction's page map which digest each page has, and the
// repository's index whether the page of that digest is at this location.

/// What to keep of the sealed packs.
struct PruneAssessment: Sendable {
    /// One sealed pack.
    struct Pack: Sendable {
        let number: UInt32
        let byteCount: Int
        /// Size if it is rewritten; 0 if nothing of it is kept.
        let cutByteCount: Int
        /// True if it contains a list of removed packs, which a newer one must replace.
        var holdsPruned = false

        /// Number of unneeded bytes.
        ///
        /// Headers of page groups that are split can outweigh them; then the pack is kept as it is.
        var unusedByteCount: Int { max(0, byteCount - cutByteCount) }
    }

    /// What to keep of an examined pack.
    private struct Kept: Sendable {
        /// Addresses of blocks.
        var blocks: Set<UInt32> = []
        /// Addresses of page maps, states and manifests.
        var records: Set<UInt32> = []
        /// Forgotten checkpoints whose manifests are not kept.
        var leaving: [CheckpointID: PendingPrune] = [:]
    }

    /// Sealed packs, ascending.
    var packs: [Pack] { known.values.sorted { $0.number < $1.number } }
    /// Number of unneeded bytes in them.
    var unusedByteCount: Int { known.values.reduce(0) { $0 + $1.unusedByteCount } }
    /// Size of all packs, including the open one.
    private(set) var byteCount = 0
    private var known: [UInt32: Pack] = [:]
    /// Packs that remain candidates: the open one, and those with data that is being read.
    private(set) var unsettled: Set<UInt32> = []
    private let recorded: Set<UInt32>
    private var kept: [UInt32: Kept] = [:]
    private let reader: PackReader
    private let survey: PruneSurvey
    private let transactions: Set<UInt64>
    private let control: WorkControl
    private let openPack: UInt32
    /// The pack before it if that is not sealed, but treated as sealed.
    private let sealing: OpenPackScan?

    /// Assesses the packs before `openPack`.
    ///
    /// - Parameter transactions: those in progress in this process: all that they wrote is kept.
    init(
        _ survey: PruneSurvey, openPack: UInt32, sealing: OpenPackScan? = nil,
        transactions: Set<UInt64>, repository: Repository, _ control: WorkControl
    ) throws(IndexError) {
        self.survey = survey
        self.sealing = sealing
        self.transactions = transactions
        self.control = control
        self.openPack = openPack
        reader = repository.reader
        let index = try IndexError.ofPacks(repository.withIndex { $0 })
        let uses = try index.packUses()
        recorded = Set(uses.keys)
        let packs = try IndexError.ofPacks(PackName.list(reader.files))
        for pack in packs where !survey.pruned.contains(pack) {
            let isSealed = pack < openPack
            let use = isSealed ? uses[pack] : nil
            let known = pack == sealing?.pack ? sealing?.byteCount : use?.byteCount
            let size: Int
            if let known {
                size = known
            } else {
                size = try IndexError.ofPacks(repository.byteCount(of: pack))
            }
            byteCount += size
            guard isSealed else { continue }
            self.known[pack] = Pack(
                number: pack, byteCount: size, cutByteCount: size - (use?.unusedByteCount ?? 0))
        }
        var candidates = Set(try index.candidates().keys)
        candidates.formUnion(survey.dead.values.map(\.pack))
        var standing = try Standing(
            survey, openPack: openPack, sealing: sealing, repository: repository)
        for step in survey.steps { try standing.changed(step.id, &candidates) }
        try assess(candidates, &standing)
        unsettled.formUnion(standing.unsettled)
    }

    /// Examines more packs.
    mutating func assess(_ packs: Set<UInt32>, of repository: Repository) throws(IndexError) {
        var standing = try Standing(
            survey, openPack: openPack, sealing: sealing, repository: repository)
        try assess(packs, &standing)
        unsettled.formUnion(standing.unsettled)
    }

    /// True if the pack was examined.
    func wasAssessed(_ pack: UInt32) -> Bool { kept[pack] != nil }

    /// True if the index has all that is known of a pack.
    func isRecorded(_ pack: UInt32) -> Bool { recorded.contains(pack) && kept[pack] == nil }

    /// The packs that were examined.
    var assessedPacks: Set<UInt32> { Set(kept.keys) }

    /// Forgotten checkpoints whose manifests go with a pack if it is rewritten or removed.
    func leaving(with pack: UInt32) -> [CheckpointID: PendingPrune] { kept[pack]?.leaving ?? [:] }

    private mutating func assess(_ packs: Set<UInt32>, _ standing: inout Standing)
        throws(IndexError)
    {
        var waiting = packs
        while let pack = waiting.popFirst() {
            try IndexError.ofPacks(control.check())
            if pack >= openPack { unsettled.insert(pack) }
            guard let before = known[pack], kept[pack] == nil else { continue }
            guard let entries = try entries(of: pack) else {
                known[pack] = nil
                continue
            }
            kept[pack] = try keep(entries, of: pack, &standing, &waiting)
            let cut = try cut(pack, entries, standing.index)
            known[pack] = Pack(
                number: pack, byteCount: before.byteCount, cutByteCount: cut.byteCount,
                holdsPruned: entries.contains { $0.type == .pruned })
        }
    }

    /// The records of a pack; nil if it is not sealed.
    private func entries(of pack: UInt32) throws(IndexError) -> [PackIndex.Entry]? {
        if let sealing, sealing.pack == pack { return sealing.entries }
        let scan = try IndexError.ofPacks(PackScan.scan(reader, pack: pack, isNewest: false))
        return scan.isSealed ? scan.entries : nil
    }

    /// Determines what to keep of a pack.
    private func keep(
        _ entries: [PackIndex.Entry], of pack: UInt32, _ standing: inout Standing,
        _ waiting: inout Set<UInt32>
    ) throws(IndexError) -> Kept {
        var kept = Kept()
        var groups: [UInt64: TransactionGroups] = [:]
        var numbers: Set<UInt64> = []
        for entry in entries {
            if entry.transaction > 0 { numbers.insert(entry.transaction) }
            guard let table = entry.frame else { continue }
            let location = RecordLocation(pack: pack, offset: entry.address)
            groups[entry.transaction, default: TransactionGroups()].append(table, at: location)
        }
        for number in numbers where !transactions.contains(number) {
            guard let checkpoint = try standing.checkpoint(of: number) else { continue }
            if var groups = groups[number] {
                try standing.keepBlocks(of: checkpoint, &groups, into: &kept.blocks)
            }
            let manifest = checkpoint.manifest
            switch try standing.standing(of: checkpoint) {
            case .exists:
                kept.records.formUnion(
                    checkpoint.recordLocations.filter { $0.pack == pack }.map(\.offset))
            case .isNeeded:
                kept.records.formUnion(
                    (manifest.mapParts + [checkpoint.location]).filter { $0.pack == pack }
                        .map(\.offset))
            case .isLeaving:
                waiting.formUnion(checkpoint.recordLocations.map(\.pack))
                guard checkpoint.location.pack == pack else { continue }
                kept.leaving[checkpoint.id] = .isLeaving(
                    transaction: number, mapAncestor: checkpoint.mapAncestor)
            }
        }
        return kept
    }

    /// The rewrite of an examined pack.
    func cut(_ pack: UInt32, _ index: Index) throws(IndexError) -> PackRewrite {
        let scan = try IndexError.ofPacks(PackScan.scan(reader, pack: pack, isNewest: false))
        return try cut(pack, scan.entries, index)
    }

    private func cut(
        _ pack: UInt32, _ entries: [PackIndex.Entry], _ index: Index
    ) throws(IndexError) -> PackRewrite {
        guard let kept = kept[pack] else {
            preconditionFailure("only an examined pack can be rewritten")
        }
        return try PackRewrite(
            entries,
            keepsBlock: { entry, address in
                transactions.contains(entry.transaction) || kept.blocks.contains(address)
            },
            keepsRecord: { (entry) throws(IndexError) in
                switch entry.type {
                case .forget:
                    // As long as a manifest is in the packs, some record must say that its
                    // checkpoint was forgotten.
                    let location = RecordLocation(pack: pack, offset: entry.address)
                    let record = try IndexError.ofPacks(ForgetRecord.read(reader, at: location))
                    for id in record.ids where try index.entry(CheckpointID(id)) != nil {
                        return true
                    }
                    return false
                case .labels:
                    // Only labels still in use. The last record that lists a checkpoint is always
                    // kept, so no kept record can bring back an older label.
                    let location = RecordLocation(pack: pack, offset: entry.address)
                    let record = try IndexError.ofPacks(LabelsRecord.read(reader, at: location))
                    for change in record.changes where try index.hasLabel(change) { return true }
                    return false
                case .mark, .pruned:
                    // A sealed pack is confirmed by its footer; removals are listed in a new record
                    // before it goes.
                    return false
                default:
                    return transactions.contains(entry.transaction)
                        || kept.records.contains(entry.address)
                }
            })
    }
}
