package import CheckpointFormat
import Glibc
package import GuestModel
package import LMDBTables
package import PackStore
import Synchronization

// The derived index: the location of the page of each digest, and the catalog of checkpoints. It
// can be deleted while no process has it open; `IndexReplay` rebuilds it from the packs. It never
// refers to anything that is not published.
//
//   table        key                        value
//   pages        digest, 32 bytes           location: pack u32, block offset u32, block bytes u32,
//                                           block pages u8, slot u8
//   recent       run's number u64,          digest and location of each recently added page, in
//                big-endian                 digest order (`Index+SortedRuns`)
//   checkpoints  id, 32 bytes               what lists need of it (`CatalogEntry`): pack u32,
//                                           offset u32 of the manifest, order u64; u8: 1 if it was
//                                           forgotten: then it has no order and no name; packs u32
//                                           of the record that forgot it and of the one that set
//                                           its label, or 0; time i64; pages, zero pages and
//                                           changed pages u64; lineage, label
//   order        order u64, big-endian      id
//   lineages     length u8 and bytes of the id
//                name, order u64, big-endian
//   labels       likewise, of the label     id
//   state        "version"                  u32
//                "repository"               16 bytes
//                "read"                     pack u32, offset u32: how far packs were read
//                "transaction"              u64: the highest number seen
//                "pruned"                   the newest pruned record's payload
//                "adding"                   id, u64: a checkpoint that is being added in several
//                                           steps, and how many of its entries were added
//                "drain"                    run's number u64, position in the digest space u64,
//                                           pages u64: how far runs were moved to the page table
//                "open"                     pack u32, bytes u32: size of the pages that left the
//                                           index while the pack was open
//
// And what prune needs, so that it need not read the whole repository (`OwnedFrames`):
//
//   ownedFrames  id                         predecessor's id or zeros, then the frames as runs
//   successors   predecessor's id, id       nothing
//   references   digest                     u32: references beyond the first
//   unreferenced digest                     nothing: a page that no checkpoint has
//   builders     id, id of a checkpoint     nothing
//                whose map is based on it
//   transactions number u64, big-endian     id
//   pending      id of a forgotten one      u8: 0 if it still has owned frames; 1 if its manifest
//                                           was to be removed: then transaction u64, ancestor's id
//   packs        pack u32, big-endian       bytes u32, unused bytes u32, as last seen by prune
//   candidates   pack u32, big-endian       u64: since when it may contain garbage
//   sizes        pack u32, big-endian       u32: bytes of a sealed pack (`Index+PackSizes`)
//
// Each value also has a checksum (`SealedValue`).

/// The position in the packs up to which the index has read.
package typealias ReadMark = RecordLocation

