import CheckpointFormat
import CheckpointIndex
import GuestModel
import PackStore

/// Converts a survey to a plan.
struct RepairPlanner {
    private let survey: RepairSurvey
    private let stock: RepairStock
    private let verdicts: [RepairVerdict]
    /// The locations of pages that are stored again.
    private var found: [PageDigest: PagePlace]
    private var plan: RepairPlan
    private var preparation: RepairPreparation
    private var emptied: [UInt32: Set<RecordLocation>] = [:]
    /// Lost checkpoints, by the damaged place that caused the loss.
    private var affected: [Place: [CheckpointID]] = [:]
    /// Damaged page groups, by the transactions that stored their pages.
    private let damagedFrames: [UInt64: [(ordinals: Range<UInt64>, corruption: Corruption)]]
    /// Manifests of lost checkpoints that have no other damage.
    private var blamed: [(location: RecordLocation, corruption: Corruption)] = []
    /// Page groups to be removed although their records are whole, by file and offset: they
    /// contradict page maps or other page groups.
    private var strays: [Int: [UInt32: Corruption]] = [:]
    /// The locations of lost pages according to the index.
    private let hinted: [PageDigest: PageLocation]
    /// Blocks with unexpected contents, by file.
    private let wrongBlocks: [Int: Set<UInt64>]

    private struct Place: Hashable {
        let file: String
        let offset: UInt64

        init(_ corruption: Corruption) {
            (file, offset) = (corruption.file, corruption.offset)
        }
    }

    init(
        _ survey: RepairSurvey, _ stock: RepairStock, _ verdicts: [RepairVerdict],
        _ preparation: RepairPreparation
    ) throws(RepositoryError) {
        self.survey = survey
        self.stock = stock
        self.verdicts = verdicts
        self.preparation = preparation
        plan = RepairPlan(preparation)
        let wanted = verdicts.filter { $0.problem == nil }.flatMap { $0.missing.map(\.digest) }
        let found = try survey.search(for: Set(wanted), stock)
        self.found = found
        hinted = survey.hints.locations(of: wanted.filter { found[$0] == nil })
        damagedFrames = RepairPlanner.damagedFrames(survey)
        wrongBlocks = Dictionary(grouping: stock.wrong, by: \.file).mapValues {
            Set($0.map(\.offset))
        }
    }

    private static func damagedFrames(
        _ survey: RepairSurvey
    ) -> [UInt64: [(ordinals: Range<UInt64>, corruption: Corruption)]] {
        var result: [UInt64: [(ordinals: Range<UInt64>, corruption: Corruption)]] = [:]
        for salvage in survey.salvages {
            for damage in salvage.damages {
                guard let entry = damage.entry, let frame = entry.frame else { continue }
                let corruption = Corruption(
                    file: salvage.path, offset: damage.range.lowerBound, object: damage.object,
                    reason: damage.reason)
                result[entry.transaction, default: []].append((frame.ordinals, corruption))
            }
        }
        return result
    }

    /// The plan.
    mutating func make() throws(RepositoryError) -> RepairPlan {
        try sortCheckpoints()
        loseCondemned()
        planFiles()
        planRecords()
        planPacks()
        nameFindings()
        let result = RepairPlan(preparation)
        var finished = result
        finished.findings = plan.findings
        finished.losses = plan.losses
        finished.wholeCheckpoints = plan.wholeCheckpoints
        finished.rewrittenPacks = preparation.rewrites.map(\.pack)
        finished.removedPacks = plan.removedPacks
        finished.missingPacks = survey.missing
        finished.movedFiles = plan.movedFiles
        finished.keptByteCount = plan.keptByteCount
        finished.copiedByteCount = plan.copiedByteCount
        finished.openPack = plan.openPack
        return finished
    }

    // MARK: - Checkpoints

