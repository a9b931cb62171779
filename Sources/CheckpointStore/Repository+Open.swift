package import CheckpointFormat
import CheckpointIndex
import Glibc
public import GuestModel
package import LMDBTables
public import PackStore
public import SystemPackage

/// The result of opening the index.
package struct OpenedIndex {
    let index: Index
    /// nil for a reader.
    var writer: PackWriter?
    var highestTransaction: UInt64 = 0
    /// Damage found by a reader.
    var damage: [Corruption] = []
    /// Why it is not the repository's own index; nil if it is.
    var temporary: TemporaryIndex?
}

extension Repository {
    /// Maximum size of a pack in bytes; 64 MiB fits in one object of a distributed store.
    package static let packByteCountMax = 64 << 20
    // Space reserved for the index that seals a pack.
    package static let packIndexReserve = 256 << 10

    private static let envelopePath = "repository"
    static let lockPath = StoreLock.name

    /// Creates a repository in a directory that is empty or does not exist, and opens it for
    /// writing.
    ///
    /// A directory that it creates is accessible to its owner only; an existing one keeps its
    /// permissions.
    public static func create(at path: FilePath) throws(RepositoryError) -> Repository {
        try create(at: path, files: PosixFiles(root: path))
    }

    /// Creates a repository that does not survive: nothing is synced, and closing it removes it.
    ///
    /// For fuzzers and tests, which go back to checkpoints of the same run: taking one waits for no
    /// disk. It is lost when it is closed or dropped, and after a crash of the machine. A process
    /// that is killed leaves the directory, `varve-volatile-` and six letters, to be deleted.
    ///
    /// - Parameter parent: where its directory is created; it needs the space of all checkpoints
    ///   that are not forgotten. `/dev/shm` is memory.
    public static func createVolatile(
        in parent: FilePath = "/dev/shm"
    ) throws(RepositoryError) -> Repository {
        let files: VolatileFiles
        do throws(FileError) {
            files = try VolatileFiles(in: parent)
        } catch {
            throw RepositoryError(
                error.isFull ? .noSpace : .callFailed,
                "a volatile repository cannot be created in \(parent) "
                    + "(\(String(cString: strerror(error.errno)))); name another directory",
                errno: error.errno)
        }
        return try create(at: files.path ?? parent, files: files)
    }

    /// Creates a repository over other files, or with other limits.
    package static func create(
        at path: FilePath, files: any RepositoryFiles,
        packByteCountMax: Int = Repository.packByteCountMax
    ) throws(RepositoryError) -> Repository {
        var obstacle: String?
        do throws(FileError) {
            obstacle = try createFiles(at: path, files)
        } catch {
            if error.isMissing {
                throw RepositoryError(
                    .missing, "\(path) cannot be created because its parent does not exist")
            }
            throw uncreated(path, RepositoryError(error))
        }
        if let obstacle { throw RepositoryError(.exists, obstacle) }
        do throws(RepositoryError) {
            return try open(at: path, .writing, files: files, packByteCountMax: packByteCountMax)
        } catch {
            throw uncreated(path, error)
        }
    }

    /// Creates a repository's directories and its envelope.
    ///
    /// - Returns: why the directory cannot become one, and was not changed; nil if it did.
    private static func createFiles(
        at path: FilePath, _ files: any RepositoryFiles
    ) throws(FileError) -> String? {
        try files.createDirectory("")
        let known: Set = [
            StoreDirectory.packs, StoreDirectory.index, lockPath, envelopePath + ".new",
        ]
        guard let names = try listing(files, "") else {
            return "\(path) is not a directory; name a new or empty one"
        }
        try checkOwner(path, files)
        if names.contains(envelopePath) {
            return "\(path) is a repository already; nothing was changed"
        }
        // Leftovers of an interrupted creation are accepted; anything else is not ours.
        var packs: [String] = []
        if names.contains(StoreDirectory.packs) {
            guard let found = try listing(files, StoreDirectory.packs) else {
                return "\(path) is not a directory; name a new or empty one"
            }
            packs = found
        }
        guard Set(names).isSubset(of: known), packs.isEmpty else {
            return "\(path) is not empty; name a new or empty directory"
        }
        try files.createDirectory(StoreDirectory.packs)
        try files.syncDirectory("")
        let envelope = Envelope(
            kind: .repository, repository: .random(), number: WallClock.nanoseconds)
        try files.replace(envelopePath, with: envelope.encoded)
        return nil
    }

