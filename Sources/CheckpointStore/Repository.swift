public import CheckpointFormat
package import CheckpointIndex
import Glibc
import GuestModel
import LMDBTables
public import PackStore
import Synchronization
public import SystemPackage

// A repository on disk:
//
//   repository        64 bytes: magic, format version, id (`Envelope`)
//   packs/*.pack      the truth: pages, page maps, states, manifests (`Record`)
//   index/            derived: LMDB (`Index`); may be deleted while nobody has it open
//   lock              held by the one writer (`flock`)

/// A repository of checkpoints.
///
/// One process writes at a time; any number read meanwhile, and each sees whole checkpoints only.
/// All methods may be called from any thread, and block for the disk.
public final class Repository: Sendable {
    /// What a repository is opened for.
    public enum Access: Sendable {
        /// Takes no lock that a writer would wait for.
        case reading
        /// Takes the writer's lock, and repairs what a crash left.
        case writing
    }

    private struct State {
        var nextTransaction: UInt64 = 1
        var lock: (any RepositoryFile)?
        /// The newest pack and its bytes when a reader's own index was brought up to date.
        var packsEnd: (UInt32, UInt64)?
        /// True if the index was read from packs past damage, which counts no references to pages.
        var lacksReferences = false
    }

    private enum Unindexed: Sendable {
        /// What was published, and by which transaction.
        case publication(Publication, TransactionGroups, transaction: UInt64)
        /// What was forgotten, and the pack of the record that says so.
        case forgotten([CheckpointID], pack: UInt32)
        /// The labels that a record gives, and its pack.
        case labelled([LabelsRecord.Change], pack: UInt32)
    }

    /// Where it lies.
    public let path: FilePath
    /// Its random name.
    public let id: RepositoryID
    /// What opening for reading found damaged; everything that is whole can be read all the same.
    ///
    /// `verify` finds the rest. Opening for writing fails if anything is.
    public let damage: [Corruption]
    /// Why a reader has an index of its own; nil if it uses the repository's, as writers do.
    ///
    /// Making one costs time: that of reading the repository's index, or its packs. A writer that
    /// opens the repository once makes its index anew, which serves all readers afterwards.
    public let temporaryIndex: TemporaryIndex?
    package let reader: PackReader
    package let files: any RepositoryFiles
    /// The size at which a writer seals a pack.
    let packByteCountMax: Int
    private let index: Index
    private let writer: PackWriter?
    private let state: Mutex<State>
    /// What was published or forgotten and the index does not know, in order.
    private let unindexed = Mutex<[Unindexed]>([])
    /// What of this process prune must wait for or leave alone.
    let activity = Monitor(Activity())

    package init(
        path: FilePath, id: RepositoryID, files: any RepositoryFiles, reader: PackReader,
        opened: OpenedIndex, lock: (any RepositoryFile)?,
        packByteCountMax: Int = Repository.packByteCountMax
    ) {
        self.path = path
        self.packByteCountMax =
            opened.writer?.packByteCountMax ?? packByteCountMax - Repository.packIndexReserve
        self.id = id
        self.files = files
        self.reader = reader
        index = opened.index
        writer = opened.writer
        damage = opened.damage
        temporaryIndex = opened.temporary
        state = Mutex(
            State(
                nextTransaction: opened.highestTransaction + 1, lock: lock,
                lacksReferences: opened.temporary?.isFromPacks ?? false))
        if lock != nil { index.filter.begin() }
    }

    deinit {
        // An index that was not closed is only made anew after a power cut.
        try? close()
    }

    /// Ends writing: states that all is confirmed, brings the index to the disk, gives up the lock.
    ///
    /// Reading goes on. Called by `deinit` too, without a way to report a failure.
    public func close() throws(RepositoryError) {
        let lock = state.withLock { state in
            defer { state.lock = nil }
            return state.lock
        }
        guard let lock, let writer else { return }
        defer { withExtendedLifetime(lock) { index.filter.end() } }
        defer { writer.close() }
        try writer.mark()
        // The index and its mark may be another writer's by now.
        do {
            try files.checkPlace(writing: nil)
        } catch {
            throw RepositoryError(error)
        }
        let end = writer.confirmedEnd
        try withCurrentIndex { index in
            // Numbers of abandoned transactions count: their frames may lie in sealed packs.
            let highest = state.withLock { $0.nextTransaction - 1 }
            if end.offset > 0 { try index.advance(to: end, highestTransaction: highest) }
            try index.sync()
            try IndexMark.remove(files)
        }
    }

    /// True if it was opened for writing and not closed.
    public var isWritable: Bool { state.withLock { $0.lock != nil } }

