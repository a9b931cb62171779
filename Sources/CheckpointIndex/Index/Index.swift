package import CheckpointFormat
import Glibc
package import GuestModel
package import LMDBTables
package import PackStore
import Synchronization

// The derived index: the location of the page of each digest, and the catalog of checkpoints. It
// can be deleted while no process has it open; `IndexReplay` rebuilds it from the packs. It never
// refers to anything that is not published. The tables, with the types of their keys and values,
// are `IndexTables`; what must hold between them is in `Index+Invariants`.
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

        fileprivate static let names = allCases.map { "\($0)" }
    }

    static let version: UInt32 = 8

    /// Upper bound of orders and run numbers: their sums do not overflow.
    static let numberMax = UInt64(Int64.max)

    // The registry owns it, and closes it when the last index is released.
    package unowned let environment: LMDBEnvironment
    package let tables: IndexTables
    private let key: IndexEnvironments.Key
    /// What this process has read of the runs.
    package let recent = SortedRuns()
    /// A filter for absent pages; built by the writer.
    package let filter = WriterFilter()

    private init(_ opened: (key: IndexEnvironments.Key, environment: LMDBEnvironment)) {
        key = opened.key
        environment = opened.environment
        tables = IndexTables(opened.environment.tables)
    }

    deinit {
        IndexEnvironments.release(key)
    }

    /// Opens the index in a directory.
    static func open(
        in directory: OpenDirectory, _ access: LMDBAccess
    ) throws(IndexError) -> Index {
        Index(try IndexEnvironments.open(directory, tables: Table.names, access))
    }

    /// Opens the index in a directory of a repository's files.
    package static func open(
        _ files: any RepositoryFiles, _ access: LMDBAccess
    ) throws(IndexError) -> Index {
        try open(in: try IndexError.ofFiles(files.openDirectory(StoreDirectory.index)), access)
    }

    /// Fails if LMDB's files in a repository are of the wrong kind or another user's.
    package static func checkFiles(_ files: any RepositoryFiles) throws(FileError) {
        try LMDBEnvironment.checkFiles(try files.openDirectory(StoreDirectory.index))
    }

    /// Creates an index private to this process, which is removed with it.
    package static func makePrivate(repository: RepositoryID) throws(IndexError) -> Index {
        let index = Index(try IndexEnvironments.openPrivate(tables: Table.names))
        try index.reset(repository: repository)
        return index
    }

    /// Creates a private copy of a snapshot of this index.
    package func makePrivateCopy() throws(IndexError) -> Index {
        Index(try IndexEnvironments.openPrivate(tables: Table.names, copyOf: environment))
    }

    /// A table whatever its keys and values are.
    package func table(_ table: Table) -> LMDBTableID { environment.tables[table.rawValue] }

    // MARK: - Identity

    /// True if it belongs to the repository and has this version.
    package func isSound(repository: RepositoryID) throws(IndexError) -> Bool {
        try environment.read { (txn) throws(IndexError) in
            let owner = try tables.state.repository.value(in: txn)
            let version = try tables.state.version.value(in: txn)
            return owner == Index.stored(repository) && version == Index.storedVersion
        }
    }

    /// Empties it and assigns it to the repository: the first step of a rebuild.
    package func reset(repository: RepositoryID) throws(IndexError) {
        filter.clear()
        try environment.write { (txn) throws(IndexError) in
            for table in Table.allCases { try txn.clear(self.table(table)) }
            try tables.state.repository.set(Index.stored(repository), in: txn)
            try tables.state.version.set(Index.storedVersion, in: txn)
        }
    }

    private static func stored(_ repository: RepositoryID) -> [UInt8] {
        var id = ByteWriter()
        id.write(repository)
        return id.bytes
    }

    private static var storedVersion: [UInt8] {
        var version = ByteWriter()
        version.write(Index.version)
        return version.bytes
    }

    /// Writes it to the disk.
    package func sync() throws(IndexError) { try environment.sync() }

    /// The position up to which packs were read.
    package func readMark() throws(IndexError) -> ReadMark {
        try environment.read { (txn) throws(IndexError) in
            try tables.state.readMark.value(in: txn) ?? ReadMark(pack: 0, offset: 0)
        }
    }

    /// The highest transaction number seen.
    package func highestTransaction() throws(IndexError) -> UInt64 {
        try environment.read { (txn) throws(IndexError) in
            try tables.state.highestTransaction.value(in: txn)?.number ?? 0
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
    ) throws(IndexError) {
        let order = Index.keyOrder(digests.count) { digests[$0] }
        let found = try environment.read { (txn) throws(IndexError) in
            let window = try recentWindow(txn)
            return try locations(order, of: digests.count, { digests[$0] }, in: window, txn)
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
    package func pageCount() throws(IndexError) -> Int {
        try environment.read { (txn) throws(IndexError) in try pageCount(txn) }
    }

    func pageCount(_ txn: borrowing LMDBTxn) throws(IndexError) -> Int {
        try tables.pages.count(in: txn) + pagesInRuns(txn).count
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
    ) throws(IndexError) -> (key: Key, environment: LMDBEnvironment) {
        let key = Key(
            identity: Identity(try IndexError.ofFiles(directory.status())),
            isReadOnly: access == .readingWithoutLocks)
        let environment = try open.withLock {
            (entries) throws(IndexError) -> LMDBEnvironment in
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
    ) throws(IndexError) -> (key: Key, environment: LMDBEnvironment) {
        let directory = try IndexError.ofFiles(NamelessDirectory())
        let opened = try IndexError.ofFiles(OpenDirectory(directory.path))
        let environment: LMDBEnvironment
        do throws(IndexError) {
            if let original {
                let file = try IndexError.ofFiles(
                    opened.open("data.mdb", O_RDWR | O_CREAT | O_EXCL, 0o600))
                defer { system_close(file) }
                try original.copy(to: file)
            }
            environment = try LMDBEnvironment(
                opened, tables: tables, .writing, temporaryPlace: directory.parent)
        } catch {
            guard error.isWrite, case .call(_, let code) = error else { throw error }
            // The disk of $TMPDIR, not that of the store.
            throw .file(
                FileError(
                    .noTemporaryPlace, path: directory.parent, errno: code))
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