    /// The names in a directory; nil if it is none.
    private static func listing(
        _ files: any RepositoryFiles, _ path: String
    ) throws(FileError) -> [String]? {
        do throws(FileError) {
            return try files.list(path)
        } catch {
            guard error.isMissing else { throw error }
            return nil
        }
    }

    /// The error for a failed creation: no checkpoint has been taken yet.
    private static func uncreated(_ path: FilePath, _ error: RepositoryError) -> RepositoryError {
        guard error.code == .noSpace else { return error }
        return RepositoryError(
            .noSpace,
            "no space is left for a repository at \(path); free some space, or use another "
                + "disk", errno: error.errno)
    }

    /// Opens a repository.
    ///
    /// For writing, it takes the lock, indexes what the index lacks, and truncates what a crash
    /// left of transactions that were never published.
    ///
    /// For reading, it changes nothing and never blocks on other processes; it may have to create a
    /// temporary index (`temporaryIndex`), which costs reading the packs. A store of another user
    /// can be opened for reading only.
    ///
    /// - Parameters:
    ///   - path: the directory of the repository.
    ///   - access: reading or writing.
    ///   - waiting: how long to wait, for writing, while another process is writing.
    ///   - cancellation: ends that wait with `cancelled`; nothing was changed then.
    public static func open(
        at path: FilePath, _ access: Access, waiting: LockWaiting = .none,
        cancellation: Cancellation? = nil
    ) throws(RepositoryError) -> Repository {
        try open(
            at: path, access, files: PosixFiles(root: path), waiting: waiting,
            cancellation: cancellation)
    }

    /// Opens a repository over other files, or with other limits.
    package static func open(
        at path: FilePath, _ access: Access, files: any RepositoryFiles,
        packByteCountMax: Int = Repository.packByteCountMax, waiting: LockWaiting = .none,
        cancellation: Cancellation? = nil
    ) throws(RepositoryError) -> Repository {
        let id = try readEnvelope(path, files)
        do throws(RepositoryError) {
            return try open(
                at: path, access, files: files, id, packByteCountMax, waiting, cancellation)
        } catch {
            // The index was condemned, so this attempt rebuilds it.
            guard error.code == .indexDamaged else { throw error }
            return try open(
                at: path, access, files: files, id, packByteCountMax, waiting, cancellation)
        }
    }

    private static func open(
        at path: FilePath, _ access: Access, files: any RepositoryFiles, _ id: RepositoryID,
        _ packByteCountMax: Int, _ waiting: LockWaiting, _ cancellation: Cancellation?
    ) throws(RepositoryError) -> Repository {
        do {
            let owner = try files.foreignOwner()
            if access == .writing { try checkOwner(path, files) }
            let files = owner.map { ReadOnlyFiles(files, owner: $0) } ?? files
            let reader = PackReader(files: files, repository: id)
            switch access {
            case .writing:
                let lock = try takeLock(path, files, waiting, cancellation)
                // Before anything that needs disk space: stray files may have taken all of it.
                try removeStrays(files)
                try files.createDirectory(StoreDirectory.index)
                let opened = try openForWriting(reader, packByteCountMax: packByteCountMax)
                return Repository(
                    path: path, id: id, files: files, reader: reader, opened: opened, lock: lock)
            case .reading:
                let opened = try openForReading(path, reader)
                return Repository(
                    path: path, id: id, files: files, reader: reader, opened: opened, lock: nil,
                    packByteCountMax: packByteCountMax)
            }
        } catch {
            throw IndexFailure.resolve(error, at: path, files)
        }
    }

