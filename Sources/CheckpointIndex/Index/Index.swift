package import CheckpointFormat
import Glibc
package import GuestModel
package import LMDBTables
package import PackStore
import Synchronization

// The derived index: where each digest's page lies, and the catalog of checkpoints. It can be
// deleted while nobody has it open; `IndexReplay` makes it from the packs. It never points at
// anything that is not published.
//
//   table        key                        value
//   pages        digest, 32 bytes           location: pack u32, block offset u32, block bytes u32,
//                                           block pages u8, slot u8
//   recent       run's number u64,          digest and location of each page that came lately, in
//                big-endian                 the order of digests (`Index+Recent`)
//   checkpoints  id, 32 bytes               what lists need of it (`CatalogEntry`): pack u32,
//                                           offset u32 of the manifest, order u64; u8: 1 if it was
//                                           forgotten: then it has no order and no name; packs u32
//                                           of the record that forgets it and of the one that gave
//                                           it its label, or 0; time i64; pages, zero pages and
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
//                "adding"                   id, u64: a checkpoint that is added in several steps,
//                                           and how many of its pages were
//                "drain"                    run's number u64, place in the order of digests u64,
//                                           pages u64: how far runs went to the table of pages
//                "open"                     pack u32, bytes u32: what pages took that were dropped
//                                           while it was open
//
// And what prune asks, so that it need not look through the repository (`OwnedFrames`):
//
//   ownedFrames  id                         predecessor's id or zeros, then the frames as runs
//   successors   predecessor's id, id       nothing
//   references   digest                     u32: references beyond the first
//   unreferenced digest                     nothing: a page that no checkpoint has
//   builders     id, id of a checkpoint     nothing
//                whose map builds on its
//   transactions number u64, big-endian     id
//   pending      id of a forgotten one      u8: 0 while it owns frames; 1 if its manifest was about
//                                           to go: then transaction u64, map ancestor's id
//   packs        pack u32, big-endian       bytes u32, unused bytes u32, when prune last looked
//   candidates   pack u32, big-endian       u64: since then something in it may be unused
//   sizes        pack u32, big-endian       u32: bytes of a sealed pack (`Index+PackSizes`)
//
// Each value has a checksum besides (`SealedValue`).

/// How far into the packs the index has read.
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

    /// Orders and numbers of runs are at most this: sums of them do not overflow.
    static let numberMax = UInt64(Int64.max)

    // The register keeps it, and closes it when the last index is released.
    package unowned let environment: LMDBEnvironment
    private let key: IndexEnvironments.Key
    /// What this process has read of the runs.
    package let recent = SortedRuns()
    /// What the table of pages does not hold; made by whoever writes.
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
    /// Throws `LMDBError`, or `FileError` if one of its files is not what LMDB made.
    static func open(in directory: OpenDirectory, _ access: LMDBAccess) throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        return Index(
            try IndexEnvironments.open(directory, tables: names, access))
    }

    /// Opens the index in a directory of a repository's files.
    package static func open(_ files: any RepositoryFiles, _ access: LMDBAccess) throws -> Index {
        try open(in: try files.openDirectory(StoreDirectory.index), access)
    }

    /// Fails if LMDB's files in a directory of a repository's files are odd or another user's.
    package static func checkFiles(_ files: any RepositoryFiles) throws(FileError) {
        try LMDBEnvironment.checkFiles(try files.openDirectory(StoreDirectory.index))
    }

    /// Makes an index of this process alone, which goes with it.
    package static func makePrivate(repository: RepositoryID) throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        let index = Index(try IndexEnvironments.openPrivate(tables: names))
        try index.reset(repository: repository)
        return index
    }

    /// Makes a copy of this process alone, as it is at one moment.
    package func makePrivateCopy() throws -> Index {
        let names = Table.allCases.map { "\($0)" }
        return Index(try IndexEnvironments.openPrivate(tables: names, copyOf: environment))
    }

    package func table(_ table: Table) -> LMDBTableID { environment.tables[table.rawValue] }

    // MARK: - What it is

    /// True if it belongs to the repository and is of this version.
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

    /// Empties it and stamps it for the repository: the first step of a rebuild.
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

    /// Brings it to the disk.
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

    /// How far packs were read.
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
            // Records have no such number (`TransactionNumbers`).
            guard TransactionNumbers.hasRoom(after: number) else {
                throw LMDBError.damagedValue("highest transaction")
            }
            return number
        }
    }
}

// MARK: - Pages

extension Index {
    /// Where pages lie, for a batch of digests: one moment of the index, results in order.
    ///
    /// Looked up in the order of digests: thousands at a time cost a fraction of as many alone.
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

    /// Positions in the order of their digests, which are keys: neighbours share a page of LMDB.
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

    /// How many different pages are stored.
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

// MARK: - One environment a process

/// The open environments of this process, by the directory's device and inode.
///
/// Opened and closed under one lock: LMDB forbids two at a time, even for moments.
private enum IndexEnvironments {
    private struct Entry {
        let environment: LMDBEnvironment
        var holderCount: Int
    }

    struct Key: Hashable {
        /// Of the directory; nil: private, and told apart by its number.
        var identity: Identity?
        var number: UInt = 0
        let isReadOnly: Bool
    }

    private static let open = Mutex<[Key: Entry]>([:])
    /// Private environments have no name to tell them apart by.
    private static let privateCount = Atomic<UInt>(0)

    /// Opens an environment, or finds it open; `release` gives it back.
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

    /// Opens an environment in files that have no name any more.
    ///
    /// - Parameter original: what they are a copy of; nil: they are new.
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

    /// Gives an environment back; the last holder closes it.
    static func release(_ key: Key) {
        open.withLock { entries in
            entries[key]?.holderCount -= 1
            if entries[key]?.holderCount == 0 { entries[key] = nil }
        }
    }
}
