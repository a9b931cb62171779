public import CheckpointFormat
import GuestModel
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
        /// Set when a publication could not be indexed; the index reads it from the packs later.
        var indexIsBehind = false
        var lock: (any RepositoryFile)?
    }

    /// Where it lies.
    public let path: FilePath
    /// Its random name.
    public let id: RepositoryID
    package let reader: PackReader
    let files: any RepositoryFiles
    private let index: Index
    private let writer: PackWriter?
    private let state: Mutex<State>
    /// What of this process prune must wait for or leave alone.
    let activity = Monitor(Activity())

    init(
        path: FilePath, id: RepositoryID, files: any RepositoryFiles, reader: PackReader,
        opened: OpenedIndex, lock: (any RepositoryFile)?
    ) {
        self.path = path
        self.id = id
        self.files = files
        self.reader = reader
        index = opened.index
        writer = opened.writer
        state = Mutex(
            State(nextTransaction: opened.highestTransaction + 1, lock: lock))
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
        guard lock != nil, let writer else { return }
        try writer.mark()
        let end = writer.confirmedEnd
        try withIndex { index in
            let (isBehind, highest) = state.withLock {
                ($0.indexIsBehind, $0.nextTransaction - 1)
            }
            if end.offset > 0, !isBehind {
                try index.advance(to: end, highestTransaction: highest)
            }
            try index.markClosed()
        }
    }

    /// True if it was opened for writing and not closed.
    public var isWritable: Bool { state.withLock { $0.lock != nil } }

    // MARK: - Transactions

    /// Begins a checkpoint.
    ///
    /// Several may be under way at once.
    package func begin(parent: Checkpoint?) throws(RepositoryError) -> CheckpointTransaction {
        let writer = try openWriter()
        try catchUp()
        let hold = try parent.map { (parent) throws(RepositoryError) in try self.hold(parent) }
        let number = state.withLock { state in
            let number = state.nextTransaction
            state.nextTransaction += 1
            return number
        }
        activity.change { _ = $0.transactions.insert(number) }
        do throws(RepositoryError) {
            return try CheckpointTransaction(
                number: number, parent: parent, hold: hold, repository: self, writer: writer)
        } catch {
            didEnd(transaction: number)
            throw error
        }
    }

    /// The writer; fails unless the repository is open for writing.
    func openWriter() throws(RepositoryError) -> PackWriter {
        guard let writer, isWritable else {
            throw RepositoryError(
                .readOnly, "\(path) was opened for reading; open it for writing to change it")
        }
        return writer
    }

    func didEnd(transaction: UInt64) {
        activity.change { _ = $0.transactions.remove(transaction) }
    }

    /// Indexes a checkpoint that exists.
    ///
    /// A failure is made good by the next `catchUp`: the checkpoint is in the packs, and the index
    /// can be read from them.
    ///
    /// The transaction counts as under way until the index knows its checkpoint: the read mark does
    /// not go past it, and prune waits for it.
    func didPublish(_ checkpoint: Checkpoint, transaction: UInt64, frames: TransactionFrames) {
        var frames = frames
        let (isBehind, highest) = state.withLock {
            ($0.indexIsBehind, $0.nextTransaction - 1)
        }
        let isAlone = activity.read { $0.transactions.isSubset(of: [transaction]) }
        do {
            let end = RecordLocation(
                pack: checkpoint.location.pack,
                offset: checkpoint.location.offset + UInt32(checkpoint.manifestByteCount))
            try index.add(
                Publication(
                    id: checkpoint.id, manifest: checkpoint.manifest,
                    location: checkpoint.location),
                frames: &frames, reader: reader, readMark: isAlone && !isBehind ? end : nil,
                highestTransaction: highest,
                isCondemned: { digest in self.activity.read { $0.isCondemned(digest) } })
        } catch {
            noteIndexIsBehind()
        }
        didEnd(transaction: transaction)
    }

    /// True if the packs hold something that the index failed to take.
    var indexIsBehind: Bool { state.withLock { $0.indexIsBehind } }

    /// Makes the next transaction read the packs again.
    func noteIndexIsBehind() {
        state.withLock { $0.indexIsBehind = true }
    }

    /// Reads into the index what a failed update left out.
    func catchUp() throws(RepositoryError) {
        guard indexIsBehind, activity.read({ $0.transactions.isEmpty }) else { return }
        let packs = try PackName.list(files)
        try withIndex { index in
            var replay = try IndexReplay(reader: reader, index: index)
            _ = try replay.run(packs: packs)
        }
        state.withLock { $0.indexIsBehind = false }
    }

    // MARK: - The index

    /// Runs `body` over the index and turns its errors into sentences.
    package func withIndex<T>(
        _ body: (Index) throws -> T
    ) throws(RepositoryError) -> T {
        do {
            return try body(index)
        } catch {
            throw RepositoryError(indexFailure: error, path: path)
        }
    }

    /// The frames named by the maps from a checkpoint back to, and without, the one at a position
    /// of its series; and that one's id.
    func mapSeries(
        from checkpoint: Checkpoint, to position: UInt32
    ) throws(RepositoryError) -> (frames: DirtyBitmap, ancestor: CheckpointID) {
        var frames = DirtyBitmap()
        var current = checkpoint
        while current.manifest.mapPosition > position {
            frames.formUnion(try MapReader.frames(reader, current.manifest))
            current = try ancestor(CheckpointID(current.manifest.mapAncestor))
        }
        guard current.manifest.mapPosition == position else {
            throw reader.corrupted(
                checkpoint.location, .publish,
                FormatError(offset: 88, reason: "its series of page maps has a gap"))
        }
        return (frames, current.id)
    }
}

extension RepositoryError {
    /// The sentence for whatever the index threw.
    init(indexFailure error: any Error, path: FilePath) {
        switch error {
        case let error as RepositoryError: self = error
        case let error as FileError: self.init(error)
        case let error as LMDBError:
            if error.isDamage {
                self.init(
                    .callFailed,
                    "the index of \(path) is damaged (\(error.call): \(error.reason)); close the "
                        + "repository, delete its folder 'index' and open it again, which rebuilds "
                        + "it from the packs")
            } else {
                self.init(FileError(call: error.call, path: "index", errno: error.code))
            }
        default:
            self.init(
                .callFailed,
                "the index of \(path) holds a value that cannot be read (\(error)); delete the "
                    + "folder 'index' and open the repository again, which rebuilds it")
        }
    }
}
