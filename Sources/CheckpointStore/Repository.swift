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
//   repository        64 bytes: magic, format version, ID (`Envelope`)
//   packs/*.pack      the authoritative data: pages, page maps, states, manifests (`Record`)
//   index/            derived: LMDB (`Index`); may be deleted while no process has it open
//   lock              held by the one writer (`flock`)

/// A repository of checkpoints.
///
/// One process writes at a time; any number read concurrently, and see only complete checkpoints.
/// All methods are thread-safe and may block on the disk.
public final class Repository: Sendable {
    /// The purpose of opening a repository.
    public enum Access: Sendable {
        /// Takes no lock that a writer would wait for.
        case reading
        /// Takes the writer's lock, and cleans up after a crash.
        case writing
    }

    private struct State {
        var nextTransaction: UInt64 = 1
        var lock: (any RepositoryFile)?
        /// The newest pack and its size when a reader's temporary index was last brought up to
        /// date.
        var packsEnd: (UInt32, UInt64)?
        /// True if the index was built from packs despite damage, without counting references to
        /// pages.
        var lacksReferences = false
    }

    private enum Unindexed: Sendable {
        /// A publication, and the transaction that published it.
        case publication(Publication, TransactionGroups, transaction: UInt64)
        /// Forgotten checkpoints, and the pack of the forget record.
        case forgotten([CheckpointID], pack: UInt32)
        /// Label changes, and the pack of the labels record.
        case labelled([LabelsRecord.Change], pack: UInt32)
    }

    /// The directory of the repository.
    public let path: FilePath
    /// Its random ID.
    public let id: RepositoryID
    /// The damage found by opening for reading; everything undamaged can still be read.
    ///
    /// `verify` finds the rest. Opening for writing fails if there is any damage.
    public let damage: [Corruption]
    /// Why a reader has a temporary index; nil if it uses the repository's index, as writers do.
    ///
    /// Creating one costs reading the repository's index, or its packs. If a writer opens the
    /// repository once, it rebuilds the index, which then serves all readers.
    public let temporaryIndex: TemporaryIndex?
    package let reader: PackReader
    package let files: any RepositoryFiles
    /// The size at which a writer seals a pack.
    let packByteCountMax: Int
    private let index: Index
    private let writer: PackWriter?
    private let state: Mutex<State>
    /// Published or forgotten checkpoints that are not in the index yet, in order.
    private let unindexed = Mutex<[Unindexed]>([])
    /// Activity of this process that prune must wait for or leave alone.
    let activity = Monitor(Activity())
    /// Held by prune while it removes or replaces a pack, and by those who need them unchanged.
    ///
    /// Taken before `unindexed` and `activity`.
    let packChanges = Mutex(())

