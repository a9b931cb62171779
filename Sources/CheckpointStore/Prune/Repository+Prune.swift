import CheckpointFormat
import CheckpointIndex
public import GuestModel
import LMDBTables
public import PackStore
import Synchronization

// How a prune runs beside captures and readers:
//
//   1. The dead pages are condemned: a transaction that begins from now on stores them again.
//   2. It waits for transactions that had already begun: they may rely on a condemned page.
//   3. If the index changed since the plan, it plans again: a new checkpoint may refer to a page.
//   4. The forgotten checkpoints give up their owned frames, one by one. Then the dead pages leave
//      the index, unless they were stored again in the meantime.
//   5. The packs to be removed are listed in a record, which is synced.
//   6. Packs are rewritten or removed; the directory is synced.
//   7. Forgotten checkpoints whose manifests are gone leave the index.
//
// A crash at any point leaves packs that read as before: the index lacks at most dead pages, each
// pack exists in its old or its new form, and a removed pack was listed first. Dead pages leave the
// index before the record is written: the next writer removes the packs that it lists, and there
// must be no pages in them. Packs that are about to change are candidates until they have changed.

/// The data from which a plan was made.
struct PrunePreparation: Sendable {
    let repository: Repository
    /// Forgotten checkpoints that prune had not finished removing.
    let pending: [CheckpointID: PendingPrune]
    /// Checkpoints that were leased.
    let kept: Set<CheckpointID>
    var survey: PruneSurvey
    var assessment: PruneAssessment
    let options: PruneOptions
    /// The first pack that is not touched.
    var openPack: UInt32
    /// Transactions that were in progress.
    let transactions: Set<UInt64>
    /// Number of prunes begun by this process.
    let pruneCount: Int
    /// The index's state before anything was read.
    let moment: UInt64
    /// Bytes in sealed packs that are kept only because of `kept`.
    let leasedByteCount: Int
    /// Bytes in the open pack of pages that became garbage earlier.
    let droppedByteCount: Int
    /// True if the unused bytes in the open pack, which is kept, count towards the allowed unused
    /// bytes.
    var countsOpenPack = false
}

extension Repository {
    /// Determines what a prune would do.
    ///
    /// Reads the page maps of forgotten checkpoints, and the indexes and page maps of the packs
    /// that contain parts of them: no pages, and of the rest of the repository only the names and
    /// sizes of its packs. Needs about 100 bytes of memory per page that becomes garbage, plus 32
    /// MiB.
    ///
    /// Packs that are not sealed are kept as they are. But the open pack is treated as sealed if
    /// otherwise more than the options allow would remain unused, including its bytes, and if it
    /// contains at least a sixteenth of a full pack of unused bytes, or 4 KiB if nothing may remain
    /// unused. If the plan then changes that pack, and the repository is open for writing, it is
    /// sealed: one write and one sync. Nothing is sealed while a checkpoint is being taken.
    ///
    /// If the repository is open for reading, the plan is an estimate while another process is
    /// writing; if the repository's own index cannot be used, a temporary one is built, which reads
    /// every page map.
    ///
    /// Blocks. Nothing is changed if `cancellation` ends it, with `cancelled`.
    public func planPrune(
        _ options: PruneOptions = PruneOptions(), cancellation: Cancellation? = nil
    ) throws(RepositoryError) -> PrunePlan {
        try options.check()
        try requireWhole()
        let control = WorkControl(
            "planning the prune was cancelled; nothing was changed", cancellation)
        return try besideAWriter { () throws(IndexError) in
            try IndexError.ofPacks(control.check())
            try IndexError.ofPacks(catchUp())
            return try withReferences().choosePlan(options, control)
        }
    }

    private func choosePlan(
        _ options: PruneOptions, _ control: WorkControl
    ) throws(IndexError) -> PrunePlan {
        let plan = try plan(options, control)
        let openPack = plan.preparation.openPack
        guard plan.wantsOpenPack(ofAtMost: packByteCountMax),
            let scan = try IndexError.ofPacks(openPackScan(openPack))
        else { return plan }
        let sealed = try self.plan(options, control, sealing: scan)
        guard sealed.changes(openPack) else {
            let unused = plan.openUnusedByteCount
            activity.change { $0.uselessSeal = (openPack, unused) }
            // It is better to rewrite other packs.
            var preparation = plan.preparation
            preparation.countsOpenPack = true
            return try PrunePlan(preparation)
        }
        guard isWritable else { return sealed }
        guard try IndexError.ofPacks(openWriter().sealQuietPack()) else { return plan }
        return try self.plan(options, control)
    }

