import CheckpointFormat
import GuestModel

// A prune beside captures and readers:
//
//   1. The dead pages are condemned: a transaction that begins from now on stores them anew.
//   2. Transactions that had begun are waited for; they may count on a condemned page.
//   3. What they published is looked through: a page that it names lives on.
//   4. The packs to be removed are named in a record, which is synced.
//   5. The dead pages leave the index, unless they were stored anew meanwhile.
//   6. Packs are written anew, or removed; the folder is synced.
//   7. Forgotten checkpoints whose manifests went leave the index.
//
// A crash anywhere leaves packs that read as before: the index lacks dead pages at most, a pack is
// there in its old or its new form, and a pack that is gone was named first.

/// What a plan was made from.
struct PrunePreparation: Sendable {
    let repository: Repository
    var survey: PruneSurvey
    var assessment: PruneAssessment
    let options: PruneOptions
    let openPack: UInt32
    /// Transactions that were under way.
    let transactions: Set<UInt64>
    /// Prunes that this process had done.
    let pruneCount: Int
}

extension Repository {
    /// Finds out what a prune would do.
    ///
    /// Reads the manifests, the page maps that forgetting touched, and the indexes of packs and
    /// pages: no page. Needs some 50 bytes of memory for each page that dies and 4 for each page
    /// that is stored. Also for a repository that is open for reading, where it is an estimate
    /// while another process writes.
    public func planPrune(
        _ options: PruneOptions = PruneOptions()
    ) throws(RepositoryError) -> PrunePlan {
        try requireWhole()
        do {
            try catchUp()
            // The holds and the catalog of one moment: a session that goes on from one checkpoint
            // to the next has either in it. Leases come after: who leases later sees what is
            // forgotten.
            let (entries, held, transactions, count) = try activity.read { activity in
                Result { (try self.withIndex { try $0.manifests() }, activity) }
            }.map { ($0, Set($1.holds.keys), $1.transactions, $1.pruneCount) }.get()
            let kept = held.union(try leased())
            let survey = try PruneSurvey(entries, kept: kept, repository: self)
            let openPack = try prunableEnd()
            let assessment = try PruneAssessment(
                survey, openPack: openPack, transactions: transactions, repository: self)
            return PrunePlan(
                PrunePreparation(
                    repository: self, survey: survey, assessment: assessment, options: options,
                    openPack: openPack, transactions: transactions, pruneCount: count),
                byteCount: try packByteCount(), options: options)
        } catch {
            throw indexFailure(error)
        }
    }

    /// The pack from which on nothing is touched.
    private func prunableEnd() throws(RepositoryError) -> UInt32 {
        if isWritable { return try openWriter().openPack }
        return try withIndex { try $0.readMark() }.pack
    }

    func packByteCount() throws(RepositoryError) -> Int {
        var total = 0
        for pack in try PackName.list(reader.files) { total += try byteCount(of: pack) }
        return total
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
            let plan = try settled()
            guard !plan.isEmpty || plan.deadPageCount > 0 else { return plan }
            try PruneRun(plan: plan, writer: writer).run(progress)
            return plan
        } catch {
            throw repository.indexFailure(error)
        }
    }

    /// Condemns what dies, waits for who may count on it, and looks at what they published.
    private func settled() throws -> PrunePlan {
        let repository = preparation.repository
        let condemned = Set(preparation.survey.dead.keys)
        let active = repository.activity.change { activity in
            activity.condemned = condemned
            return activity.transactions
        }
        repository.activity.wait { $0.transactions.isDisjoint(with: active) ? () : nil }
        try repository.catchUp()
        guard !repository.indexIsBehind else {
            throw RepositoryError(
                .busy, "the index lacks a checkpoint while others are taken; prune again later")
        }
        var preparation = preparation
        let entries = try repository.withIndex { try $0.manifests() }
        let isNew = try preparation.survey.add(entries, of: repository)
        guard isNew || !preparation.transactions.isEmpty else { return self }
        preparation.assessment = try PruneAssessment(
            preparation.survey, openPack: preparation.openPack, transactions: [],
            repository: repository)
        return PrunePlan(
            preparation, byteCount: try repository.packByteCount(), options: preparation.options)
    }
}

/// A settled plan on its way.
private struct PruneRun {
    private let plan: PrunePlan
    private let writer: PackWriter
    private let repository: Repository
    private let files: any RepositoryFiles

    init(plan: PrunePlan, writer: PackWriter) {
        self.plan = plan
        self.writer = writer
        repository = plan.preparation.repository
        files = repository.files
    }

    func run(_ progress: ((Int, Int) -> Void)?) throws {
        try nameRemoved()
        try repository.withIndex { try $0.deletePages(plan.preparation.survey.dead) }
        repository.activity.change { $0.condemned = [] }
        let touched = plan.packs.filter { $0.fate != .kept }
        for (done, pack) in touched.enumerated() {
            progress?(done, touched.count)
            if pack.fate == .removed {
                try remove(pack.number)
            } else {
                try rewrite(pack.number)
            }
        }
        if !touched.isEmpty { try files.syncDirectory(PackName.directory) }
        let numbers = Set(touched.map(\.number))
        let gone = plan.preparation.assessment.leaving.filter { numbers.contains($0.value) }
        try repository.withIndex {
            try $0.drop(Array(gone.keys) + plan.preparation.survey.vanished)
        }
        progress?(touched.count, touched.count)
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
        let cut = try plan.preparation.assessment.cut(pack)
        try cut.write(pack: pack, from: source.file, files, repository: repository.id)
        repository.reader.drop(pack)
    }
}
