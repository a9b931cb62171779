import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
public import PackStore

// A prune beside captures and readers:
//
//   1. The dead pages are condemned: a transaction that begins from now on stores them anew.
//   2. Transactions that had begun are waited for; they may count on a condemned page.
//   3. If the index changed since the plan, it is made again: what was published may name a page.
//   4. The forgotten checkpoints give up the frames that they own, one by one. Then the dead pages
//      leave the index, unless they were stored again meanwhile.
//   5. The packs to be removed are named in a record, which is synced.
//   6. Packs are written anew, or removed; the folder is synced.
//   7. Forgotten checkpoints whose manifests went leave the index.
//
// A crash anywhere leaves packs that read as before: the index lacks dead pages at most, a pack is
// there in its old or its new form, and a pack that is gone was named first. Dead pages leave the
// index before the record is written: the next writer removes the packs that it names, and must not
// find pages there. Packs that are about to change are candidates until they have.

/// What a plan was made from.
struct PrunePreparation: Sendable {
    let repository: Repository
    /// Forgotten checkpoints that prune was not done with.
    let pending: [CheckpointID: PendingPrune]
    /// Checkpoints that somebody held or read.
    let kept: Set<CheckpointID>
    var survey: PruneSurvey
    var assessment: PruneAssessment
    let options: PruneOptions
    /// From this pack on nothing is touched.
    var openPack: UInt32
    /// Transactions that were under way.
    let transactions: Set<UInt64>
    /// Prunes that this process had done.
    let pruneCount: Int
    /// The index's state before anything was read.
    let moment: UInt64
    /// Bytes in sealed packs that stay only because of `kept`.
    let leasedByteCount: Int
    /// Bytes in the open pack of pages that died before.
    let droppedByteCount: Int
    /// True if what is unused in the open pack, which stays, is part of what may stay unused.
    var countsOpenPack = false
}

extension Repository {
    /// Finds out what a prune would do.
    ///
    /// Reads the page maps of what was forgotten, and the indexes and page maps of the packs in
    /// which something of it lies: no page, and nothing of the rest of the repository but the names
    /// and sizes of its packs. Needs some 100 bytes of memory for each page that dies, and 32 MiB.
    ///
    /// Packs that are not sealed stay as they are. But the plan is made as though the open pack
    /// were sealed if more would stay unused, its bytes included, than the options allow, and if at
    /// least a sixteenth of a full pack of that, or 4 KiB if nothing may stay unused, is in the
    /// open pack. If the plan then changes that pack, and the repository is open for writing, it is
    /// sealed: one write and one sync. Nothing is sealed while a checkpoint is being taken.
    ///
    /// Of a repository that is open for reading it is an estimate while another process writes;
    /// where the repository's own index cannot be used, one is made for it, which reads every page
    /// map.
    public func planPrune(
        _ options: PruneOptions = PruneOptions()
    ) throws(RepositoryError) -> PrunePlan {
        try options.check()
        try requireWhole()
        return try besideAWriter { () throws in
            try catchUp()
            return try withReferences().choosePlan(options)
        }
    }

    private func choosePlan(_ options: PruneOptions) throws -> PrunePlan {
        let plan = try plan(options)
        let openPack = plan.preparation.openPack
        guard plan.wantsOpenPack(ofAtMost: packByteCountMax),
            let scan = try openPackScan(openPack)
        else { return plan }
        let sealed = try self.plan(options, sealing: scan)
        guard sealed.changes(openPack) else {
            let unused = plan.openUnusedByteCount
            activity.change { $0.uselessSeal = (openPack, unused) }
            // It is better to rewrite others.
            var preparation = plan.preparation
            preparation.countsOpenPack = true
            return try PrunePlan(preparation)
        }
        guard isWritable else { return sealed }
        guard try openWriter().sealQuietPack() else { return plan }
        return try self.plan(options)
    }

    /// What is in the open pack; nil if it cannot be sealed.
    private func openPackScan(_ pack: UInt32) throws -> OpenPackScan? {
        guard isWritable else { return try OpenPackScan(reading: pack, reader) }
        guard let entries = try openWriter().quietEntries(of: pack) else { return nil }
        return OpenPackScan(pack: pack, entries: entries)
    }