    private mutating func sortCheckpoints() throws(RepositoryError) {
        var saved: Set<PageDigest> = []
        for verdict in verdicts {
            let lost = verdict.missing.filter { found[$0.digest] == nil }
            if verdict.problem == nil, lost.isEmpty {
                plan.wholeCheckpoints.append(verdict.checkpoint)
                saved.formUnion(verdict.missing.map(\.digest))
                for location in verdict.emptied {
                    emptied[location.pack, default: []].insert(location)
                }
                continue
            }
            let reasons = verdict.problem.map { [$0] } ?? lost.map { reason(for: $0) }
            var frames = FrameSet()
            for page in lost { frames.insert(page.frame) }
            blame(verdict.checkpoint, reasons)
            lose(verdict.checkpoint.id, verdict.checkpoint, reasons, frames.runs())
            preparation.forgotten.append(verdict.checkpoint.id)
        }
        let condemned = Set(survey.condemned.map(\.id))
        for entry in survey.hints.manifests
        where !entry.isForgotten && survey.positions[entry.id] == nil
            && !condemned.contains(entry.id) && !survey.isPruned(entry.location)
        {
            lose(entry.id, nil, [survey.lost(entry.location, .publish)], [])
        }
        for digest in saved { noteStray(digest) }
        noteOverlapping()
        try save(&saved)
        preparation.forgotten += survey.forgottenByHint
        preparation.labels = survey.labelsByHint
        preparation.saved = saved.compactMap { digest in
            found[digest].map { (digest, $0) }
        }.sorted {
            ($0.place.block.file, $0.place.block.offset, $0.place.slot)
                < ($1.place.block.file, $1.place.block.offset, $1.place.slot)
        }
    }

    /// Treats the only page group that contains a page as damaged, if nothing else explains why the
    /// page is not where the page map says: the page group's transaction or ordinal is wrong.
    private mutating func noteStray(_ digest: PageDigest) {
        guard let block = found[digest]?.block, let origin = stock.origins[digest],
            survey.missing.isEmpty, stock.wrongPlaces[digest] == nil,
            damagedFrame(of: digest) == nil
        else { return }
        let salvage = survey.salvages[block.file]
        let near = salvage.entries.first(endingBehind: block.offset) { UInt64($0.end) }
        guard let entry = near, UInt64(entry.offset) <= block.offset, let frame = entry.frame
        else { return }
        let reason =
            if entry.transaction != origin.transaction {
                "it is of transaction \(entry.transaction), but its pages are of "
                    + "\(origin.transaction)"
            } else if survey.isLate(entry, in: block.file) {
                "it comes after the manifest of its transaction"
            } else {
                "its first page has ordinal \(frame.firstOrdinal), but the page map says another"
            }
        takeForStray(entry, in: block.file, reason)
    }

    private mutating func takeForStray(
        _ entry: PackIndex.Entry, in file: Int, _ reason: String
    ) {
        strays[file, default: [:]][entry.offset] = Corruption(
            file: survey.salvages[file].path, offset: UInt64(entry.offset),
            object: entry.type.description, reason: reason)
    }

    /// Treats all page groups of a transaction as damaged if some have the same ordinals as others,
    /// and blocks of any of them are removed: in what is left, ordinals that had the right page or
    /// none could get the wrong one.
    private mutating func noteOverlapping() {
        guard !strays.isEmpty || !wrongBlocks.isEmpty else { return }
        var frames: [UInt64: [(file: Int, entry: PackIndex.Entry, table: PageGroupTable)]] = [:]
        var cut: Set<UInt64> = []
        for file in survey.packs.values.sorted() {
            for entry in survey.salvages[file].entries {
                guard let table = entry.frame else { continue }
                frames[entry.transaction, default: []].append((file, entry, table))
                let isCut =
                    strays[file]?[entry.offset] != nil
                    || RepairSurvey.blocks(of: entry, in: file).contains {
                        wrongBlocks[file]?.contains($0.offset) == true
                    }
                if isCut { cut.insert(entry.transaction) }
            }
        }
        for transaction in cut {
            let own = frames[transaction, default: []]
            let ranges = own.map { $0.table.ordinals }.sorted { $0.lowerBound < $1.lowerBound }
            let overlap = zip(ranges, ranges.dropFirst()).contains {
                $0.upperBound > $1.lowerBound
            }
            guard overlap else { continue }
            for (file, entry, _) in own where strays[file]?[entry.offset] == nil {
                takeForStray(
                    entry, in: file,
                    "page groups of transaction \(transaction) have the same ordinals")
            }
        }
    }