    /// Fails if the store, or a file or directory in which a writer creates or opens files, belongs
    /// to another user: new files would lock that user out, and the owner of a directory can put
    /// anything into it at any time.
    package static func checkOwner(_ path: FilePath, _ files: any RepositoryFiles) throws(FileError)
    {
        if let owner = try files.foreignOwner() {
            throw FileError(.foreign(owner), path: path.string, errno: EPERM)
        }
        let root = try files.openDirectory("")
        let names = [
            envelopePath, lockPath, StoreHead.path, StoreDirectory.packs, StoreDirectory.index,
            StoreDirectory.leases, StoreDirectory.damaged,
        ]
        for name in names {
            guard let owner = try root.status(of: name)?.st_uid, owner != system_user() else {
                continue
            }
            throw FileError(
                .foreign(owner), path: path.appending(name).string, errno: EPERM)
        }
    }

    /// True if there are packs: then it is a repository, whatever its file `repository` contains.
    private static func hasPacks(_ files: any RepositoryFiles) -> Bool {
        // An unreadable directory has no packs to repair from.
        ((try? PackName.list(files)) ?? []).isEmpty == false
    }

    private static func damagedEnvelope(_ reason: String) -> RepositoryError {
        RepositoryError(
            Corruption(
                file: envelopePath, offset: 0, object: "envelope",
                reason: "\(reason), but there are packs; restore it from a copy, or let "
                    + "'varve repair' rebuild it"))
    }

    package static func readEnvelope(
        _ path: FilePath, _ files: any RepositoryFiles
    ) throws(RepositoryError) -> RepositoryID {
        let bytes: [UInt8]
        do {
            bytes = try files.open(envelopePath, .read)
                .readBytes(Envelope.byteCount, at: 0)
        } catch {
            guard error.isMissing else { throw RepositoryError(error) }
            if hasPacks(files) { throw damagedEnvelope("it is missing") }
            throw RepositoryError(
                .missing, "there is no repository at \(path); create one with 'varve init'")
        }
        do {
            return try Envelope.decode(bytes, kind: .repository).repository
        } catch {
            switch error {
            case .foreign:
                if hasPacks(files) { throw damagedEnvelope("it holds something else") }
                throw RepositoryError(
                    .foreign, "\(path) is not a Varve repository; check the path")
            case .version(let version):
                throw RepositoryError(
                    .version,
                    "the repository at \(path) has format version \(version), but this program "
                        + "reads version \(Envelope.formatVersion); use a version that supports it")
            case .features:
                throw RepositoryError(
                    .version,
                    "the repository at \(path) uses features that this program does not support; "
                        + "use a newer one")
            case .damaged(let error):
                throw RepositoryError(
                    Corruption(
                        file: envelopePath, offset: UInt64(error.offset), object: "envelope",
                        reason: error.reason))
            }
        }
    }

    /// Takes the writer's lock.
    ///
    /// Tried for at least a second: a writer that is about to end may still have it.
    package static func takeLock(
        _ path: FilePath, _ files: any RepositoryFiles, _ waiting: LockWaiting = .none,
        _ cancellation: Cancellation? = nil
    ) throws(RepositoryError) -> any RepositoryFile {
        try waiting.check()
        let start = ContinuousClock.now
        var tryCount = 0
        do throws(FileError) {
            try checkOwner(path, files)
        } catch {
            throw RepositoryError(error)
        }
        repeat {
            if let lock = try tryLock(files) { return lock }
            if let cancellation, cancellation.isCancelled {
                throw RepositoryError(
                    .cancelled,
                    "another process is writing to \(path), and the wait for it was cancelled; "
                        + "nothing was changed")
            }
            tryCount += 1
            WallClock.sleep(milliseconds: tryCount < 50 ? 20 : 100)
        } while tryCount < 50
            || waiting.timeMax.map { ContinuousClock.now - start < $0 } ?? true
        throw RepositoryError(
            .locked,
            "another process is writing to \(path); try again when it has ended, or wait for it "
                + "(--wait, LockWaiting)")
    }

    private static func tryLock(
        _ files: any RepositoryFiles
    ) throws(RepositoryError) -> (any RepositoryFile)? {
        do throws(FileError) {
            // Opened each time: the previous file may have been replaced.
            let lock = try files.open(lockPath, .lock)
            return try lock.tryLock() ? lock : nil
        } catch {
            throw RepositoryError(error)
        }
    }

    // MARK: - Repair

