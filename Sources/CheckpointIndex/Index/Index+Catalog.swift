import CheckpointFormat
package import GuestModel
import LMDBTables

extension Index {
    /// The catalog entry of a checkpoint; nil if there is none with that ID.
    package func entry(_ id: CheckpointID) throws -> CatalogEntry? {
        try environment.read { try entry(id, $0) }
    }

    func entry(
        _ id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> CatalogEntry? {
        try Index.withKey(id) { (key) throws(LMDBError) in
            try transaction.get(table(.checkpoints), key) { (value) throws(LMDBError) in
                try CatalogEntry(id: id, indexed: value)
            }
        }
    }

    static func withKey<T>(
        _ id: CheckpointID, _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> T
    ) throws(LMDBError) -> T {
        var words = id.digest.words
        let result = withUnsafeBytes(of: &words) { key in
            Result { () throws(LMDBError) in try body(key) }
        }
        return try result.get()
    }

    /// All checkpoints that exist, in order of publication.
    package func catalog() throws -> [CatalogEntry] {
        try catalog(CheckpointSelection())
    }

    /// All manifests in the packs, including those of forgotten checkpoints, in pack order.
    package func manifests() throws -> [CatalogEntry] {
        var entries = try environment.read { transaction in
            var entries: [CatalogEntry] = []
            try transaction.scan(table(.checkpoints), from: []) {
                (key, value) throws(LMDBError) in
                entries.append(try CatalogEntry(id: CheckpointID(indexed: key), indexed: value))
                return true
            }
            return entries
        }
        entries.sort {
            ($0.location.pack, $0.location.offset) < ($1.location.pack, $1.location.offset)
        }
        return entries
    }

    /// The newest checkpoint of a lineage.
    package func newest(lineage: String) throws -> CheckpointID? {
        try environment.read { try newest(of: lineage, in: .lineages, $0) }
    }

    /// The checkpoint with a label; the newest if several have it.
    package func labelled(_ label: String) throws -> CheckpointID? {
        try environment.read { try newest(of: label, in: .labels, $0) }
    }

    /// The names of lineages and of labels, at most `limit` of each.
    package func names(limit: Int) throws -> [String] {
        try environment.read { transaction in
            var found: [String] = []
            for names in [Table.lineages, .labels] {
                let end = found.count + limit
                try forEachName(in: names, transaction) { (name) throws(LMDBError) in
                    found.append(name)
                    return found.count < end
                }
            }
            return found
        }
    }

    /// Calls `body` with the distinct names in a table, until it returns false.
    private func forEachName(
        in names: Table, _ transaction: borrowing LMDBTxn,
        _ body: (String) throws(LMDBError) -> Bool
    ) throws(LMDBError) {
        var start: [UInt8] = []
        while true {
            var next: String?
            try transaction.scan(table(names), from: start) { (key, _) throws(LMDBError) in
                next = try NameKey.name(in: key)
                return false
            }
            guard let name = next, let end = NameKey.end(of: name), try body(name) else { return }
            start = end
        }
    }

    /// The names of all lineages with their newest checkpoints, in byte order.
    ///
    /// Reads one entry per lineage.
    package func lineages() throws -> [(name: String, newest: CheckpointID)] {
        let found = try environment.read { transaction in
            var found: [(name: String, newest: CheckpointID)] = []
            try forEachName(in: .lineages, transaction) { (name) throws(LMDBError) in
                guard let newest = try newest(of: name, in: .lineages, transaction) else {
                    throw .damagedValue("lineage")
                }
                found.append((name, newest))
                return true
            }
            return found
        }
        return found.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
    }

    /// IDs that begin with the given hexadecimal digits, at most `limit`.
    package func ids(prefix: String, limit: Int) throws -> [CheckpointID] {
        let digits = prefix.compactMap { $0.hexDigitValue }
        guard digits.count == prefix.utf8.count, !digits.isEmpty, digits.count <= 64 else {
            return []
        }
        let even = digits.count % 2 == 0 ? digits : digits + [0]
        let start = stride(from: 0, to: even.count, by: 2).map {
            UInt8(even[$0] * 16 + even[$0 + 1])
        }
        let wanted = prefix.lowercased()
        return try environment.read { transaction in
            var result: [CheckpointID] = []
            try transaction.scan(table(.checkpoints), from: start) {
                (key, value) throws(LMDBError) in
                let id = try CheckpointID(indexed: key)
                guard id.description.hasPrefix(wanted) else { return false }
                if try !CatalogEntry(id: id, indexed: value).isForgotten { result.append(id) }
                return result.count < limit
            }
            return result
        }
    }

    /// Adds one published checkpoint to the catalog, inside a write txn.
    func addToCatalog(
        _ transaction: borrowing LMDBTxn, _ id: CheckpointID, _ manifest: Manifest,
        at location: RecordLocation, isForgotten: Bool, forgetPack: UInt32
    ) throws {
        var order: UInt64 = 0
        try transaction.scanBackwards(table(.order), before: Index.orderEnd) {
            (key, _) throws(LMDBError) in
            order = try Index.order(in: key) + 1
            return false
        }
        let entry = CatalogEntry(
            id: id, manifest, at: location, order: order, isForgotten: isForgotten,
            forgetPack: forgetPack)
        try put(entry, transaction)
        if !isForgotten { try addToLists(entry, transaction) }
    }

    /// Adds a checkpoint to the lists and the name tables.
    func addToLists(
        _ entry: CatalogEntry, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try forEachKey(of: entry) { (table, key) throws(LMDBError) in
            try key.withUnsafeBytes { key in
                Result { () throws(LMDBError) in
                    try Index.withKey(entry.id) { (value) throws(LMDBError) in
                        try transaction.put(self.table(table), key, value)
                    }
                }
            }.get()
        }
    }

    /// Removes a checkpoint from the lists and the name tables.
    func removeFromLists(
        _ entry: CatalogEntry, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try forEachKey(of: entry) { (table, key) throws(LMDBError) in
            try key.withUnsafeBytes { key in
                Result { () throws(LMDBError) in
                    _ = try transaction.delete(self.table(table), key)
                }
            }.get()
        }
    }

    /// Calls `body` with the tables that list an existing checkpoint, and its key in each.
    private func forEachKey(
        of entry: CatalogEntry, _ body: (Table, [UInt8]) throws(LMDBError) -> Void
    ) throws(LMDBError) {
        try body(.order, Index.orderKey(entry.order))
        if let key = NameKey.key(entry.lineage, entry.order) { try body(.lineages, key) }
        if !entry.label.isEmpty, let key = NameKey.key(entry.label, entry.order) {
            try body(.labels, key)
        }
    }

    func put(
        _ entry: CatalogEntry, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        let value = entry.encoded
        try Index.withKey(entry.id) { (key) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.checkpoints), key, UnsafeRawBufferPointer(bytes))
            }
        }
    }

    static func withKey<T>(
        order: UInt64, _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> T
    ) throws(LMDBError) -> T {
        var bytes = order.bigEndian
        let result = withUnsafeBytes(of: &bytes) { key in
            Result { () throws(LMDBError) in try body(key) }
        }
        return try result.get()
    }
}

extension CheckpointID {
    /// Decodes a digest stored in the index.
    init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        guard bytes.count == PageDigest.byteCount else { throw .damagedValue("digest") }
        self.init(PageDigest(bytes: bytes))
    }
}