    /// Saves pages that page maps locate correctly but whose page groups are removed.
    private mutating func save(_ saved: inout Set<PageDigest>) throws(RepositoryError) {
        for (file, offsets) in strays.sorted(by: { $0.key < $1.key }) {
            let blocks = survey.salvages[file].entries.filter { offsets[$0.offset] != nil }
                .flatMap { RepairSurvey.blocks(of: $0, in: file) }
            for (block, digests) in zip(blocks, try survey.pages.digests(of: blocks)) {
                for (slot, digest) in (digests ?? []).enumerated()
                where stock.available.contains(digest) && saved.insert(digest).inserted {
                    found[digest] = PagePlace(block: block, slot: UInt8(slot))
                }
            }
        }
    }

    /// The damaged page group that contains a page according to a page map.
    private func damagedFrame(of digest: PageDigest) -> Corruption? {
        guard let origin = stock.origins[digest] else { return nil }
        return damagedFrames[origin.transaction]?.first {
            $0.ordinals.contains(UInt64(origin.ordinal))
        }?.corruption
    }

    private mutating func loseCondemned() {
        for checkpoint in survey.condemned {
            lose(
                checkpoint.id, checkpoint, [survey.lost(checkpoint.location, .publish)], [])
        }
    }

    /// Reports a lost checkpoint's manifest as damaged, unless a damaged place that caused the loss
    /// is reported.
    private mutating func blame(_ checkpoint: Checkpoint, _ reasons: [Corruption]) {
        guard let first = reasons.first, !reasons.contains(where: survey.isNamed),
            !reasons.contains(where: isWrongBlock),
            let place = survey.records[checkpoint.location]
        else { return }
        let (file, offset) = (
            survey.salvages[place.file].path, UInt64(place.entry.offset)
        )
        let isItself = first.file == file && first.offset == offset
        let corruption = Corruption(
            file: file, offset: offset, object: RecordType.publish.description,
            reason: isItself ? first.reason : "what it refers to is unavailable: \(first)",
            checkpoint: checkpoint.id)
        blamed.append((checkpoint.location, corruption))
        affected[Place(corruption), default: []].append(checkpoint.id)
    }

    private func isWrongBlock(_ corruption: Corruption) -> Bool {
        corruption.reason == RepairPlanner.wrongBlock
    }

    private mutating func lose(
        _ id: CheckpointID, _ checkpoint: Checkpoint?, _ reasons: [Corruption],
        _ frames: [PageRange]
    ) {
        for place in Set(reasons.map(Place.init))
        where affected[place]?.contains(id) != true { affected[place, default: []].append(id) }
        plan.losses.append(
            RepairPlan.Loss(id: id, checkpoint: checkpoint, reason: reasons[0], frames: frames))
    }

    private static let wrongBlock = "the block does not contain the pages that the page map lists"

    /// The damaged place that lost a page.
    private func reason(
        for page: (frame: PageFrameNumber, digest: PageDigest)
    ) -> Corruption {
        func corruption(
            _ file: String, _ offset: UInt64, _ object: String, _ reason: String
        ) -> Corruption {
            Corruption(
                file: file, offset: offset, object: object, reason: reason, frame: page.frame)
        }
        if let block = stock.wrongPlaces[page.digest] {
            return corruption(
                survey.salvages[block.file].path, block.offset, "page",
                RepairPlanner.wrongBlock)
        }
        if let found = damagedFrame(of: page.digest) {
            return corruption(found.file, found.offset, found.object, found.reason)
        }
        if let location = hinted[page.digest], survey.packs[location.pack] == nil {
            return corruption(
                PackName.path(location.pack), 0, "pack", "the file is missing")
        }
        return corruption(
            StoreDirectory.packs, 0, "page", "no pack has the page \(page.digest)")
    }

    // MARK: - Files

