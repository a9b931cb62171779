import CheckpointFormat
import CheckpointIndex
public import CheckpointStore
public import GuestModel
public import PackStore
import Synchronization

// Verification has two passes.
//
//  1. Every pack is read from beginning to end: envelope, each record's checksum, each page group's
//     table, the pack index against the records, the footer. Packs are read in parallel on all
//     processors. If only the structure is verified, page groups are skipped.
//  2. Every checkpoint in order of publication: manifest and ID, page map and Merkle root, the
//     guest's state, and each page that it stored: decompressed and hashed on all processors while
//     the maps of the next ones are read. A page that an earlier checkpoint stored must be in the
//     index, and in an existing pack.
//
// If nothing is found, and every byte is verified, the tables of the index are compared with each
// other and with the page maps (`Index+Invariants`).
//
// If damage is found, the page maps are read once more: for pages that were not read, and for every
// checkpoint that contains an unreadable page.
//
// What a writer appends meanwhile is beyond the index's read mark and is ignored.

extension Repository {
    /// Reads and verifies a repository, on all processors.
    ///
    /// Damage is collected, not thrown; only errors of the disk are thrown. Blocks. Changes
    /// nothing, and nothing is left when it is cancelled.
    ///
    /// - Parameters:
    ///   - depth: every byte, the structure, or a sample.
    ///   - cancellation: ends it with `cancelled`.
    ///   - progress: called in phase `verifying` with bytes: each byte of the packs counts twice,
    ///     once for the records and once for the pages in them.
    public func verify(
        _ depth: VerifyDepth = .full, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) throws(RepositoryError) -> VerifyReport {
        let control = WorkControl(
            "the verification was cancelled; nothing was changed", cancellation, progress)
        return try verify(depth, control)
    }

    /// The same as part of another call.
    func verify(
        _ depth: VerifyDepth, _ control: WorkControl
    ) throws(RepositoryError) -> VerifyReport {
        try depth.check()
        try checkIdentity()
        let (report, arePacksWhole) = try look(depth, control)
        guard arePacksWhole, !report.isClean else { return report }
        // Only the index is wrong: the packs are verified without it.
        do {
            let (second, _) = try withoutIndex().look(depth, control)
            guard second.isClean else { return second }
        } catch {
            throw indexFailure(error)
        }
        throw IndexFailure.condemn(report.corruptions[0].description, at: path, files)
    }

    /// Fails if the file `repository` is another repository's: everything else would be damage.
    private func checkIdentity() throws(RepositoryError) {
        guard let packs = RepairIdentity.contradicting(id, files) else { return }
        throw RepositoryError(
            Corruption(
                file: "repository", offset: 0, object: "envelope",
                reason: RepairIdentity.sentence(id, packs)
                    + "; restore the file from a copy, or have 'varve repair' rebuild it"))
    }

    /// - Returns: the findings, and true if no pack is damaged by itself.
    private func look(
        _ depth: VerifyDepth, _ control: WorkControl
    ) throws(RepositoryError) -> (report: VerifyReport, arePacksWhole: Bool) {
        let head = try head()
        // A pack listed as removed is not part of the repository, even if it still exists.
        let gone = try withIndex { try $0.pruned() }
        let packs = try PackName.list(reader.files).filter { !gone.contains($0) }
        let mark = try acknowledgedEnd(head)
        let (catalog, lease) = try leaseAll()
        defer { withExtendedLifetime(lease) {} }
        let known = try withIndex { try $0.manifests() }
        let verification = Verification(
            repository: self, depth: depth, mark: mark, control: control)
        do {
            for corruption in damage { verification.findings.note(corruption) }
            head.corruption.map { verification.findings.note($0) }
            try verification.noteOddFiles()
            verification.measure(packs)
            try verification.readPacks(packs)
            let pruned = try withIndex { try $0.pruned() }
            verification.noteMissingPacks(packs, pruned)
            let arePacksWhole = verification.findings.isEmpty
            verification.state.withLock { $0.arePacksWhole = arePacksWhole }
            verification.addUpTotals(isUntouched: arePacksWhole && pruned.ranges.isEmpty)
            let (lost, alsoForgotten) =
                arePacksWhole ? ([], []) : try verification.lostCheckpoints(known)
            let existing = catalog.filter { !alsoForgotten.contains($0.id) }
            try verification.walk(
                existing,
                forgotten: known.filter { $0.isForgotten || alsoForgotten.contains($0.id) })
            for entry in lost { try verification.note(lost: entry) }
            let unindexed =
                arePacksWhole
                ? [] : try verification.unindexedCheckpoints(known + lost, alsoForgotten)
            if depth == .full { try verification.checkIndex() }
            try verification.findAffected(existing)
            let found = (lost.map { ($0.id, $0.location) } + unindexed)
            let all =
                found.isEmpty
                ? existing.map(\.id)
                : (existing.map { ($0.id, $0.location) } + found).sorted { $0.1 < $1.1 }.map(\.0)
            return (try verification.finish(all), arePacksWhole)
        } catch {
            throw indexFailure(error)
        }
    }
}

