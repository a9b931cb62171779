import CLMDB
import Glibc
package import PackStore
import Synchronization

// All of the store's calls to liblmdb. LMDB is a key-value store in one memory-mapped file, with
// one writer and readers that never wait; http://www.lmdb.tech/doc/.

/// An open LMDB environment with the index's tables.
///
/// LMDB forbids a process to open the same files twice, so `IndexEnvironments` shares them.
package final class LMDBEnvironment: @unchecked Sendable {
    // Unchecked: LMDB environments may be used from any thread; the handles never change.
    private let environment: OpaquePointer
    package let tables: [LMDBTableID]
    package let isReadOnly: Bool
    private let pageByteCount: Int
    /// Where the files of a temporary index are; nil for the index of a store.
    private let temporaryPlace: String?
    private let pacing = Mutex((WritebackPacing(), ContinuousClock.now))

    /// Address space for the file; the file grows as needed, and the address space is only
    /// reserved.
    ///
    /// A process whose address space is limited (`ulimit -v`) gets less.
    private static let mapByteCounts = [256 << 30, 16 << 30, 1 << 30, 256 << 20]

    private static let readerCountMax = 1024

    private static let dataName = "data.mdb"
    private static let lockName = "lock.mdb"

    /// Opens an environment, with as much address space as is available.
    ///
    /// - Parameter temporaryPlace: where the files of a temporary index are, for error messages.
    package convenience init(
        _ directory: OpenDirectory, tables names: [String], _ access: LMDBAccess,
        temporaryPlace: String? = nil
    ) throws(IndexError) {
        try IndexError.ofFiles(LMDBEnvironment.checkFiles(directory))
        for byteCount in LMDBEnvironment.mapByteCounts.dropLast() {
            do throws(IndexError) {
                try self.init(
                    directory, tables: names, access, mapByteCount: byteCount,
                    temporaryPlace: temporaryPlace)
                return
            } catch {
                guard error.isOutOfMemory else { throw error }
            }
        }
        try self.init(
            directory, tables: names, access,
            mapByteCount: LMDBEnvironment.mapByteCounts[LMDBEnvironment.mapByteCounts.count - 1],
            temporaryPlace: temporaryPlace)
    }

    private init(
        _ directory: OpenDirectory, tables names: [String], _ access: LMDBAccess,
        mapByteCount: Int, temporaryPlace: String?
    ) throws(IndexError) {
        let isReadOnly = access == .readingWithoutLocks
        // Opening writes the meta pages of a new file.
        let held = HeldSizeSignal()
        defer { held.release() }
        try LMDBEnvironment.checkHeads(directory)
        // LMDB would create it otherwise.
        if access != .writing,
            try IndexError.ofFiles(directory.status(of: LMDBEnvironment.dataName)) == nil
        {
            throw IndexError.call("open", code: ENOENT)
        }
        if !isReadOnly { try LMDBEnvironment.reserveLockFile(directory) }
        let lock = try IndexError.ofFiles(directory.status(of: LMDBEnvironment.lockName))
        var created: OpaquePointer?
        try LMDBEnvironment.check(mdb_env_create(&created), "mdb_env_create")
        guard let environment = created else {
            throw IndexError.call("mdb_env_create", code: ENOMEM)
        }
        do throws(IndexError) {
            try LMDBEnvironment.check(
                mdb_env_set_mapsize(environment, mapByteCount), "mdb_env_set_mapsize")
            try LMDBEnvironment.check(
                mdb_env_set_maxdbs(environment, MDB_dbi(names.count)), "mdb_env_set_maxdbs")
            try LMDBEnvironment.check(
                mdb_env_set_maxreaders(environment, UInt32(LMDBEnvironment.readerCountMax)),
                "mdb_env_set_maxreaders")
            // No sync: the index is derived, and rebuilt after a power failure (`Index.isSound`).
            // No TLS: a read txn may end on a thread other than the one that began it.
            let flags = MDB_NOTLS | MDB_NOSYNC | (isReadOnly ? MDB_RDONLY | MDB_NOLOCK : 0)
            try LMDBEnvironment.check(
                mdb_env_open(
                    environment, try IndexError.ofFiles(directory.systemPath()), UInt32(flags),
                    0o600),
                "mdb_env_open")
            try LMDBEnvironment.checkOpened(environment, directory, lock, isReadOnly: isReadOnly)
            var status = MDB_stat()
            try LMDBEnvironment.check(mdb_env_stat(environment, &status), "mdb_env_stat")
            pageByteCount = Int(status.ms_psize)
            // Reading a page beyond the end of the file would end the process.
            let needed = try LMDBEnvironment.neededByteCount(environment, pageByteCount)
            guard try LMDBEnvironment.file(environment).byteCount >= needed else {
                throw IndexError.contradiction(in: "mdb_env_open")
            }
            try LMDBEnvironment.checkPages(environment, pageByteCount, isReadOnly: isReadOnly)
            var dead: Int32 = 0
            if !isReadOnly { _ = mdb_reader_check(environment, &dead) }
            tables = try LMDBEnvironment.openTables(environment, names, access)
        } catch {
            mdb_env_close(environment)
            throw error
        }
        self.environment = environment
        self.isReadOnly = isReadOnly
        self.temporaryPlace = temporaryPlace
    }

    deinit {
        mdb_env_close(environment)
    }

    /// Fails unless the files that LMDB will open were created by this user: LMDB follows symbolic
    /// links, writes to any file of that name, and trusts its contents.
    package static func checkFiles(_ directory: OpenDirectory) throws(FileError) {
        try checkOwner(try directory.status(), directory.path)
        for name in [dataName, lockName] {
            let path = "\(directory.path)/\(name)"
            guard let status = try directory.status(of: name) else { continue }
            guard status.st_mode & S_IFMT == S_IFREG else {
                throw FileError.odd(path, status, not: "regular file")
            }
            guard status.st_nlink == 1 else {
                throw FileError(
                    .odd("a file with another hard link, not the index's own file"),
                    path: path, errno: EMLINK)
            }
            try checkOwner(status, path)
        }
    }

    private static func checkOwner(_ status: stat, _ path: String) throws(FileError) {
        guard status.st_uid == system_user() else {
            throw FileError(.foreign(status.st_uid), path: path, errno: EPERM)
        }
    }

    /// Fails if LMDB has opened files other than those that were checked.
    private static func checkOpened(
        _ environment: OpaquePointer, _ directory: OpenDirectory, _ lock: stat?, isReadOnly: Bool
    ) throws(IndexError) {
        try IndexError.ofFiles(checkFiles(directory))
        var status = stat()
        guard system_fstat(try file(environment).descriptor, &status) == 0 else {
            throw IndexError.call("fstat", code: errno)
        }
        let opened = Identity(status)
        let data = try IndexError.ofFiles(directory.status(of: dataName)).map { Identity($0) }
        let locked = try IndexError.ofFiles(directory.status(of: lockName)).map { Identity($0) }
        let isSame = data == opened && (isReadOnly || locked == lock.map { Identity($0) })
        guard isSame else {
            throw .file(
                FileError(
                    .moved("was replaced while it was opened"), path: directory.path,
                    errno: ESTALE))
        }
    }

    /// Fails if LMDB would trust a damaged meta page of its file: it takes the page size and the
    /// number of pages from there, and maps that much.
    ///
    /// There are two meta pages, at the beginning of the file and one page after it, used
    /// alternately. Their layout is that of LMDB 0.9 (`MDB_page`, `MDB_meta` of mdb.c): a page
    /// header of 16 bytes, magic u32, version u32, address u64, map size u64, and two tables of 48
    /// bytes, of which the first begins with the page size; then the last page u64.
    private static func checkHeads(_ directory: OpenDirectory) throws(IndexError) {
        // A new file has none.
        guard try IndexError.ofFiles(directory.status(of: dataName)) != nil else { return }
        let descriptor = try IndexError.ofFiles(directory.open(dataName, O_RDONLY))
        defer { system_close(descriptor) }
        var status = stat()
        guard system_fstat(descriptor, &status) == 0, status.st_size > 0 else { return }
        // If the system's pages are larger, LMDB uses half of that or less.
        let pageByteCount = min(Int(sysconf(Int32(_SC_PAGESIZE))), 0x8000)
        let pageCount = UInt64(Int(status.st_size) / pageByteCount)
        try withUnsafeTemporaryAllocation(byteCount: 152, alignment: 8) {
            (head) throws(IndexError) in
            for page in 0..<2 {
                let count = system_pread(
                    descriptor, UnsafeMutableRawBufferPointer(head), page * pageByteCount)
                let size = head.loadUnaligned(fromByteOffset: 40, as: UInt32.self)
                let last = head.loadUnaligned(fromByteOffset: 136, as: UInt64.self)
                guard count == head.count, size == UInt32(pageByteCount), last < pageCount else {
                    throw IndexError.contradiction(in: "mdb_env_open")
                }
            }
        }
    }

    /// Fails if LMDB would follow damaged references in its file (`LMDBFileCheck`).
    ///
    /// Checks one snapshot of it, which a txn preserves while a writer continues; beginning a txn
    /// follows no references.
    private static func checkPages(
        _ environment: OpaquePointer, _ pageByteCount: Int, isReadOnly: Bool
    ) throws(IndexError) {
        let descriptor = try file(environment).descriptor
        // Another round is needed only if a writer commits between two calls, or is not held off.
        for _ in 0..<16 {
            var txn: OpaquePointer?
            try check(
                mdb_txn_begin(environment, nil, UInt32(MDB_RDONLY), &txn), "mdb_txn_begin")
            defer { mdb_txn_abort(txn) }
            let moment = UInt64(mdb_txn_id(txn))
            let file = LMDBFileCheck(descriptor: descriptor, pageByteCount: pageByteCount)
            do throws(IndexError) {
                if try file.check(moment: moment) == .sound { return }
            } catch {
                // Without permission to lock, a writer may have overwritten what was read.
                guard isReadOnly else { throw error }
                var information = MDB_envinfo()
                try check(mdb_env_info(environment, &information), "mdb_env_info")
                guard UInt64(information.me_last_txnid) > moment else { throw error }
            }
        }
        throw IndexError.call("mdb_txn_begin", code: EBUSY)
    }

    /// Reserves disk space for the lock file before LMDB maps it: a write to a mapped page for
    /// which a full disk has no space ends the process.
    ///
    /// LMDB chooses its size: 64 bytes per reader, and less than a page in addition.
    private static func reserveLockFile(_ directory: OpenDirectory) throws(IndexError) {
        let descriptor = try IndexError.ofFiles(directory.open(lockName, O_RDWR | O_CREAT, 0o600))
        defer { system_close(descriptor) }
        // The first process to open it holds a lock on its first byte until it is set up, and LMDB
        // waits for that lock indefinitely, even if that process is suspended at that moment.
        for _ in 0..<25 {
            guard system_isLocked(descriptor, at: 0, 1) == true else { break }
            WallClock.sleep(milliseconds: 20)
        }
        guard system_isLocked(descriptor, at: 0, 1) != true else {
            throw IndexError.call("mdb_env_open", code: EBUSY)
        }
        let code = system_reserve(descriptor, readerCountMax * 64 + 4096)
        guard code == 0 else { throw IndexError.call("fallocate", code: code) }
    }

    private static func openTables(
        _ environment: OpaquePointer, _ names: [String], _ access: LMDBAccess
    ) throws(IndexError) -> [LMDBTableID] {
        do throws(IndexError) {
            // A write txn would wait for one of another process.
            return try openTables(environment, names, makesThem: false)
        } catch  where error.isMissingTable && access == .writing {
            return try openTables(environment, names, makesThem: true)
        }
    }

    private static func openTables(
        _ environment: OpaquePointer, _ names: [String], makesThem: Bool
    ) throws(IndexError) -> [LMDBTableID] {
        var txn: OpaquePointer?
        try check(
            mdb_txn_begin(environment, nil, makesThem ? 0 : UInt32(MDB_RDONLY), &txn),
            "mdb_txn_begin")
        var tables: [LMDBTableID] = []
        for name in names {
            var table: MDB_dbi = 0
            let code = mdb_dbi_open(txn, name, makesThem ? UInt32(MDB_CREATE) : 0, &table)
            if code != 0 {
                mdb_txn_abort(txn)
                throw IndexError.call("mdb_dbi_open", code: code)
            }
            tables.append(LMDBTableID(handle: table))
        }
        try check(mdb_txn_commit(txn), "mdb_txn_commit")
        return tables
    }

    /// Runs `body` in a read txn: a snapshot of the index.
    package func read<T>(
        _ body: (borrowing LMDBTxn) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        var handle: OpaquePointer?
        try LMDBEnvironment.check(
            mdb_txn_begin(environment, nil, UInt32(MDB_RDONLY), &handle), "mdb_txn_begin")
        guard let handle else { throw .call("mdb_txn_begin", code: ENOMEM) }
        let txn = LMDBTxn(handle: handle)
        guard isReadOnly else { return try body(txn) }
        // Without permission to lock, a writer may reuse the pages of this snapshot from its second
        // txn after it: what was read is then discarded.
        let moment = mdb_txn_id(handle)
        let result = Result { () throws(IndexError) in try body(txn) }
        var information = MDB_envinfo()
        try LMDBEnvironment.check(mdb_env_info(environment, &information), "mdb_env_info")
        guard information.me_last_txnid <= moment + 1 else {
            throw .repository(
                RepositoryError(
                    .busy,
                    "a writer changed the index while it was being read, and without write "
                        + "permission the reader cannot prevent that; try again"))
        }
        return try result.get()
    }

    /// Runs `body` in a write txn, and commits it if `body` returns.
    package func write<T>(
        _ body: (borrowing LMDBTxn) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        // LMDB may write large changes before the commit.
        let held = HeldSizeSignal()
        defer { held.release() }
        do throws(IndexError) {
            var handle: OpaquePointer?
            try LMDBEnvironment.check(mdb_txn_begin(environment, nil, 0, &handle), "mdb_txn_begin")
            guard let handle else { throw .call("mdb_txn_begin", code: ENOMEM) }
            let txn = LMDBTxn(handle: handle)
            let value = try body(txn)
            try txn.commit()
            try fill()
            return value
        } catch {
            guard let temporaryPlace, error.isWrite, case .call(_, let code) = error else {
                throw error
            }
            // LMDB reports EIO for a write that a full disk cut short.
            let file = try? LMDBEnvironment.file(environment)
            let isFull = file.map { system_isFull($0.descriptor) } ?? false
            throw .file(
                FileError(
                    .noTemporaryPlace, path: temporaryPlace,
                    errno: isFull ? ENOSPC : code))
        }
    }

    /// Extends the file to the length that its pages require.
    ///
    /// LMDB does not write pages at the end of the file that a txn allocated and freed; once these
    /// are included, a shorter file has been truncated.
    private func fill() throws(IndexError) {
        let needed = try LMDBEnvironment.neededByteCount(environment, pageByteCount)
        let file = try LMDBEnvironment.file(environment)
        if file.byteCount < needed, system_ftruncate(file.descriptor, needed) != 0 {
            throw IndexError.call("ftruncate", code: errno)
        }
    }

    /// Total size of the environment's pages in bytes.
    private static func neededByteCount(
        _ environment: OpaquePointer, _ pageByteCount: Int
    ) throws(IndexError) -> Int {
        var information = MDB_envinfo()
        try check(mdb_env_info(environment, &information), "mdb_env_info")
        let (bytes, overflows) = (information.me_last_pgno + 1)
            .multipliedReportingOverflow(by: pageByteCount)
        guard !overflows else { throw IndexError.contradiction(in: "mdb_env_info") }
        return bytes
    }

    /// The environment's file descriptor and file size.
    private static func file(
        _ environment: OpaquePointer
    ) throws(IndexError) -> (descriptor: Int32, byteCount: Int) {
        var descriptor: Int32 = -1
        try check(mdb_env_get_fd(environment, &descriptor), "mdb_env_get_fd")
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else {
            throw IndexError.call("fstat", code: errno)
        }
        return (descriptor, Int(status.st_size))
    }

    /// Starts writeback of the part of the file that is due (`WritebackPacing`).
    ///
    /// Does not wait for the disk.
    package func writeBackShare() throws(IndexError) {
        let file = try LMDBEnvironment.file(environment)
        let share = pacing.withLock { state in
            let now = ContinuousClock.now
            defer { state.1 = now }
            return state.0.share(after: now - state.1, of: UInt64(file.byteCount))
        }
        guard let share else { return }
        system_startWriteback(file.descriptor, share)
    }

    /// Writes a snapshot of the file to an empty one; takes no locks that could block.
    ///
    /// `mdb_env_copy` does the same but waits for the writer. The meta pages are read first: later
    /// ones could refer to pages that were not read yet, or that a writer has overwritten since.
    package func copy(to target: Int32) throws(IndexError) {
        try read { (txn) throws(IndexError) in
            let file = try LMDBEnvironment.file(environment)
            let buffer = UnsafeMutableRawBufferPointer.allocate(
                byteCount: 1 << 20, alignment: 4096)
            defer { buffer.deallocate() }
            var offset = 0
            while offset < file.byteCount {
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: buffer[..<(offset == 0 ? 2 * pageByteCount : buffer.count)])
                let count = system_pread(file.descriptor, part, offset)
                guard count >= 0 else { throw IndexError.call("pread", code: errno) }
                if count == 0 { break }
                if offset == 0 {
                    let numbers = [0, pageByteCount].map { head -> UInt64 in
                        guard count >= head + 152 else { return .max }
                        return part.loadUnaligned(fromByteOffset: head + 144, as: UInt64.self)
                    }
                    guard numbers.max() == txn.moment else {
                        throw IndexError.call("mdb_txn_begin", code: EBUSY)
                    }
                }
                var done = 0
                while done < count {
                    let rest = UnsafeRawBufferPointer(rebasing: part[done..<count])
                    let written = system_pwrite(target, rest, offset + done)
                    guard written > 0 else {
                        throw IndexError.call("pwrite", code: written < 0 ? errno : EIO)
                    }
                    done += written
                }
                offset += count
            }
        }
    }

    /// Writes everything committed to the disk.
    package func sync() throws(IndexError) {
        try LMDBEnvironment.check(mdb_env_sync(environment, 1), "mdb_env_sync")
    }

    static func check(_ code: Int32, _ call: String) throws(IndexError) {
        if code != 0 { throw IndexError.call(call, code: code) }
    }
}