    private mutating func planFiles() {
        preparation.paths = survey.salvages.map(\.path)
        for (name, reason) in survey.junk {
            plan.movedFiles.append(name)
            let path = "\(StoreDirectory.packs)/\(name)"
            plan.keptByteCount +=
                survey.salvages.first { $0.name == name }
                .map { Int($0.byteCount) } ?? 0
            note(Corruption(file: path, offset: 0, object: "file", reason: reason), nil, .moved)
        }
        for (pack, file) in survey.packs.sorted(by: { $0.key < $1.key }) {
            guard case .misplaced = survey.salvages[file].kind else { continue }
            let salvage = survey.salvages[file]
            preparation.misplaced.append((salvage.name, pack))
            note(
                Corruption(
                    file: salvage.path, offset: 0, object: "pack", reason: "it is pack \(pack)"),
                nil, .renamed)
        }
        for salvage in survey.salvages {
            if case .hollow = salvage.kind { preparation.hollow.append(salvage.name) }
        }
        for gap in survey.missing {
            note(
                Corruption(
                    file: PackName.path(gap.lowerBound), offset: 0, object: "pack",
                    reason: PackGaps.words(gap)), nil, .named)
        }
        if let problem = preparation.envelopeProblem {
            note(
                Corruption(file: "repository", offset: 0, object: "envelope", reason: problem),
                nil, .rebuilt)
        }
        if let corruption = survey.hints.head.corruption { note(corruption, nil, .rebuilt) }
        if let problem = survey.hints.problem {
            note(
                Corruption(file: "index", offset: 0, object: "index", reason: problem), nil,
                .rebuilt)
        } else if !isIndexRight {
            note(
                Corruption(
                    file: "index", offset: 0, object: "index",
                    reason: "it does not match the packs"), nil, .rebuilt)
        }
    }

    /// True if the index, if there is one, agrees with the packs on whole checkpoints and pages.
    private var isIndexRight: Bool {
        guard survey.hints.index != nil else { return true }
        let living = survey.hints.manifests.filter { !$0.isForgotten }
        if living.contains(where: { survey.isPruned($0.location) }) { return false }
        let known = Set(living.map(\.id))
        let acknowledged = verdicts.filter { verdict in
            let location = verdict.checkpoint.location
            guard let mark = survey.hints.mark else { return false }
            return (location.pack, location.offset) < (mark.pack, mark.offset)
        }
        return acknowledged.allSatisfy { known.contains($0.checkpoint.id) } && !stock.indexIsWrong
    }

    // MARK: - Records and packs

    private mutating func planRecords() {
        let hollow = survey.salvages.filter { if case .hollow = $0.kind { true } else { false } }
        let highest = max(survey.highestPack, hollow.map(\.number).max() ?? 0)
        // A hollow pack is removed first, which frees its number.
        preparation.nextPack = hollow.isEmpty ? highest + 1 : survey.highestPack + 1
        preparation.nextTransaction = survey.highestTransaction + 1
        if !survey.missing.isEmpty || survey.prunedIsLost {
            preparation.pruned = survey.pruned.union(PrunedRecord(ranges: survey.missing))
        }
    }

    private mutating func planPacks() {
        let packs = survey.packs.sorted { $0.key < $1.key }
        for (pack, file) in packs {
            let salvage = survey.salvages[file]
            let isTouched =
                !salvage.damages.isEmpty || salvage.envelopeProblem != nil
                || salvage.sealProblem != nil || emptied[pack] != nil
                || wrongBlocks[file] != nil || strays[file] != nil
                || survey.wrong.keys.contains { $0.pack == pack }
                || blamed.contains { $0.location.pack == pack }
            if isTouched { plan(pack, salvage, file, isDamaged: true) }
        }
        guard preparation.needsPack else { return }
        let touched = Set(preparation.rewrites.map(\.pack) + plan.removedPacks)
        plan.openPack = openPack(touched)
        // Only the newest pack may be unsealed.
        for (pack, file) in packs where !touched.contains(pack) && pack != plan.openPack?.pack {
            let salvage = survey.salvages[file]
            if !salvage.isSealedAndWhole { plan(pack, salvage, file, isDamaged: false) }
        }
    }

    /// The newest pack and the end of its records, if a writer would continue there.
    ///
    /// Not if pages to be saved are in the tail that a crash left: a writer would truncate that,
    /// and they must be stored first. Then a later pack is created, which keeps writers away until
    /// everything is repaired.
    private func openPack(_ touched: Set<UInt32>) -> RecordLocation? {
        guard let (pack, file) = survey.packs.max(by: { $0.key < $1.key }),
            pack >= survey.highestPack
        else { return nil }
        let salvage = survey.salvages[file]
        guard !salvage.hasSeal || salvage.abandonedByteCount > 0, !salvage.isRewritten,
            salvage.damages.isEmpty, salvage.envelopeProblem == nil, salvage.sealProblem == nil
        else { return nil }
        // A pack that is rewritten gets sealed first, which is impossible without records.
        guard !salvage.entries.isEmpty || !touched.contains(pack) else { return nil }
        let end = salvage.entries.last?.end ?? UInt32(Envelope.byteCount)
        let isLast = preparation.saved.contains {
            $0.place.block.file == file && $0.place.block.offset >= UInt64(end)
        }
        return isLast ? nil : RecordLocation(pack: pack, offset: end)
    }