/// The derived index of a repository.
package final class Index: Sendable {
    package enum Table: Int, CaseIterable {
        case pages
        case recent
        case checkpoints
        case order
        case lineages
        case labels
        case state
        case ownedFrames
        case successors
        case references
        case unreferenced
        case builders
        case transactions
        case pending
        case packs
        case candidates
        case sizes
    }

    static let version: UInt32 = 7

    /// Upper bound of orders and run numbers: their sums do not overflow.
    static let numberMax = UInt64(Int64.max)

    // The registry owns it, and closes it when the last index is released.
    package unowned let environment: LMDBEnvironment
    private let key: IndexEnvironments.Key
    /// What this process has read of the runs.
    package let recent = SortedRuns()
    /// A filter for absent pages; built by the writer.
    package let filter = WriterFilter()

    private init(_ opened: (key: IndexEnvironments.Key, environment: LMDBEnvironment)) {
        key = opened.key
        environment = opened.environment
    }

    deinit {
        IndexEnvironments.release(key)
    }

    /// Opens the index in a directory.
    ///
    /// Throws `LMDBError`, or `FileError` if one of its files was not created by LMDB.
    static func open(in directory: OpenDirectory, _ access: LMDBAccess) throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        return Index(
            try IndexEnvironments.open(directory, tables: names, access))
    }

    /// Opens the index in a directory of a repository's files.
    package static func open(_ files: any RepositoryFiles, _ access: LMDBAccess) throws -> Index {
        try open(in: try files.openDirectory(StoreDirectory.index), access)
    }

    /// Fails if LMDB's files in a repository are of the wrong kind or another user's.
    package static func checkFiles(_ files: any RepositoryFiles) throws(FileError) {
        try LMDBEnvironment.checkFiles(try files.openDirectory(StoreDirectory.index))
    }

    /// Creates an index private to this process, which is removed with it.
    package static func makePrivate(repository: RepositoryID) throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        let index = Index(try IndexEnvironments.openPrivate(tables: names))
        try index.reset(repository: repository)
        return index
    }

    /// Creates a private copy of a snapshot of this index.
    package func makePrivateCopy() throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        return Index(try IndexEnvironments.openPrivate(tables: names, copyOf: environment))
    }

    package func table(_ table: Table) -> LMDBTableID { environment.tables[table.rawValue] }

    // MARK: - Identity

    /// True if it belongs to the repository and has this version.
    package func isSound(repository: RepositoryID) throws -> Bool {
        try environment.read { transaction in
            var expected = ByteWriter()
            expected.write(repository)
            var version = ByteWriter()
            version.write(Index.version)
            return try value(transaction, "repository") == expected.bytes
                && value(transaction, "version") == version.bytes
        }
    }

    /// Empties it and assigns it to the repository: the first step of a rebuild.
    package func reset(repository: RepositoryID) throws {
        filter.clear()
        try environment.write { transaction in
            for table in Table.allCases { try transaction.clear(self.table(table)) }
            var id = ByteWriter()
            id.write(repository)
            try setValue(transaction, "repository", id.bytes)
            var version = ByteWriter()
            version.write(Index.version)
            try setValue(transaction, "version", version.bytes)
        }
    }

    /// Writes it to the disk.
    package func sync() throws { try environment.sync() }

    // MARK: - State values

    func value(_ transaction: borrowing LMDBTxn, _ key: String) throws(LMDBError)
        -> [UInt8]?
    {
        try Index.withKey(key) { (bytes) throws(LMDBError) in
            try transaction.get(table(.state), bytes) { Array($0) }
        }
    }

    func setValue(
        _ transaction: borrowing LMDBTxn, _ key: String, _ value: [UInt8]
    ) throws(LMDBError) {
        try Index.withKey(key) { (bytes) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (buffer) throws(LMDBError) in
                try transaction.put(table(.state), bytes, UnsafeRawBufferPointer(buffer))
            }
        }
    }

    static func withKey<T>(
        _ key: String, _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> T
    ) throws(LMDBError) -> T {
        try Array(key.utf8).withUnsafeBufferPointer { (bytes) throws(LMDBError) -> T in
            try body(UnsafeRawBufferPointer(bytes))
        }
    }

    /// The position up to which packs were read.
    package func readMark() throws -> ReadMark {
        try environment.read { transaction in
            guard let bytes = try value(transaction, "read") else {
                return ReadMark(pack: 0, offset: 0)
            }
            return try ByteReader.decode(bytes) { (reader) throws(FormatError) in
                let pack = try reader.read(UInt32.self)
                return ReadMark(pack: pack, offset: try reader.read(UInt32.self))
            }
        }
    }

    /// The highest transaction number seen.
    package func highestTransaction() throws -> UInt64 {
        try environment.read { transaction in
            guard let bytes = try value(transaction, "transaction") else { return 0 }
            let number = try ByteReader.decode(bytes) { (reader) throws(FormatError) in
                try reader.read(UInt64.self)
            }
            // No record has such a number (`TransactionNumbers`).
            guard TransactionNumbers.hasRoom(after: number) else {
                throw LMDBError.damagedValue("highest transaction")
            }
            return number
        }
    }
}

// MARK: - Pages

extension Index {
    /// The locations of a batch of digests, from one snapshot of the index; results are in order.
    ///
    /// Lookups are done in digest order: thousands at a time cost a fraction of as many single
    /// ones.
    package func locations(
        of digests: Span<PageDigest>, _ body: (_ index: Int, PageLocation?) -> Void
    ) throws {
        let order = Index.keyOrder(digests.count) { digests[$0] }
        let found = try environment.read { transaction in
            let window = try recentWindow(transaction)
            return try locations(
                order, of: digests.count, { digests[$0] }, in: window, transaction)
        }
        for position in digests.indices { body(position, found[position]) }
    }

