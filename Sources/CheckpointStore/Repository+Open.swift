package import CheckpointFormat
import CheckpointIndex
import Glibc
import GuestModel
import LMDBTables
public import PackStore
public import SystemPackage

/// What opening the index gave.
package struct OpenedIndex {
    let index: Index
    /// nil for a reader.
    var writer: PackWriter?
    var highestTransaction: UInt64 = 0
    /// What a reader found damaged.
    var damage: [Corruption] = []
    /// Why it is not the repository's own; nil if it is.
    var temporary: TemporaryIndex?
}

extension Repository {
    /// Bytes of a pack at most; 64 MiB fits one object of a distributed store.
    package static let packByteCountMax = 64 << 20
    // Room that is kept for the index that seals a pack.
    package static let packIndexReserve = 256 << 10

    private static let envelopePath = "repository"
    static let lockPath = StoreLock.name

    /// Makes a repository in a directory that is empty or does not exist, and opens it for
    /// writing.
    ///
    /// A directory that it makes is for its owner alone; one that is there keeps its permissions.
    public static func create(at path: FilePath) throws(RepositoryError) -> Repository {
        try create(at: path, files: PosixFiles(root: path))
    }

    /// Makes a repository over other files, or with other limits.
    package static func create(
        at path: FilePath, files: any RepositoryFiles,
        packByteCountMax: Int = Repository.packByteCountMax
    ) throws(RepositoryError) -> Repository {
        do throws(FileError) {
            try files.createDirectory("")
            let known: Set = [
                StoreDirectory.packs, StoreDirectory.index, lockPath, envelopePath + ".new",
            ]
            let names = try files.list("")
            try checkOwner(path, files)
            if names.contains(envelopePath) {
                throw FileError(call: "create", path: path.string, errno: 0)
            }
            // What a creation that was cut off left behind is fine; anything else is not ours.
            var packs: [String] = []
            if names.contains(StoreDirectory.packs) { packs = try files.list(StoreDirectory.packs) }
            guard Set(names).isSubset(of: known), packs.isEmpty else {
                throw FileError(call: "create", path: path.string, errno: 1)
            }
            try files.createDirectory(StoreDirectory.packs)
            try files.syncDirectory("")
            let envelope = Envelope(
                kind: .repository, repository: .random(), number: WallClock.nanoseconds)
            try files.replace(envelopePath, with: envelope.encoded)
        } catch {
            if error.call == "create" {
                throw RepositoryError(
                    .exists,
                    error.errno == 0
                        ? "\(path) is a repository already; nothing was changed"
                        : "\(path) is not empty; name a new or empty directory")
            }
            if error.call == "readdir" && error.isMissing {
                throw RepositoryError(
                    .exists, "\(path) is not a directory; name a new or empty one")
            }
            if error.isMissing {
                throw RepositoryError(
                    .missing, "\(path) cannot be made because its parent does not exist")
            }
            throw uncreated(path, RepositoryError(error))
        }
        do throws(RepositoryError) {
            return try open(at: path, .writing, files: files, packByteCountMax: packByteCountMax)
        } catch {
            throw uncreated(path, error)
        }
    }

    /// The error for a creation that failed: no checkpoint has been taken yet.
    private static func uncreated(_ path: FilePath, _ error: RepositoryError) -> RepositoryError {
        guard error.code == .noSpace else { return error }
        return RepositoryError(
            .noSpace,
            "no space is left for a repository at \(path); free some, or name a path on another "
                + "disk", errno: error.errno)
    }

    /// Opens a repository.
    ///
    /// For writing it takes the lock, reads what the index lacks, and cuts off what a crash left
    /// of transactions that were never published.
    ///
    /// For reading it changes nothing, and waits for nobody; it may have to make an index of its
    /// own (`temporaryIndex`), which costs reading the packs. A store of another user is opened
    /// for reading only.
    ///
    /// - Parameters:
    ///   - path: where it lies.
    ///   - access: what for.
    ///   - waiting: how long to wait, for writing, while another process writes.
    public static func open(
        at path: FilePath, _ access: Access, waiting: LockWaiting = .none
    ) throws(RepositoryError) -> Repository {
        try open(at: path, access, files: PosixFiles(root: path), waiting: waiting)
    }

    /// Opens a repository over other files, or with other limits.
    package static func open(
        at path: FilePath, _ access: Access, files: any RepositoryFiles,
        packByteCountMax: Int = Repository.packByteCountMax, waiting: LockWaiting = .none
    ) throws(RepositoryError) -> Repository {
        let id = try readEnvelope(path, files)
        do throws(RepositoryError) {
            return try open(at: path, access, files: files, id, packByteCountMax, waiting)
        } catch {
            // It was condemned, so it is made anew now.
            guard error.code == .indexDamaged else { throw error }
            return try open(at: path, access, files: files, id, packByteCountMax, waiting)
        }
    }