    private mutating func plan(
        _ pack: UInt32, _ salvage: PackSalvage, _ file: Int, isDamaged: Bool
    ) {
        var entries = salvage.entries
        var payloads: [UInt32: [UInt8]] = [:]
        for (index, location) in (emptied[pack] ?? []).enumerated() {
            // No record begins at an odd offset.
            let stand = UInt32(2 * index + 1)
            payloads[stand] = RepairSurvey.emptyPart
            entries.append(
                PackIndex.Entry(
                    type: .mapPart, offset: stand, payloadCount: RepairSurvey.emptyPart.count,
                    transaction: survey.transaction(ofPart: location), address: location.offset,
                    frame: nil))
        }
        entries.sort { $0.addresses.lowerBound < $1.addresses.lowerBound }
        let cut = PackRewrite(entries, bridgeByteCountMax: 0) { entry, address in
            let place = UInt64(entry.offset) + UInt64(address - entry.address)
            return wrongBlocks[file]?.contains(place) != true
                && strays[file]?[entry.offset] == nil
        } keepsRecord: { entry in
            let location = RecordLocation(pack: pack, offset: entry.address)
            return entry.type != .mark && survey.wrong[location] == nil
        }
        if isDamaged { plan.keptByteCount += Int(salvage.byteCount) }
        if cut.byteCount == 0 {
            plan.removedPacks.append(pack)
            preparation.pruned = (preparation.pruned ?? survey.pruned).union([pack])
        } else {
            plan.copiedByteCount += cut.byteCount
            preparation.rewrites.append(
                RepairPreparation.Rewrite(
                    pack: pack, cut: cut, payloads: payloads, isDamaged: isDamaged))
        }
    }

    // MARK: - Findings

    private mutating func note(
        _ corruption: Corruption, _ end: UInt64?, _ remedy: RepairPlan.Remedy
    ) {
        plan.findings.append(
            RepairPlan.Finding(
                corruption: corruption, end: end, remedy: remedy,
                affectedCheckpoints: affected[Place(corruption)] ?? []))
    }

    private mutating func nameFindings() {
        let removed = Set(plan.removedPacks)
        for (pack, file) in survey.packs.sorted(by: { $0.key < $1.key }) {
            let salvage = survey.salvages[file]
            let remedy = removed.contains(pack) ? RepairPlan.Remedy.removed : .rewritten
            func at(_ offset: UInt64, _ object: String, _ reason: String) -> Corruption {
                Corruption(file: salvage.path, offset: offset, object: object, reason: reason)
            }
            if let problem = salvage.envelopeProblem {
                note(at(0, "envelope", problem), UInt64(Envelope.byteCount), remedy)
            }
            for damage in salvage.damages {
                note(
                    at(damage.range.lowerBound, damage.object, damage.reason),
                    damage.range.upperBound, remedy)
            }
            for (_, corruption) in (strays[file] ?? [:]).sorted(by: { $0.key < $1.key }) {
                note(corruption, nil, remedy)
            }
            for offset in (wrongBlocks[file] ?? []).sorted() {
                note(at(offset, "page", RepairPlanner.wrongBlock), nil, remedy)
            }
            let wrong = survey.wrong.filter { $0.key.pack == pack }
            for (_, corruption) in wrong.sorted(by: { $0.key.offset < $1.key.offset }) {
                note(corruption, nil, remedy)
            }
            for (location, corruption) in blamed where location.pack == pack {
                note(corruption, nil, .forgotten)
            }
            if let problem = salvage.sealProblem {
                note(at(salvage.byteCount, "pack index", problem), nil, remedy)
            }
        }
    }
}

extension RepairSurvey {
    /// The transaction of the checkpoint whose page map contains a part.
    func transaction(ofPart location: RecordLocation) -> UInt64 {
        let owner = members.first { $0.checkpoint.manifest.mapParts.contains(location) }
        return owner?.checkpoint.manifest.transaction ?? 0
    }
}

extension PageGroupTable {
    /// The ordinals of its pages.
    fileprivate var ordinals: Range<UInt64> {
        let first = UInt64(firstOrdinal)
        return first..<first + UInt64(pageCount)
    }
}