    /// A page map without frames; the maps of large disks are kept in a file.
    package func emptyPageMap() -> PageMap {
        PageMap(disksIn: ScratchMemory.Place(files: files))
    }

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
        // If this fails, an index that was not closed is rebuilt, but only after a power failure.
        try? close()
    }

    /// Ends writing: marks everything confirmed, syncs the index, and releases the lock.
    ///
    /// Reading remains possible, except from a volatile repository, which this removes. Also called
    /// by `deinit`, where a failure cannot be reported.
    public func close() throws(RepositoryError) {
        defer { (files as? VolatileFiles)?.discard() }
        let lock = state.withLock { state in
            defer { state.lock = nil }
            return state.lock
        }
        guard let lock, let writer else { return }
        defer { withExtendedLifetime(lock) { index.filter.end() } }
        defer { writer.close() }
        try writer.mark()
        // The index and its mark may already belong to another writer.
        do {
            try files.checkPlace(writing: nil)
        } catch {
            throw RepositoryError(error)
        }
        let end = writer.confirmedEnd
        try withCurrentIndex { index in
            // Numbers of abandoned transactions count: their page groups may be in sealed packs.
            let highest = state.withLock { $0.nextTransaction - 1 }
            if end.offset > 0 { try index.advance(to: end, highestTransaction: highest) }
            try index.sync()
            try IndexMark.remove(files)
        }
    }

    /// True if it was opened for writing and not yet closed.
    public var isWritable: Bool { state.withLock { $0.lock != nil } }

    // MARK: - Transactions

    /// Begins a checkpoint transaction.
    ///
    /// Several may be in progress at once.
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

    /// The number of a transaction that is about to append; `didEnd` must be called once the index
    /// contains the result.
    func nextTransaction(of writer: PackWriter) -> UInt64 {
        let number = state.withLock { state in
            let number = state.nextTransaction
            state.nextTransaction += 1
            return number
        }
        // Read before the entry is added: if another thread finds no entry, its record precedes
        // these.
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

    /// Fails if opening found damage: for operations that need an intact repository.
    func requireWhole() throws(RepositoryError) {
        if let corruption = damage.first { throw RepositoryError(corruption) }
    }

    /// - Parameter packs: those in which it left unneeded records.
    func didEnd(transaction: UInt64, leaving packs: Set<UInt32> = []) {
        // If this fails, their space is reclaimed once the index is rebuilt.
        try? index.addCandidate(packs)
        activity.change { $0.transactions[transaction] = nil }
    }

    /// Queues a published checkpoint for the index; `indexPublished` must follow.
    func didPublish(
        _ publication: Publication, transaction: UInt64, groups: TransactionGroups
    ) {
        unindexed.withLock {
            $0.append(.publication(publication, groups, transaction: transaction))
        }
    }

    /// Indexes the published checkpoints.
    ///
    /// If this fails, the next read of the catalog retries: the checkpoints are in the packs.
    ///
    /// - Parameter transaction: one of the publishing transactions. It counts as in progress until
    ///   now, or until its checkpoint is indexed: the read mark does not pass it, and prune waits
    ///   for it.
    func indexPublished(by transaction: UInt64) {
        unindexed.withLock { try? indexAll(&$0, advancesMark: true) }
        didEnd(transaction: transaction)
        // A hint: the index is correct without it.
        try? index.environment.writeBackShare()
    }

    /// Removes checkpoints from the index whose forget record is in the packs.
    ///
    /// - Parameter pack: the pack of the record.
    func didForget(_ ids: [CheckpointID], in pack: UInt32) {
        unindexed.withLock { waiting in
            waiting.append(.forgotten(ids, pack: pack))
            try? indexAll(&waiting, advancesMark: false)
        }
    }

    /// Applies the labels of a record in the packs to the index.
    ///
    /// - Parameter pack: the pack of the record.
    func didLabel(_ changes: [LabelsRecord.Change], in pack: UInt32) {
        unindexed.withLock { waiting in
            waiting.append(.labelled(changes, pack: pack))
            try? indexAll(&waiting, advancesMark: false)
        }
    }

    /// True if the packs contain something that the index failed to add.
    ///
    /// What is still to be added belongs to a transaction in progress.
    ///
    /// Must not be called with `activity` locked.
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
    /// Must not be called with `activity` locked.
    func catchUp() throws(RepositoryError) {
        do {
            try unindexed.withLock { (waiting) throws(IndexError) in
                try indexAll(&waiting, advancesMark: false)
                if temporaryIndex != nil { try readOn() }
            }
        } catch {
            throw indexFailure(error)
        }
    }

    /// Adds what others have written since to a private index.
    ///
    /// Costs a check of the newest pack if nothing was written.
    private func readOn() throws(IndexError) {
        let packs = try IndexError.ofPacks(PackName.list(files))
        guard let newest = packs.last else { return }
        let byteCount = try IndexError.ofFiles(
            files.open(PackName.path(newest), .read).byteCount())
        let end = (newest, byteCount)
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

    /// Indexes the queue in order; stops at the first failure.
    ///
    /// - Parameter advancesMark: true to record the position from which packs must be read after a
    ///   crash.
    private func indexAll(_ waiting: inout [Unindexed], advancesMark: Bool) throws(IndexError) {
        // The read mark passes records of abandoned transactions, whose numbers must not be reused.
        let highest = state.withLock { $0.nextTransaction - 1 }
        while let next = waiting.first {
            switch next {
            case .publication(let publication, var groups, let transaction):
                var chain = MapChainReader(index: index, reader: reader)
                // Condemned pages were stored again, if at all, before this was published.
                let condemned = activity.read { $0.condemned }
                try index.add(
                    publication, groups: &groups, chain: &chain,
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

    /// The position from which to read after a crash once the index contains a publication and all
    /// before it: not beyond what other transactions append, which must be found then.
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

    /// True if the index counts references to pages.
    var countsReferences: Bool { state.withLock { !$0.lacksReferences } }

    /// This repository, or the same with an index that counts references to pages.
    ///
    /// A reader's temporary index has no counts: only planning a prune needs them, and they cost
    /// reading every page map.
    func withReferences() throws(IndexError) -> Repository {
        if countsReferences { return self }
        let index = try Index.makePrivate(repository: id)
        // A separate reader: packs open in this one may have been rewritten in the meantime.
        let reader = PackReader(files: files, repository: id)
        var replay = try IndexReplay(reader: reader, index: index)
        let end = try replay.run(packs: try IndexError.ofPacks(PackName.list(files)))
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: OpenedIndex(index: index),
            lock: nil, packByteCountMax: packByteCountMax + Repository.packIndexReserve)
    }

    /// Runs `body` on the index, and converts its errors to messages.
    package func withIndex<T>(
        _ body: (Index) throws -> T
    ) throws(RepositoryError) -> T {
        do {
            return try body(index)
        } catch {
            throw indexFailure(error)
        }
    }

    /// The same after bringing the index up to date.
    ///
    /// Must not be called with `activity` locked.
    package func withCurrentIndex<T>(
        _ body: (Index) throws -> T
    ) throws(RepositoryError) -> T {
        try catchUp()
        return try withIndex(body)
    }

    /// Runs `body`, which reads index and packs in several steps, and converts its errors to
    /// messages.
    ///
    /// A reader starts over if a prune of another process intervened: data found in the index in
    /// one step may be gone in the next.
    func besideAWriter<T, E: Error>(
        _ body: () throws(E) -> T
    ) throws(RepositoryError) -> T {
        var attempt = 0
        while true {
            let before = try withIndex { try $0.moment() }
            do {
                return try body()
            } catch {
                attempt += 1
                let isGone = IndexFailure.isMissingFile(error)
                let now = try withIndex { try $0.moment() }
                guard !isWritable, attempt < 50, isGone || now != before else {
                    throw indexFailure(error)
                }
            }
        }
    }

    /// The frames in the maps from a checkpoint back to the one at a position of its chain, without
    /// the latter; and the latter's ID.
    func mapChain(
        from checkpoint: Checkpoint, to position: UInt32
    ) throws(RepositoryError) -> (frames: FrameSet, ancestor: CheckpointID) {
        var frames = FrameSet()
        var walk = MapAncestry(of: checkpoint)
        while walk.current.manifest.mapPosition > position {
            let step = walk.current
            guard try mapAncestor(&walk) != nil else { break }
            frames.formUnion(try MapReader.frames(reader, step.manifest))
        }
        guard walk.current.manifest.mapPosition == position else {
            throw reader.corrupted(
                checkpoint.location, .publish,
                FormatError(offset: 56, reason: "its chain of page maps has a gap"))
        }
        return (frames, walk.current.id)
    }
}