    /// Indexes sorted by digest, which is the key: neighbours share a page of LMDB.
    static func keyOrder(_ count: Int, _ digest: (Int) -> PageDigest) -> [Int] {
        var keys: [(order: UInt64, position: Int)] = []
        keys.reserveCapacity(count)
        for position in 0..<count { keys.append((digest(position).order, position)) }
        keys.sort {
            $0.order != $1.order
                ? $0.order < $1.order : digest($0.position).precedes(digest($1.position))
        }
        return keys.map(\.position)
    }

    /// Number of distinct pages stored.
    package func pageCount() throws -> Int {
        try environment.read { try $0.count(table(.pages)) + pagesInRuns($0).count }
    }
}

extension PageLocation {
    init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        guard bytes.count == PageLocation.byteCount else { throw .damagedValue("location") }
        self.init(
            pack: UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)),
            blockOffset: UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self)),
            blockByteCount: UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self)),
            blockPageCount: bytes[12], slot: bytes[13])
        guard pack > 0, slot < blockPageCount, blockPageCount <= PageGroupTable.pageLimit,
            blockByteCount <= Int(blockPageCount) * Page.byteCount
        else { throw .damagedValue("location") }
    }

    func encode(into bytes: UnsafeMutableRawBufferPointer) {
        bytes.storeBytes(of: pack.littleEndian, as: UInt32.self)
        bytes.storeBytes(of: blockOffset.littleEndian, toByteOffset: 4, as: UInt32.self)
        bytes.storeBytes(of: blockByteCount.littleEndian, toByteOffset: 8, as: UInt32.self)
        bytes[12] = blockPageCount
        bytes[13] = slot
    }
}

// MARK: - One environment per process

/// The open environments of this process, by the directory's device and inode.
///
/// Opened and closed under one lock: LMDB forbids two at a time, even briefly.
private enum IndexEnvironments {
    private struct Entry {
        let environment: LMDBEnvironment
        var holderCount: Int
    }

    struct Key: Hashable {
        /// The directory's identity; nil: private, and distinguished by number.
        var identity: Identity?
        var number: UInt = 0
        let isReadOnly: Bool
    }

    private static let open = Mutex<[Key: Entry]>([:])
    /// Private environments have no name that could distinguish them.
    private static let privateCount = Atomic<UInt>(0)

    /// Opens an environment, or returns an open one; `release` must be called for each.
    static func open(
        _ directory: OpenDirectory, tables: [String], _ access: LMDBAccess
    ) throws -> (key: Key, environment: LMDBEnvironment) {
        let key = Key(
            identity: Identity(try directory.status()),
            isReadOnly: access == .readingWithoutLocks)
        let environment = try open.withLock { (entries) throws -> LMDBEnvironment in
            if let entry = entries[key] {
                entries[key]?.holderCount += 1
                return entry.environment
            }
            let environment = try LMDBEnvironment(directory, tables: tables, access)
            entries[key] = Entry(environment: environment, holderCount: 1)
            return environment
        }
        return (key, environment)
    }

    /// Opens an environment in unlinked files.
    ///
    /// - Parameter original: the environment to copy; nil to create an empty one.
    static func openPrivate(
        tables: [String], copyOf original: LMDBEnvironment? = nil
    ) throws -> (key: Key, environment: LMDBEnvironment) {
        let directory = try NamelessDirectory()
        let opened = try OpenDirectory(directory.path)
        let environment: LMDBEnvironment
        do {
            if let original {
                let file = try opened.open("data.mdb", O_RDWR | O_CREAT | O_EXCL, 0o600)
                defer { system_close(file) }
                try original.copy(to: file)
            }
            environment = try LMDBEnvironment(
                opened, tables: tables, .writing, temporaryPlace: directory.parent)
        } catch let error as LMDBError where error.isWrite {
            // The disk of $TMPDIR, not that of the store.
            throw FileError(
                call: FileError.makingTemporary, path: directory.parent, errno: error.code)
        }
        let number = privateCount.add(1, ordering: .relaxed).newValue
        let key = Key(number: number, isReadOnly: false)
        open.withLock { $0[key] = Entry(environment: environment, holderCount: 1) }
        return (key, environment)
    }

    /// Releases an environment; the last release closes it.
    static func release(_ key: Key) {
        open.withLock { entries in
            entries[key]?.holderCount -= 1
            if entries[key]?.holderCount == 0 { entries[key] = nil }
        }
    }
}