    /// Empties the index of a repository under repair; the lock must be held.
    package static func emptyIndex(
        of id: RepositoryID, _ files: any RepositoryFiles
    ) throws(IndexError) {
        let reader = PackReader(files: files, repository: id)
        // LMDB does not check this itself.
        try IndexError.ofFiles(files.checkPlace(writing: nil))
        try IndexError.ofFiles(files.createDirectory(StoreDirectory.index))
        do throws(IndexError) {
            try openSound(reader).reset(repository: id)
        } catch {
            guard error.isDamage else { throw error }
            try IndexError.ofFiles(IndexMark.deleteIndex(files))
            try openSound(reader).reset(repository: id)
        }
    }

    /// Opens a repaired repository for writing.
    ///
    /// - Parameter takeLock: hands over the lock, which is held, once nothing can fail any more.
    package static func openRepaired(
        _ path: FilePath, _ id: RepositoryID, _ files: any RepositoryFiles,
        packByteCountMax: Int, lock takeLock: () -> (any RepositoryFile)?
    ) throws(IndexError) -> Repository {
        let reader = PackReader(files: files, repository: id)
        let opened = try openForWriting(reader, packByteCountMax: packByteCountMax)
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: opened, lock: takeLock())
    }

    // MARK: - Writing

    private static func openForWriting(
        _ reader: PackReader, packByteCountMax: Int
    ) throws(IndexError) -> OpenedIndex {
        let index = try openSound(reader)
        // An interrupted creation may not have synced the last name.
        try IndexError.ofFiles(reader.files.syncDirectory(""))
        let packs = try IndexError.ofPacks(PackName.list(reader.files))
        var sizes = try index.packSizes()
        func reset() throws(IndexError) {
            try index.reset(repository: reader.repository)
            sizes = [:]
        }
        if try index.isStale(packs, known: sizes, reader) { try reset() }
        let (mark, removed) = (try index.readMark(), try index.pruned())
        var replay = try IndexReplay(reader: reader, index: index)
        var end = try replay.run(packs: packs)
        if try index.lostPacks(upTo: mark, known: removed) {
            try reset()
            replay = try IndexReplay(reader: reader, index: index)
            end = try replay.run(packs: packs)
        }
        try IndexError.ofPacks(TransactionNumbers.requireRoom(after: end.highestTransaction))
        // From the highest down, each durably: a crash leaves no gap, because a gap is a lost pack.
        for pack in end.abandonedPacks.sorted(by: >) {
            reader.drop(pack)
            try IndexError.ofFiles(reader.files.remove(PackName.path(pack)))
            try IndexError.ofFiles(reader.files.syncDirectory(StoreDirectory.packs))
        }
        try IndexError.ofFiles(finishPrune(reader, end.prunedPacks))
        // No transaction is in progress, so what was read but not published never will be.
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        let writer = try IndexError.ofPacks(
            resume(reader, end, limit: packByteCountMax - packIndexReserve))
        let gone = Set(end.prunedPacks).union(end.abandonedPacks)
        try index.measure(
            packs.filter { $0 < writer.openPack && !gone.contains($0) && sizes[$0] == nil }, reader)
        return OpenedIndex(
            index: index, writer: writer, highestTransaction: end.highestTransaction)
    }

    /// Removes packs that an interrupted prune or repair had not put in place.
    ///
    /// The lock must be held: no process writes to them any more.
    package static func removeStrays(_ files: any RepositoryFiles) throws(FileError) {
        var names: [String] = []
        do throws(FileError) {
            names = try files.list(StoreDirectory.packs)
        } catch {
            // Operations that need the directory report that it is missing.
            if !error.isMissing { throw error }
        }
        for name in names where PackName.isStray(name) {
            try files.remove("\(StoreDirectory.packs)/\(name)")
        }
    }

    /// Finishes an interrupted prune: removes the packs that it had listed.
    private static func finishPrune(_ reader: PackReader, _ packs: [UInt32]) throws(FileError) {
        guard !packs.isEmpty else { return }
        for pack in packs {
            reader.drop(pack)
            try reader.files.remove(PackName.path(pack))
        }
        try reader.files.syncDirectory(StoreDirectory.packs)
    }

    /// Creates a writer that continues after the newest publication, and truncates what follows it.
    private static func resume(
        _ reader: PackReader, _ end: IndexReplay.End, limit: Int
    ) throws(RepositoryError) -> PackWriter {
        guard let last = end.lastConfirming, let scan = end.scan else {
            return try PackWriter(
                files: reader.files, repository: reader.repository, pack: end.nextPack, scan: nil,
                packByteCountMax: limit, didRemove: reader.drop)
        }
        if scan.isSealed {
            return try PackWriter(
                files: reader.files, repository: reader.repository, pack: last.pack + 1, scan: nil,
                packByteCountMax: limit, didRemove: reader.drop)
        }
        return try resume(
            reader, last.pack, scan, keeping: scan.entries.filter { $0.offset <= last.offset },
            limit: limit)
    }

    /// Creates a writer that appends after the records of an open pack, and truncates what follows
    /// them.
    package static func resume(
        _ reader: PackReader, _ pack: UInt32, _ scan: PackScan, keeping kept: [PackIndex.Entry],
        limit: Int
    ) throws(RepositoryError) -> PackWriter {
        let validEnd = kept.last?.end ?? UInt32(Envelope.byteCount)
        let confirmed = min(max(scan.confirmed, UInt32(Envelope.byteCount)), validEnd)
        do throws(FileError) {
            if scan.fileByteCount > UInt64(validEnd) {
                let file = try reader.files.open(PackName.path(pack), .update)
                try file.truncate(to: UInt64(validEnd))
            }
            try settle(reader, pack, UInt64(confirmed)..<UInt64(validEnd))
        } catch {
            throw RepositoryError(error)
        }
        let trimmed = PackScan(
            entries: kept, validEnd: validEnd, isSealed: false, fileByteCount: UInt64(validEnd),
            confirmed: validEnd, tail: nil)
        return try PackWriter(
            files: reader.files, repository: reader.repository, pack: pack, scan: trimmed,
            packByteCountMax: limit, didRemove: reader.drop)
    }

    /// Makes data of a pack durable that a dead writer may not have synced.
    ///
    /// The data is written again: after a failed sync the kernel considers it written, and another
    /// sync would do nothing.
    private static func settle(
        _ reader: PackReader, _ pack: UInt32, _ range: Range<UInt64>
    ) throws(FileError) {
        let file = try reader.files.open(PackName.path(pack), .update)
        var offset = range.lowerBound
        while offset < range.upperBound {
            let count = Int(min(1 << 20, range.upperBound - offset))
            let bytes = try file.readPages(count, at: offset)
            guard bytes.count == count else {
                throw FileError(call: "pread", path: PackName.path(pack), errno: EIO)
            }
            try file.write(bytes, at: offset)
            offset += UInt64(count)
        }
        try file.sync()
    }

    /// Deletes an index that was not closed, and marks the index as open.
    ///
    /// - Returns: true if it was deleted.
    private static func prepareIndex(_ files: any RepositoryFiles) throws(FileError) -> Bool {
        // Before anything is created or deleted there.
        try Index.checkFiles(files)
        let isForeign = try IndexMark.isForeign(files)
        if isForeign { try IndexMark.deleteIndex(files) }
        try IndexMark.set(files)
        return isForeign
    }

    /// Opens the index, or rebuilds it if it is missing, foreign, damaged or was not closed.
    ///
    /// The lock must be held; the index may be written from then on.
    static func openSound(_ reader: PackReader) throws(IndexError) -> Index {
        let isForeign = try IndexError.ofFiles(prepareIndex(reader.files))
        do throws(IndexError) {
            let index = try Index.open(reader.files, .writing)
            // This process may still have the old one open.
            var isSound = !isForeign
            if isSound { isSound = try index.isSound(repository: reader.repository) }
            if !isSound { try index.reset(repository: reader.repository) }
            return index
        } catch {
            guard error.isDamage || error.isBusy else { throw error }
            // Busy: a process was suspended while opening it; that process continues with the old
            // file.
            try IndexError.ofFiles(IndexMark.deleteIndex(reader.files))
            let index = try Index.open(reader.files, .writing)
            try index.reset(repository: reader.repository)
            return index
        }
    }
}