    // MARK: - Transactions

    /// Begins a checkpoint.
    ///
    /// Several may be under way at once.
    package func begin() throws(RepositoryError) -> CheckpointTransaction {
        let writer = try openWriter()
        let number = nextTransaction(of: writer)
        do throws(RepositoryError) {
            return try CheckpointTransaction(number: number, repository: self, writer: writer)
        } catch {
            didEnd(transaction: number)
            throw error
        }
    }

    /// The number of something that is about to be appended; `didEnd` must follow when the index
    /// knows it.
    func nextTransaction(of writer: PackWriter) -> UInt64 {
        let number = state.withLock { state in
            let number = state.nextTransaction
            state.nextTransaction += 1
            return number
        }
        // Asked before it is entered: whoever finds no entry has a record before what follows.
        let start = writer.confirmedEnd
        activity.change { $0.transactions[number] = start }
        return number
    }

    /// The writer; fails unless the repository is open for writing.
    package func openWriter() throws(RepositoryError) -> PackWriter {
        guard let writer, isWritable else {
            throw RepositoryError(
                .readOnly, "\(path) was opened for reading; open it for writing to change it")
        }
        return writer
    }

    /// Fails if opening found anything damaged: for what is true of whole repositories only.
    func requireWhole() throws(RepositoryError) {
        if let corruption = damage.first { throw RepositoryError(corruption) }
    }

    /// - Parameter packs: those in which it left records that nobody needs.
    func didEnd(transaction: UInt64, leaving packs: Set<UInt32> = []) {
        // If this fails their space comes back when the index is made anew.
        try? index.addCandidate(packs)
        activity.change { $0.transactions[transaction] = nil }
    }

    /// Notes a checkpoint that exists, for the index to take; `indexPublished` must follow.
    func didPublish(
        _ publication: Publication, transaction: UInt64, frames: TransactionGroups
    ) {
        unindexed.withLock {
            $0.append(.publication(publication, frames, transaction: transaction))
        }
    }

    /// Indexes the checkpoints that were published.
    ///
    /// A failure is made good by the next look at the catalog: the checkpoints are in the packs.
    ///
    /// - Parameter transaction: one of those that published. It counts as under way until now, or
    ///   until the index knows its checkpoint: the read mark does not go past it, and prune waits
    ///   for it.
    func indexPublished(by transaction: UInt64) {
        unindexed.withLock { try? indexAll(&$0, advancesMark: true) }
        didEnd(transaction: transaction)
        // A hint: the index is right without it.
        try? index.environment.writeBackShare()
    }

    /// Takes checkpoints out of the index whose forget record is in the packs.
    ///
    /// - Parameter pack: where it lies.
    func didForget(_ ids: [CheckpointID], in pack: UInt32) {
        unindexed.withLock { waiting in
            waiting.append(.forgotten(ids, pack: pack))
            try? indexAll(&waiting, advancesMark: false)
        }
    }

    /// Gives checkpoints in the index the labels of a record that is in the packs.
    ///
    /// - Parameter pack: where it lies.
    func didLabel(_ changes: [LabelsRecord.Change], in pack: UInt32) {
        unindexed.withLock { waiting in
            waiting.append(.labelled(changes, pack: pack))
            try? indexAll(&waiting, advancesMark: false)
        }
    }

    /// True if the packs hold something that the index failed to take.
    ///
    /// What it is about to take belongs to a transaction that is under way.
    ///
    /// Not to be called with `activity` locked.
    var indexIsBehind: Bool {
        unindexed.withLock { waiting in
            activity.read { activity in
                waiting.contains { waiting in
                    guard case .publication(_, _, let transaction) = waiting else { return true }
                    return activity.transactions[transaction] == nil
                }
            }
        }
    }

    /// Indexes what could not be indexed when it was published.
    ///
    /// Not to be called with `activity` locked.
    func catchUp() throws(RepositoryError) {
        do {
            try unindexed.withLock { waiting in
                try indexAll(&waiting, advancesMark: false)
                if temporaryIndex != nil { try readOn() }
            }
        } catch {
            throw indexFailure(error)
        }
    }

    /// Takes into an index of this process alone what others have written since.
    ///
    /// Costs a look at the newest pack if nobody has.
    private func readOn() throws {
        let packs = try PackName.list(files)
        guard let newest = packs.last else { return }
        let end = (newest, try files.open(PackName.path(newest), .read).byteCount())
        let isNew = state.withLock { state in
            defer { state.packsEnd = end }
            return state.packsEnd.map { $0 != end } ?? true
        }
        guard isNew else { return }
        state.withLock { $0.lacksReferences = true }
        var replay = try IndexReplay(reader: reader, index: index, toleratesDamage: true)
        let read = try replay.run(packs: packs)
        guard let confirmed = read.confirmedEnd else { return }
        try index.advance(to: confirmed, highestTransaction: read.highestTransaction)
    }