    /// The contents of the open pack; nil if it cannot be sealed.
    private func openPackScan(_ pack: UInt32) throws(RepositoryError) -> OpenPackScan? {
        guard isWritable else { return try OpenPackScan(reading: pack, reader) }
        guard let entries = try openWriter().quietEntries(of: pack) else { return nil }
        return OpenPackScan(pack: pack, entries: entries)
    }

    /// - Parameter scan: the open pack, to be treated as sealed.
    private func plan(
        _ options: PruneOptions, _ control: WorkControl, sealing scan: OpenPackScan? = nil
    ) throws(IndexError) -> PrunePlan {
        // Before everything else: later publications may refer to a page that the survey finds
        // dead.
        let moment = try IndexError.ofPacks(withIndex { try $0.moment() })
        // Session leases and catalog of one moment: a session that moves from one checkpoint to the
        // next has one of them in it. Reader leases are read afterwards: a later lease sees what
        // was forgotten.
        let (found, held, transactions, count) = activity.read { activity in
            (
                Result { () throws(RepositoryError) in try self.withIndex { try $0.pending() } },
                Set(activity.sessionLeases.keys), Set(activity.transactions.keys),
                activity.pruneCount
            )
        }
        let pending = try IndexError.ofPacks(found.get())
        let kept = held.union(try IndexError.ofPacks(leased()))
        let survey = try PruneSurvey(pending, kept: kept, repository: self, control)
        let openPack =
            if let scan { scan.pack + 1 } else { try IndexError.ofPacks(prunableEnd()) }
        let assessment = try PruneAssessment(
            survey, openPack: openPack, sealing: scan, transactions: transactions,
            repository: self, control)
        var leasedByteCount = 0
        if !survey.guarded.isEmpty || kept.contains(where: { pending[$0] != nil }) {
            let free = try PruneAssessment(
                try PruneSurvey(pending, kept: [], repository: self, control),
                openPack: openPack, sealing: scan, transactions: transactions, repository: self,
                control)
            leasedByteCount = max(0, free.unusedByteCount - assessment.unusedByteCount)
        }
        return try PrunePlan(
            PrunePreparation(
                repository: self, pending: pending, kept: kept, survey: survey,
                assessment: assessment, options: options, openPack: openPack,
                transactions: transactions, pruneCount: count, moment: moment,
                leasedByteCount: leasedByteCount,
                droppedByteCount: try IndexError.ofPacks(
                    withIndex { try $0.droppedByteCount(in: openPack) })))
    }

    /// The first pack that must not be touched.
    private func prunableEnd() throws(RepositoryError) -> UInt32 {
        if isWritable { return try openWriter().openPack }
        let newest = try withIndex { try $0.readMark() }.pack
        // A writer may have sealed it without beginning another one.
        guard let file = try? reader.file(newest) else { return newest }
        let scan = try? PackScan.scanSeal(file.file, pack: newest, isRewritten: file.isRewritten)
        return scan == nil ? newest : newest + 1
    }
}