extension Repository {
    /// The end of acknowledged data: everything before it must be whole.
    ///
    /// The writer knows it. A reader beside a writer has the index's read mark, which may precede
    /// it by a few records, and the head.
    private func acknowledgedEnd(_ head: StoreHead) throws(RepositoryError) -> RecordLocation {
        let read = try withCurrentIndex { try $0.readMark() }
        let mark = max(read, head.confirmed ?? read)
        guard isWritable else { return mark }
        let end = try openWriter().confirmedEnd
        // The next pack is not created yet.
        return end.offset == 0 ? mark : max(mark, end)
    }

    private func head() throws(RepositoryError) -> StoreHead {
        do {
            return try StoreHead(files, id)
        } catch {
            throw RepositoryError(error)
        }
    }

    /// All checkpoints, with a lease on them.
    private func leaseAll() throws(RepositoryError) -> ([CatalogEntry], CheckpointLease) {
        while true {
            let catalog = try withIndex { try $0.catalog() }
            do throws(RepositoryError) {
                return (catalog, try lease(catalog.map(\.id)))
            } catch {
                // One was just forgotten: the catalog no longer has it.
                if error.code != .unknownName { throw error }
            }
        }
    }
}

/// A verification in progress.
final class Verification: Sendable {
    struct State: Sendable {
        var report: VerifyReport
        var done = 0
        var total = 0
        /// Manifests and forget records that were read, and their offsets in their files.
        var manifests: [(location: RecordLocation, offset: UInt32)] = []
        var forgets: [(location: RecordLocation, offset: UInt32)] = []
        /// False once a pack is known to be damaged or missing.
        var arePacksWhole = true
        /// What each pack contains of each transaction.
        var packTotals: [UInt32: [UInt64: TransactionTotals]] = [:]
        /// What all packs contain; nil if prune or repair removed anything.
        var totals: [UInt64: TransactionTotals]? = [:]
    }

    let repository: Repository
    let depth: VerifyDepth
    let mark: ReadMark
    let findings = VerifyFindings()
    let state: Mutex<State>
    let control: WorkControl
    var reader: PackReader { repository.reader }

    init(
        repository: Repository, depth: VerifyDepth, mark: ReadMark,
        control: WorkControl
    ) {
        self.repository = repository
        self.depth = depth
        self.mark = mark
        self.control = control
        state = Mutex(State(report: VerifyReport(depth: depth)))
    }

    /// Ends the verification and returns the report.
    ///
    /// - Parameter catalog: all checkpoints in order of publication.
    func finish(_ catalog: [CheckpointID]) throws(RepositoryError) -> VerifyReport {
        var (findings, affected) = findings.result(catalog)
        for index in findings.indices { name(&findings[index].corruption) }
        let total = state.withLock { $0.total }
        try control.report(.verifying, .bytes, total, of: total)
        return state.withLock { [findings] state in
            state.report.findings = findings
            state.report.affectedCheckpoints = affected
            state.report.checkpointCount = catalog.count - affected.count
            return state.report
        }
    }

    /// Adds the name of a disk, which the manifest of a checkpoint with the frame has.
    private func name(_ corruption: inout Corruption) {
        guard let frame = corruption.frame, frame.volume != .memory, let id = corruption.checkpoint,
            let checkpoint = try? repository.checkpoint(id: id)
        else { return }
        corruption.disk = checkpoint.manifest.volume(frame.volume)?.name
    }

    /// Reports relations of the index that do not hold, unless there is damage that explains them.
    func checkIndex() throws(RepositoryError) {
        guard findings.isEmpty else { return }
        try control.check()
        for relation in try repository.brokenIndexRelations() {
            findings.note(
                Corruption(
                    file: StoreDirectory.index, offset: 0, object: "relation \(relation.number)",
                    reason: relation.reason))
        }
    }

    func advance(_ byteCount: Int) throws(RepositoryError) {
        let (done, total) = state.withLock { state in
            state.done += byteCount
            return (state.done, state.total)
        }
        try control.report(.verifying, .bytes, min(done, total), of: total)
    }