    /// Indexes what waits, in order; stops at the first failure.
    ///
    /// - Parameter advancesMark: true to note how far the packs need not be read after a crash.
    private func indexAll(_ waiting: inout [Unindexed], advancesMark: Bool) throws {
        // The read mark goes past records of abandoned transactions, whose numbers are taken too.
        let highest = state.withLock { $0.nextTransaction - 1 }
        while let next = waiting.first {
            switch next {
            case .publication(let publication, var frames, let transaction):
                var chain = MapChainReader(index: index, reader: reader)
                // Whoever stored a condemned page anew did so before this was published.
                let condemned = activity.read { $0.condemned }
                try index.add(
                    publication, frames: &frames, chain: &chain,
                    readMark: advancesMark ? readMark(behind: publication, by: transaction) : nil,
                    highestTransaction: highest, condemned: condemned)
            case .forgotten(let ids, let pack):
                try index.forget(ids, in: pack)
            case .labelled(let changes, let pack):
                try index.setLabels(changes, in: pack)
            }
            waiting.removeFirst()
        }
    }

    /// Where to go on reading after a crash when the index has a publication and all before it: not
    /// behind what others append, which must be found again then.
    private func readMark(
        behind publication: Publication, by transaction: UInt64
    ) -> RecordLocation? {
        let others = activity.read { activity in
            activity.transactions.compactMap { $0.key == transaction ? nil : $0.value }
        }
        let mark = others.reduce(publication.checkpoint.end) { min($0, $1) }
        return mark.namesBytes ? mark : nil
    }

    // MARK: - The index

    /// This, or the same over an index that knows who refers to which page.
    ///
    /// A reader's own index does without: only a plan to prune asks, and it costs reading every
    /// page map.
    func withReferences() throws -> Repository {
        guard state.withLock({ $0.lacksReferences }) else { return self }
        let index = try Index.makePrivate(repository: id)
        // Of its own: packs that this one has open may have been written anew meanwhile.
        let reader = PackReader(files: files, repository: id)
        var replay = try IndexReplay(reader: reader, index: index)
        let end = try replay.run(packs: try PackName.list(files))
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: OpenedIndex(index: index),
            lock: nil, packByteCountMax: packByteCountMax + Repository.packIndexReserve)
    }

    /// Runs `body` over the index and turns its errors into sentences.
    package func withIndex<T>(
        _ body: (Index) throws -> T
    ) throws(RepositoryError) -> T {
        do {
            return try body(index)
        } catch {
            throw indexFailure(error)
        }
    }

    /// The same when the index knows all that exists.
    ///
    /// Not to be called with `activity` locked.
    package func withCurrentIndex<T>(
        _ body: (Index) throws -> T
    ) throws(RepositoryError) -> T {
        try catchUp()
        return try withIndex(body)
    }

    /// Runs `body`, which reads index and packs in several steps, and turns its errors into
    /// sentences.
    ///
    /// A reader begins again if a prune of another process came in between: what the index said at
    /// one step need not be there at the next.
    func besideAWriter<T>(_ body: () throws -> T) throws(RepositoryError) -> T {
        var attempt = 0
        while true {
            let before = try withIndex { try $0.moment() }
            do {
                return try body()
            } catch {
                attempt += 1
                let isGone =
                    (error as? FileError)?.isMissing ?? false
                    || (error as? RepositoryError)?.errno == ENOENT
                let now = try withIndex { try $0.moment() }
                guard !isWritable, attempt < 50, isGone || now != before else {
                    throw indexFailure(error)
                }
            }
        }
    }

    /// The frames named by the maps from a checkpoint back to, and without, the one at a position
    /// of its chain; and that one's id.
    func mapChain(
        from checkpoint: Checkpoint, to position: UInt32
    ) throws(RepositoryError) -> (frames: DirtyBitmap, ancestor: CheckpointID) {
        var frames = DirtyBitmap()
        var current = checkpoint
        while current.manifest.mapPosition > position,
            let ancestor = try mapAncestor(of: current)
        {
            frames.formUnion(try MapReader.frames(reader, current.manifest))
            current = ancestor
        }
        guard current.manifest.mapPosition == position else {
            throw reader.corrupted(
                checkpoint.location, .publish,
                FormatError(offset: 88, reason: "its chain of page maps has a gap"))
        }
        return (frames, current.id)
    }
}