extension PrunePlan {
    /// Carries out a plan.
    ///
    /// Captures and readers continue; it waits for transactions that had already begun, so the
    /// caller must not have one open. If this throws, completed steps remain done, nothing that is
    /// needed is lost, and a new plan does the rest.
    ///
    /// Blocks. Cancelling wakes it from the wait for transactions, and otherwise ends it before the
    /// next pack.
    ///
    /// - Parameters:
    ///   - cancellation: ends it with `cancelled`.
    ///   - progress: called in phase `rewriting` with packs.
    /// - Returns: what was done; it differs from the plan by what was published since.
    @discardableResult
    public func execute(
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(RepositoryError) -> PrunePlan {
        let control = WorkControl(
            "the prune was cancelled; nothing that is needed was removed, and the next prune does "
                + "the rest", cancellation, progress)
        let repository = preparation.repository
        let writer = try repository.openWriter()
        let isFirst = repository.activity.change { activity in
            guard !activity.isPruning, activity.pruneCount == preparation.pruneCount else {
                return false
            }
            activity.isPruning = true
            activity.pruneCount += 1
            return true
        }
        guard isFirst else {
            throw RepositoryError(
                .planStale, "another prune ran since this one was planned; plan it again")
        }
        defer {
            repository.activity.change { activity in
                activity.isPruning = false
                activity.condemned = []
            }
        }
        do throws(IndexError) {
            let plan = try settled(writer, control)
            guard !plan.isEmpty || plan.hasPreparedChanges else { return plan }
            try PruneOperation(plan: plan, writer: writer).run(control)
            return plan
        } catch {
            throw repository.indexFailure(error)
        }
    }

    /// Condemns the dead pages, waits for transactions that may rely on them, and accounts for what
    /// these published.
    private func settled(
        _ writer: PackWriter, _ control: WorkControl
    ) throws(IndexError) -> PrunePlan {
        let repository = preparation.repository
        // From now on no sealed pack is taken back, even if a transaction is abandoned.
        writer.leaveSealedPacks()
        let openPack = writer.openPack
        let condemned = Set(preparation.survey.dead.keys)
        let active = repository.activity.change { activity in
            activity.condemned = condemned
            return activity.transactions.keys
        }
        let settled: Void? = repository.activity.wait(until: control.cancellation) { now in
            active.allSatisfy { now.transactions[$0] == nil } ? () : nil
        }
        guard settled != nil else { throw .repository(control.cancelled) }
        try IndexError.ofPacks(repository.catchUp())
        guard !repository.indexIsBehind else {
            throw .repository(
                RepositoryError(
                    .busy, "the index lacks a checkpoint while others are taken; prune again later")
            )
        }
        var preparation = preparation
        let moment = try IndexError.ofPacks(repository.withIndex { try $0.moment() })
        let isUnchanged =
            moment == preparation.moment && preparation.transactions.isEmpty
            && openPack >= preparation.openPack
        guard !isUnchanged else { return self }
        preparation.openPack = min(openPack, preparation.openPack)
        // The same checkpoints go. None of them can have been leased in the meantime, and nothing
        // published since is based on them.
        var survey = try PruneSurvey(
            preparation.pending, kept: preparation.kept, repository: repository, control)
        survey.restrict(to: preparation.survey)
        preparation.survey = survey
        preparation.assessment = try PruneAssessment(
            survey, openPack: preparation.openPack, transactions: [], repository: repository,
            control)
        return try PrunePlan(preparation)
    }
}

extension PrunePlan {
    /// True if there is anything to change in the index.
    fileprivate var hasPreparedChanges: Bool {
        deadPageCount > 0 || !preparation.survey.steps.isEmpty
            || !preparation.survey.vanished.isEmpty || !preparation.assessment.assessedPacks.isEmpty
    }
}

/// A settled plan being carried out.
private struct PruneOperation {
    private let plan: PrunePlan
    private let writer: PackWriter
    private let repository: Repository
    private let files: any RepositoryFiles
    private let index: Index

    init(plan: PrunePlan, writer: PackWriter) throws(IndexError) {
        self.plan = plan
        self.writer = writer
        repository = plan.preparation.repository
        files = repository.files
        index = try IndexError.ofPacks(repository.withIndex { $0 })
    }

    func run(_ control: WorkControl) throws(IndexError) {
        let touched = plan.packs.filter { $0.fate != .kept }
        var leaving: [CheckpointID: PendingPrune] = [:]
        for pack in touched {
            leaving.merge(plan.preparation.assessment.leaving(with: pack.number)) { $1 }
        }
        // LMDB does not check this itself.
        try IndexError.ofFiles(files.checkPlace(writing: nil))
        let moment = try changeIndex(leaving)
        try nameRemoved()
        repository.activity.change { $0.condemned = [] }
        try index.setPackSizes(Dictionary(uniqueKeysWithValues: touched.map { ($0.number, nil) }))
        for (done, pack) in touched.enumerated() {
            try IndexError.ofPacks(
                control.report(.rewriting, .packs, done, of: touched.count))
            try repository.packChanges.withLock { _ throws(IndexError) in
                if pack.fate == .removed {
                    try IndexError.ofFiles(remove(pack.number))
                } else {
                    try rewrite(pack.number)
                }
            }
        }
        if !touched.isEmpty {
            try IndexError.ofFiles(files.syncDirectory(StoreDirectory.packs))
        }
        let rewritten = touched.filter { $0.fate == .rewritten }.map(\.number)
        try index.measure(rewritten, repository.reader)
        try index.drop(leaving.merging(plan.preparation.survey.vanished) { $1 })
        try noteUses(upTo: moment)
        try? control.report(.rewriting, .packs, touched.count, of: touched.count)
    }