    /// Records the records of transactions that were read, to check the counts in their manifests.
    func note(_ entries: [PackIndex.Entry], in pack: UInt32, isRewritten: Bool) {
        var totals: [UInt64: TransactionTotals] = [:]
        for entry in entries { totals[entry.transaction, default: .init()].add(entry) }
        func places(_ type: RecordType) -> [(location: RecordLocation, offset: UInt32)] {
            entries.filter { $0.type == type }.map {
                (RecordLocation(pack: pack, offset: $0.address), $0.offset)
            }
        }
        let (manifests, forgets) = (places(.publish), places(.forget))
        state.withLock { [totals] state in
            state.packTotals[pack] = totals
            state.manifests += manifests
            state.forgets += forgets
            if isRewritten { state.totals = nil }
        }
    }

    /// Adds up the contents of the packs, in order.
    ///
    /// - Parameter isUntouched: false if something was removed from them, or is damaged.
    func addUpTotals(isUntouched: Bool) {
        state.withLock { state in
            if !isUntouched { state.totals = nil }
            for (_, totals) in state.packTotals.sorted(by: { $0.key < $1.key }) {
                for (number, found) in totals {
                    state.totals?[number, default: .init()].add(found)
                }
            }
            state.packTotals = [:]
        }
    }

    /// Each byte is read twice: for the records, and for the pages in them.
    func measure(_ packs: [UInt32]) {
        var total = 0
        for pack in packs {
            // A pack that prune has removed since has no size.
            total += (try? repository.byteCount(of: pack)) ?? 0
        }
        let sum = total
        state.withLock { state in
            state.total = 2 * sum
            state.report.packCount = packs.count
        }
    }

    // MARK: - Checkpoints

    func walk(
        _ catalog: [CatalogEntry], forgotten: [CatalogEntry]
    ) throws(RepositoryError) {
        let pages = try VerifyPages(repository, findings, control)
        do throws(RepositoryError) {
            try walk(catalog, Set(forgotten.map(\.id)), pages)
            try walk(forgotten: forgotten, pages)
            if !findings.isEmpty { try checkUnread(catalog + forgotten, pages) }
        } catch {
            // Let the threads end before throwing the error.
            _ = try? pages.finish()
            throw error
        }
        let count = try pages.finish()
        state.withLock { $0.report.pageCount = count }
    }

    private func walk(
        _ catalog: [CatalogEntry], _ forgotten: Set<CheckpointID>, _ pages: VerifyPages
    ) throws(RepositoryError) {
        var last: (id: CheckpointID, map: PageMap)?
        for entry in catalog {
            try noting(entry) { () throws(RepositoryError) in
                // It is leased, so it exists even if it is forgotten meanwhile.
                let checkpoint = try repository.ancestor(entry.id)
                let isWhole = try noting(entry) { () throws(RepositoryError) in
                    last = try checkMap(checkpoint, after: last, forgotten)
                    try checkTotals(of: checkpoint)
                    _ = try repository.state(of: checkpoint)
                }
                if !isWhole { last = nil }
                // Others may have pages of a checkpoint that cannot itself be restored.
                try checkPages(of: checkpoint, pages)
            }
        }
    }

    /// Reports what makes a checkpoint unreadable; false if anything does.
    @discardableResult
    private func noting(
        _ entry: CatalogEntry, _ body: () throws(RepositoryError) -> Void
    ) throws(RepositoryError) -> Bool {
        do throws(RepositoryError) {
            try body()
            return true
        } catch {
            guard let corruption = error.attributed(to: entry.id).corruption else { throw error }
            findings.note(corruption, for: entry.id)
            return false
        }
    }

    /// Checks what is left of forgotten checkpoints: the pages that others inherit from them.
    ///
    /// Their page maps, if others are based on them, were read with those.
    private func walk(
        forgotten: [CatalogEntry], _ check: VerifyPages
    ) throws(RepositoryError) {
        let pruned = try repository.withIndex { try $0.pruned() }
        for entry in forgotten {
            do throws(RepositoryError) {
                if try reader.isPruned(entry.location, pruned) { continue }
                let checkpoint = try repository.read(entry)
                try MapReader.forEachPart(reader, checkpoint.manifest) {
                    (location) throws(RepositoryError) in
                    try reader.isPruned(location, pruned)
                } _: { (part) throws(RepositoryError) in
                    try part.forEachBatch(.storedHere) { (batch) throws(RepositoryError) in
                        submit(try repository.locateKnown(batch), of: checkpoint.id, check)
                    }
                }
                try advance(checkpoint.addedByteCount)
            } catch {
                // A damaged record was reported when its pack was read; a pruned one is not damage.
                guard error.corruption != nil || error.code == .unknownName else { throw error }
            }
        }
    }