    private static func open(
        at path: FilePath, _ access: Access, files: any RepositoryFiles, _ id: RepositoryID,
        _ packByteCountMax: Int, _ waiting: LockWaiting
    ) throws(RepositoryError) -> Repository {
        do {
            let owner = try files.foreignOwner()
            if access == .writing { try checkOwner(path, files) }
            let files = owner.map { ReadOnlyFiles(files, owner: $0) } ?? files
            let reader = PackReader(files: files, repository: id)
            switch access {
            case .writing:
                let lock = try takeLock(path, files, waiting)
                // Before anything that needs room on the disk, all of which they may have taken.
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

    /// Fails if a store is another user's, or what a writer opens or makes files in: those would
    /// lock its owner out, and who owns a folder can put anything into it at any time.
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

    /// True if packs lie there: then it is a repository, whatever its file `repository` says.
    private static func hasPacks(_ files: any RepositoryFiles) -> Bool {
        // A folder that cannot be read has none to repair from.
        ((try? PackName.list(files)) ?? []).isEmpty == false
    }

    private static func damagedEnvelope(_ reason: String) -> RepositoryError {
        RepositoryError(
            Corruption(
                file: envelopePath, offset: 0, object: "envelope",
                reason: "\(reason), and there are packs; restore it from a copy, or have "
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
                    "the repository at \(path) has format version \(version) and this program "
                        + "reads version \(Envelope.formatVersion); use a program that knows it")
            case .features:
                throw RepositoryError(
                    .version,
                    "the repository at \(path) uses features that this program does not know; use "
                        + "a newer one")
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
    /// Tried for a second at least: a writer that is about to end may have it still.
    package static func takeLock(
        _ path: FilePath, _ files: any RepositoryFiles, _ waiting: LockWaiting = .none
    ) throws(RepositoryError) -> any RepositoryFile {
        try waiting.check()
        let start = ContinuousClock.now
        var tryCount = 0
        do throws(FileError) {
            try checkOwner(path, files)
            repeat {
                // Opened each time: the file that was there before may have been replaced.
                let lock = try files.open(lockPath, .lock)
                if try lock.tryLock() { return lock }
                guard waiting.goesOn() else { throw FileError(call: "wait", path: "", errno: 0) }
                tryCount += 1
                WallClock.sleep(milliseconds: tryCount < 50 ? 20 : 100)
            } while tryCount < 50
                || waiting.timeMax.map { ContinuousClock.now - start < $0 } ?? true
        } catch {
            guard error.call == "wait" else { throw RepositoryError(error) }
            throw RepositoryError(
                .cancelled,
                "another process is writing to \(path), and waiting for its end was given up; "
                    + "nothing was changed")
        }
        throw RepositoryError(
            .locked,
            "another process is writing to \(path); try again when it has ended, or wait for that "
                + "(--wait, LockWaiting)")
    }

    // MARK: - Repairing

    /// Empties the index of a repository that is being repaired, with its lock held.
    package static func emptyIndex(of id: RepositoryID, _ files: any RepositoryFiles) throws {
        let reader = PackReader(files: files, repository: id)
        // LMDB asks nobody.
        try files.checkPlace(writing: nil)
        try files.createDirectory(StoreDirectory.index)
        do {
            try openSound(reader).reset(repository: id)
        } catch let error as LMDBError where error.isDamage {
            try IndexMark.deleteIndex(files)
            try openSound(reader).reset(repository: id)
        }
    }

    /// Opens a repository that was repaired for writing.
    ///
    /// - Parameter takeLock: gives the lock, which is held, once nothing can fail any more.
    package static func openRepaired(
        _ path: FilePath, _ id: RepositoryID, _ files: any RepositoryFiles,
        packByteCountMax: Int, lock takeLock: () -> (any RepositoryFile)?
    ) throws -> Repository {
        let reader = PackReader(files: files, repository: id)
        let opened = try openForWriting(reader, packByteCountMax: packByteCountMax)
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: opened, lock: takeLock())
    }

    // MARK: - Writing

    private static func openForWriting(
        _ reader: PackReader, packByteCountMax: Int
    ) throws -> OpenedIndex {
        let index = try openSound(reader)
        // A creation may have been cut off before it synced the last name.
        try reader.files.syncDirectory("")
        let packs = try PackName.list(reader.files)
        if try index.isStale(packs, reader) { try index.reset(repository: reader.repository) }
        var replay = try IndexReplay(reader: reader, index: index)
        let end = try replay.run(packs: packs)
        try TransactionNumbers.requireRoom(after: end.highestTransaction)
        // From the highest down, each durably: a crash leaves no gap, and a gap is a lost pack.
        for pack in end.abandonedPacks.sorted(by: >) {
            reader.drop(pack)
            try reader.files.remove(PackName.path(pack))
            try reader.files.syncDirectory(StoreDirectory.packs)
        }
        try finishPrune(reader, end.prunedPacks)
        // Nothing is under way, so what was read and is not published never will be.
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        let writer = try resume(reader, end, limit: packByteCountMax - packIndexReserve)
        let gone = Set(end.prunedPacks).union(end.abandonedPacks)
        try index.notePackSizes(
            packs.filter { $0 < writer.openPack && !gone.contains($0) }, reader)
        return OpenedIndex(
            index: index, writer: writer, highestTransaction: end.highestTransaction)
    }

    /// Removes packs that a prune or a repair that was cut short had not put in place.
    ///
    /// With the lock held: no one writes them any more.
    package static func removeStrays(_ files: any RepositoryFiles) throws(FileError) {
        var names: [String] = []
        do throws(FileError) {
            names = try files.list(StoreDirectory.packs)
        } catch {
            // What needs the folder says that it is gone.
            if !error.isMissing { throw error }
        }
        for name in names where PackName.isStray(name) {
            try files.remove("\(StoreDirectory.packs)/\(name)")
        }
    }

    /// Ends a prune that was cut short: removes packs that it had named.
    private static func finishPrune(_ reader: PackReader, _ packs: [UInt32]) throws {
        guard !packs.isEmpty else { return }
        for pack in packs {
            reader.drop(pack)
            try reader.files.remove(PackName.path(pack))
        }
        try reader.files.syncDirectory(StoreDirectory.packs)
    }

    /// Makes a writer that goes on behind the newest publication, and cuts off what follows it.
    private static func resume(
        _ reader: PackReader, _ end: IndexReplay.End, limit: Int
    ) throws -> PackWriter {
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

    /// Makes a writer that appends to records of an open pack, and cuts off what follows them.
    package static func resume(
        _ reader: PackReader, _ pack: UInt32, _ scan: PackScan, keeping kept: [PackIndex.Entry],
        limit: Int
    ) throws -> PackWriter {
        let validEnd = kept.last?.end ?? UInt32(Envelope.byteCount)
        if scan.fileByteCount > UInt64(validEnd) {
            let file = try reader.files.open(PackName.path(pack), .update)
            try file.truncate(to: UInt64(validEnd))
        }
        let confirmed = min(max(scan.confirmed, UInt32(Envelope.byteCount)), validEnd)
        try settle(reader, pack, UInt64(confirmed)..<UInt64(validEnd))
        let trimmed = PackScan(
            entries: kept, validEnd: validEnd, isSealed: false, fileByteCount: UInt64(validEnd),
            confirmed: validEnd, tail: nil)
        return try PackWriter(
            files: reader.files, repository: reader.repository, pack: pack, scan: trimmed,
            packByteCountMax: limit, didRemove: reader.drop)
    }

    /// Makes bytes of a pack durable that a writer may have died before syncing.
    ///
    /// They are written once more: after a sync that failed the kernel takes them for written, and
    /// another sync would do nothing.
    private static func settle(
        _ reader: PackReader, _ pack: UInt32, _ range: Range<UInt64>
    ) throws {
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

    /// Opens the index, or makes it anew if it is missing, foreign, damaged or was cut off.
    ///
    /// With the lock held; the index may be written from then on.
    static func openSound(_ reader: PackReader) throws -> Index {
        // Before anything is made or deleted there.
        try Index.checkFiles(reader.files)
        let isForeign = try IndexMark.isForeign(reader.files)
        if isForeign { try IndexMark.deleteIndex(reader.files) }
        try IndexMark.set(reader.files)
        do {
            let index = try Index.open(reader.files, .writing)
            // This process may have it open still, as it was.
            if try isForeign || !index.isSound(repository: reader.repository) {
                try index.reset(repository: reader.repository)
            }
            return index
        } catch let error as LMDBError where error.isDamage || error.isBusy {
            // Busy: a process was stopped while it opened it; it goes on with what it has.
            try IndexMark.deleteIndex(reader.files)
            let index = try Index.open(reader.files, .writing)
            try index.reset(repository: reader.repository)
            return index
        }
    }
}