    /// - Parameter scan: the open pack, to be taken for sealed.
    private func plan(
        _ options: PruneOptions, sealing scan: OpenPackScan? = nil
    ) throws -> PrunePlan {
        // Before all else: what was published later may name a page that the survey finds dead.
        let moment = try withIndex { try $0.moment() }
        // The holds and the catalog of one moment: a session that goes on from one checkpoint
        // to the next has either in it. Leases come after: who leases later sees what is
        // forgotten.
        let (pending, held, transactions, count) = try activity.read { activity in
            Result { (try self.withIndex { try $0.pending() }, activity) }
        }.map {
            ($0, Set($1.sessionLeases.keys), Set($1.transactions.keys), $1.pruneCount)
        }.get()
        let kept = held.union(try leased())
        let survey = try PruneSurvey(pending, kept: kept, repository: self)
        let openPack = try scan.map { $0.pack + 1 } ?? prunableEnd()
        let assessment = try PruneAssessment(
            survey, openPack: openPack, sealing: scan, transactions: transactions,
            repository: self)
        var leasedByteCount = 0
        if !survey.guarded.isEmpty || kept.contains(where: { pending[$0] != nil }) {
            let free = try PruneAssessment(
                try PruneSurvey(pending, kept: [], repository: self), openPack: openPack,
                sealing: scan, transactions: transactions, repository: self)
            leasedByteCount = max(0, free.unusedByteCount - assessment.unusedByteCount)
        }
        return try PrunePlan(
            PrunePreparation(
                repository: self, pending: pending, kept: kept, survey: survey,
                assessment: assessment, options: options, openPack: openPack,
                transactions: transactions, pruneCount: count, moment: moment,
                leasedByteCount: leasedByteCount,
                droppedByteCount: try withIndex { try $0.droppedByteCount(in: openPack) }))
    }

    /// The pack from which on nothing is touched.
    private func prunableEnd() throws(RepositoryError) -> UInt32 {
        if isWritable { return try openWriter().openPack }
        let newest = try withIndex { try $0.readMark() }.pack
        // A writer may have sealed it and not begun another one.
        guard let file = try? reader.file(newest) else { return newest }
        let scan = try? PackScan.scanSeal(file.file, pack: newest, isRewritten: file.isRewritten)
        return scan == nil ? newest : newest + 1
    }
}