    /// Checks a page map against its root.
    ///
    /// If the checkpoint's parent is the previous one, its delta over that one's map suffices: it
    /// contains every frame that differs.
    private func checkMap(
        _ checkpoint: Checkpoint, after last: (id: CheckpointID, map: PageMap)?,
        _ forgotten: Set<CheckpointID>
    ) throws(RepositoryError) -> (CheckpointID, PageMap) {
        if let last, checkpoint.parent == last.id, !checkpoint.hasBaseMap {
            // Checks the rule for its ancestor.
            _ = try repository.mapAncestor(of: checkpoint)
            let changed = try MapReader.apply(reader, checkpoint.manifest, to: last.map)
            last.map.keep(checkpoint.manifest.volumes.map(\.number))
            if last.map.hasRoots(of: checkpoint.manifest) {
                try checkCounts(of: checkpoint, last.map, differing: changed)
                return (checkpoint.id, last.map)
            }
        }
        // Reads it as a restore would; this throws if the root is wrong.
        let map = try repository.pageMap(of: checkpoint).map
        try checkInherited(by: checkpoint, map, forgotten)
        try checkCounts(of: checkpoint, map, differing: nil)
        return (checkpoint.id, map)
    }

    /// - Parameter differing: the number of frames that differ from its parent, if known.
    private func checkCounts(
        of checkpoint: Checkpoint, _ map: PageMap, differing: Int?
    ) throws(RepositoryError) {
        do throws(FormatError) {
            try checkpoint.manifest.check(map, differing: differing)
        } catch {
            throw reader.corrupted(checkpoint.location, .publish, error)
        }
    }

    private func checkTotals(of checkpoint: Checkpoint) throws(RepositoryError) {
        // Later ones were not read with the packs.
        guard checkpoint.location < mark,
            let totals = state.withLock({ $0.totals.map { $0[checkpoint.manifest.transaction] } })
        else { return }
        do throws(FormatError) {
            try checkpoint.manifest.check(totals ?? TransactionTotals())
        } catch {
            throw reader.corrupted(checkpoint.location, .publish, error)
        }
    }

    /// Submits the pages that a checkpoint stored; looks up the others.
    private func checkPages(
        of checkpoint: Checkpoint, _ pages: VerifyPages
    ) throws(RepositoryError) {
        try MapReader.forEachPart(reader, checkpoint.manifest) {
            (part) throws(RepositoryError) in
            try part.forEachBatch(.storedBefore) { (batch) throws(RepositoryError) in
                _ = try find(batch, for: checkpoint.id)
            }
            try part.forEachBatch(.storedHere) { (batch) throws(RepositoryError) in
                submit(try find(batch, for: checkpoint.id), of: checkpoint.id, pages)
            }
        }
        try advance(checkpoint.addedByteCount)
    }

    func submit(
        _ requests: [PageRequest], of checkpoint: CheckpointID, _ pages: VerifyPages
    ) {
        switch depth {
        case .full: pages.submit(requests, of: checkpoint)
        case .structure: break
        case .sample:
            pages.submit(requests.filter { depth.includes($0.location) }, of: checkpoint)
        }
    }

    /// Finds the checkpoints that contain a damaged page, even if another one stored it.
    func findAffected(_ catalog: [CatalogEntry]) throws(RepositoryError) {
        let damaged = findings.damagedDigests
        guard !damaged.isEmpty else { return }
        for entry in catalog {
            try control.check()
            guard let checkpoint = try? repository.ancestor(entry.id),
                let map = try? repository.pageMap(of: checkpoint).map
            else { continue }
            var held: Set<PageDigest> = []
            map.forEachPage(of: checkpoint.manifest.volumes.map(\.number)) { _, digest in
                if damaged.contains(digest) { held.insert(digest) }
            }
            if !held.isEmpty { findings.note(held, heldBy: entry.id) }
        }
    }
}

extension MapPart {
    /// Calls `body` with the frames of one kind with their digests, ascending, some at a time.
    ///
    /// Not all at once: arrays of megabytes cost more to be made than what is done with them.
    func forEachBatch<E: Error>(
        _ content: MapRun.Content,
        _ body: ([(frame: PageFrameNumber, digest: PageDigest)]) throws(E) -> Void
    ) throws(E) {
        let countMax = 1 << 14
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        try forEachRun { (run, digests) throws(E) in
            guard run.content == content else { return }
            for (frame, digest) in zip(run.range.frames, digests) {
                if pages.isEmpty { pages.reserveCapacity(min(countMax, self.digests.count)) }
                pages.append((PageFrameNumber(frame), digest))
                if pages.count == countMax {
                    try body(pages)
                    pages.removeAll(keepingCapacity: true)
                }
            }
        }
        if !pages.isEmpty { try body(pages) }
    }
}