    /// Removes the owned frames of forgotten checkpoints, and the dead pages, from the index.
    ///
    /// - Returns: the index's state since which packs that change are candidates.
    private func changeIndex(_ leaving: [CheckpointID: PendingPrune]) throws(IndexError) -> UInt64 {
        let survey = plan.preparation.survey
        let assessment = plan.preparation.assessment
        var moment: UInt64 = 0
        try index.environment.write { (txn) throws(IndexError) in
            moment = txn.moment
            for pack in assessment.assessedPacks.union(assessment.unsettled) {
                try index.addCandidate(pack, txn)
            }
        }
        var steps = survey.steps[...]
        while !steps.isEmpty {
            var count = 0
            var end = steps.startIndex
            while end < steps.endIndex, count < PruneOperation.changeCountMax {
                count += 1 + steps[end].lost.count + steps[end].gained.count
                end += 1
            }
            try index.environment.write { (txn) throws(IndexError) in
                guard try index.transferOwnership(steps[..<end], txn)
                else { throw .repository(changedSince()) }
            }
            steps = steps[end...]
        }
        let openPack = plan.preparation.openPack
        guard try index.deletePages(survey.dead, openFrom: openPack) else {
            throw .repository(changedSince())
        }
        guard !leaving.isEmpty else { return moment }
        try index.environment.write { (txn) throws(IndexError) in
            for (id, pending) in leaving {
                try index.tables.pending.put(pending, for: id, in: txn)
            }
        }
        return moment
    }

    /// Number of changes in one write txn of LMDB.
    private static let changeCountMax = 65_536

    private func changedSince() -> RepositoryError {
        RepositoryError(
            .planStale, "the repository changed since this prune was planned; plan it again")
    }

    /// Records what was found in each pack, and that those that changed contain no garbage.
    private func noteUses(upTo moment: UInt64) throws(IndexError) {
        let assessment = plan.preparation.assessment
        var uses: [UInt32: PackUse?] = [:]
        for pack in plan.packs {
            switch pack.fate {
            case .removed: uses[pack.number] = .some(nil)
            case .rewritten:
                uses[pack.number] = PackUse(
                    byteCount: pack.byteCountAfter, unusedByteCount: 0)
            case .kept where !assessment.isRecorded(pack.number):
                uses[pack.number] = PackUse(
                    byteCount: pack.byteCount, unusedByteCount: pack.unusedByteCount)
            case .kept: continue
            }
        }
        let settled = assessment.assessedPacks.subtracting(assessment.unsettled)
        try index.setPackUses(uses, settled: settled, upTo: moment)
    }

    /// Lists the packs to be removed in a record, before they are removed.
    private func nameRemoved() throws(IndexError) {
        let removed = plan.packs.filter { $0.fate == .removed }.map(\.number)
        let rewritten = Set(plan.packs.filter { $0.fate == .rewritten }.map(\.number))
        let losesRecord = plan.preparation.assessment.packs.contains {
            $0.holdsPruned && rewritten.contains($0.number)
        }
        guard !removed.isEmpty || losesRecord else { return }
        let record = plan.preparation.survey.pruned.union(removed)
        _ = try IndexError.ofPacks(writer.appendAlone(.pruned, payload: record.encoded))
        try index.setPruned(record)
    }

    private func remove(_ pack: UInt32) throws(FileError) {
        do throws(FileError) {
            try files.remove(PackName.path(pack))
        } catch  where error.isMissing {
            // Another process removed it first.
        }
        repository.reader.drop(pack)
    }

    private func rewrite(_ pack: UInt32) throws(IndexError) {
        let source = try IndexError.ofPacks(repository.reader.file(pack))
        let cut = try plan.preparation.assessment.cut(pack, index)
        try IndexError.ofPacks(
            cut.write(pack: pack, from: source.file, files, repository: repository.id))
        repository.reader.drop(pack)
    }
}