extension PrunePlan {
    /// Does what was planned.
    ///
    /// Captures and readers go on; transactions that had begun are waited for, so this must not be
    /// called by one who has one open. If this throws, what was done is done, nothing that is
    /// needed is lost, and a new plan does the rest.
    ///
    /// - Parameter progress: called with packs done and in all.
    /// - Returns: what was done; it differs from the plan by what was published since.
    @discardableResult
    public func execute(
        progress: ((_ done: Int, _ total: Int) -> Void)? = nil
    ) throws(RepositoryError) -> PrunePlan {
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
                .busy, "another prune ran since this one was planned; plan it again")
        }
        defer {
            repository.activity.change { activity in
                activity.isPruning = false
                activity.condemned = []
            }
        }
        do {
            let plan = try settled(writer)
            guard !plan.isEmpty || plan.hasPreparedChanges else { return plan }
            try PruneOperation(plan: plan, writer: writer).run(progress)
            return plan
        } catch {
            throw repository.indexFailure(error)
        }
    }

    /// Condemns what dies, waits for who may count on it, and looks at what they published.
    private func settled(_ writer: PackWriter) throws -> PrunePlan {
        let repository = preparation.repository
        // From now on no sealed pack is taken back, whoever gives up a transaction.
        writer.leaveSealedPacks()
        let openPack = writer.openPack
        let condemned = Set(preparation.survey.dead.keys)
        let active = repository.activity.change { activity in
            activity.condemned = condemned
            return activity.transactions.keys
        }
        repository.activity.wait { now in
            active.allSatisfy { now.transactions[$0] == nil } ? () : nil
        }
        try repository.catchUp()
        guard !repository.indexIsBehind else {
            throw RepositoryError(
                .busy, "the index lacks a checkpoint while others are taken; prune again later")
        }
        var preparation = preparation
        let moment = try repository.withIndex { try $0.moment() }
        let isUnchanged =
            moment == preparation.moment && preparation.transactions.isEmpty
            && openPack >= preparation.openPack
        guard !isUnchanged else { return self }
        preparation.openPack = min(openPack, preparation.openPack)
        // The same ones go. Nobody can have come to hold one of them, and what was published since
        // goes on from none.
        var survey = try PruneSurvey(
            preparation.pending, kept: preparation.kept, repository: repository)
        survey.restrict(to: preparation.survey)
        preparation.survey = survey
        preparation.assessment = try PruneAssessment(
            survey, openPack: preparation.openPack, transactions: [], repository: repository)
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

/// A settled plan on its way.
private struct PruneOperation {
    private let plan: PrunePlan
    private let writer: PackWriter
    private let repository: Repository
    private let files: any RepositoryFiles
    private let index: Index

    init(plan: PrunePlan, writer: PackWriter) throws {
        self.plan = plan
        self.writer = writer
        repository = plan.preparation.repository
        files = repository.files
        index = try repository.withIndex { $0 }
    }

    func run(_ progress: ((Int, Int) -> Void)?) throws {
        let touched = plan.packs.filter { $0.fate != .kept }
        var leaving: [CheckpointID: PendingPrune] = [:]
        for pack in touched {
            leaving.merge(plan.preparation.assessment.leaving(with: pack.number)) { $1 }
        }
        // LMDB asks nobody.
        try files.checkPlace(writing: nil)
        let moment = try changeIndex(leaving)
        try nameRemoved()
        repository.activity.change { $0.condemned = [] }
        try index.setPackSizes(Dictionary(uniqueKeysWithValues: touched.map { ($0.number, nil) }))
        for (done, pack) in touched.enumerated() {
            progress?(done, touched.count)
            if pack.fate == .removed {
                try remove(pack.number)
            } else {
                try rewrite(pack.number)
            }
        }
        if !touched.isEmpty { try files.syncDirectory(StoreDirectory.packs) }
        let rewritten = touched.filter { $0.fate == .rewritten }.map(\.number)
        try index.notePackSizes(rewritten, repository.reader)
        try index.drop(leaving.merging(plan.preparation.survey.vanished) { $1 })
        try noteUses(upTo: moment)
        progress?(touched.count, touched.count)
    }

    /// Takes the owned frames of the forgotten, and the dead pages, from the index.
    ///
    /// - Returns: the index's state since which packs that change are candidates.
    private func changeIndex(_ leaving: [CheckpointID: PendingPrune]) throws -> UInt64 {
        let survey = plan.preparation.survey
        let assessment = plan.preparation.assessment
        var moment: UInt64 = 0
        try index.environment.write { transaction in
            moment = transaction.moment
            for pack in assessment.assessedPacks.union(assessment.unsettled) {
                try index.addCandidate(pack, transaction)
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
            try index.environment.write { transaction in
                guard try index.transferOwnership(steps[..<end], transaction) else {
                    throw changedSince()
                }
            }
            steps = steps[end...]
        }
        let openPack = plan.preparation.openPack
        guard try index.deletePages(survey.dead, openFrom: openPack) else { throw changedSince() }
        guard !leaving.isEmpty else { return moment }
        try index.environment.write { transaction in
            for (id, pending) in leaving { try index.setPending(pending, id, transaction) }
        }
        return moment
    }

    /// Changes that one write transaction of LMDB takes.
    private static let changeCountMax = 65_536

    private func changedSince() -> RepositoryError {
        RepositoryError(
            .busy, "the repository changed since this prune was planned; plan it again")
    }

    /// Notes what was found in each pack, and that those that changed have nothing unused.
    private func noteUses(upTo moment: UInt64) throws {
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

    /// States which packs are gone, before they are.
    private func nameRemoved() throws {
        let removed = plan.packs.filter { $0.fate == .removed }.map(\.number)
        let rewritten = Set(plan.packs.filter { $0.fate == .rewritten }.map(\.number))
        let losesRecord = plan.preparation.assessment.packs.contains {
            $0.holdsPruned && rewritten.contains($0.number)
        }
        guard !removed.isEmpty || losesRecord else { return }
        let record = plan.preparation.survey.pruned.union(removed)
        _ = try writer.appendAlone(.pruned, payload: record.encoded)
        try repository.withIndex { try $0.setPruned(record) }
    }

    private func remove(_ pack: UInt32) throws {
        do throws(FileError) {
            try files.remove(PackName.path(pack))
        } catch  where error.isMissing {
            // Somebody was quicker; it is gone.
        }
        repository.reader.drop(pack)
    }

    private func rewrite(_ pack: UInt32) throws {
        let source = try repository.reader.file(pack)
        let cut = try plan.preparation.assessment.cut(pack, index)
        try cut.write(pack: pack, from: source.file, files, repository: repository.id)
        repository.reader.drop(pack)
    }
}
