package import CheckpointFormat
import GuestModel

extension Index {
    /// Where a checkpoint's manifest lies; nil if there is none of that id.
    package func entry(_ id: CheckpointID) throws -> CatalogEntry? {
        try environment.read { try entry(id, $0) }
    }

    func entry(
        _ id: CheckpointID, _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) -> CatalogEntry? {
        try Index.withKey(id) { (key) throws(LMDBError) in
            try transaction.get(table(.checkpoints), key) { (value) throws(LMDBError) in
                try CatalogEntry(id: id, value)
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

    /// All checkpoints that exist, in the order of publication.
    package func catalog() throws -> [CatalogEntry] {
        try environment.read { transaction in
            try order(transaction).map { id in
                guard let entry = try entry(id, transaction) else {
                    throw LMDBError(call: "catalog", code: LMDBError.damaged)
                }
                return entry
            }
        }
    }

    func order(_ transaction: borrowing LMDBTransaction) throws(LMDBError) -> [CheckpointID] {
        var ids: [CheckpointID] = []
        try transaction.scan(table(.order), from: []) { (_, value) throws(LMDBError) in
            ids.append(try CheckpointID(indexed: value))
            return true
        }
        return ids
    }

    /// All manifests in the packs, also of forgotten checkpoints, in the order of the packs.
    package func manifests() throws -> [CatalogEntry] {
        var entries = try environment.read { transaction in
            var entries: [CatalogEntry] = []
            try transaction.scan(table(.checkpoints), from: []) {
                (key, value) throws(LMDBError) in
                entries.append(try CatalogEntry(id: CheckpointID(indexed: key), value))
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
        try id(named: lineage, in: .lineages)
    }

    /// The checkpoint with a label; the newest if several were given it.
    package func labelled(_ label: String) throws -> CheckpointID? {
        try id(named: label, in: .labels)
    }

    /// The names of lineages and of labels, so many of each at most.
    func names(limit: Int) throws -> [String] {
        try environment.read { transaction in
            var result: [String] = []
            for names in [Table.lineages, .labels] {
                let end = result.count + limit
                try transaction.scan(table(names), from: []) { (key, _) throws(LMDBError) in
                    result.append(String(decoding: key, as: UTF8.self))
                    return result.count < end
                }
            }
            return result
        }
    }

    private func id(named name: String, in names: Table) throws -> CheckpointID? {
        // LMDB takes no other keys, and calls them damage.
        guard NameForm.isName(name) else { return nil }
        return try environment.read { transaction in
            try Index.withKey(name) { (key) throws(LMDBError) in
                try transaction.get(table(names), key, CheckpointID.init(indexed:))
            }
        }
    }

    /// The names of all lineages with their newest checkpoints, in byte order.
    package func lineages() throws -> [(name: String, newest: CheckpointID)] {
        try environment.read { transaction in
            var result: [(name: String, newest: CheckpointID)] = []
            try transaction.scan(table(.lineages), from: []) {
                (key, value) throws(LMDBError) in
                result.append(
                    (String(decoding: key, as: UTF8.self), try CheckpointID(indexed: value)))
                return true
            }
            return result
        }
    }

    /// Ids that begin with hexadecimal digits; stops at `limit`.
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
                if try !CatalogEntry(id: id, value).isForgotten { result.append(id) }
                return result.count < limit
            }
            return result
        }
    }

    /// Adds one published checkpoint to the catalog, inside a write transaction.
    func addToCatalog(
        _ transaction: borrowing LMDBTransaction, _ id: CheckpointID, _ manifest: Manifest,
        at location: RecordLocation, isForgotten: Bool, forgetPack: UInt32
    ) throws {
        var order: UInt64 = 0
        if let last = try transaction.lastKey(table(.order)) {
            order = last.reduce(0) { $0 << 8 | UInt64($1) } + 1
        }
        let entry = CatalogEntry(
            id: id, location: location, order: order, isForgotten: isForgotten,
            forgetPack: forgetPack)
        try put(entry, transaction)
        if isForgotten { return }
        try Index.withKey(id) { (digest) throws(LMDBError) in
            try Index.withKey(order: order) { (key) throws(LMDBError) in
                try transaction.put(table(.order), key, digest)
            }
            try setName(manifest.lineage, in: .lineages, digest, transaction)
            if !manifest.label.isEmpty {
                try setName(manifest.label, in: .labels, digest, transaction)
            }
        }
    }

    func put(
        _ entry: CatalogEntry, _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) {
        let value = entry.encoded
        try Index.withKey(entry.id) { (key) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.checkpoints), key, UnsafeRawBufferPointer(bytes))
            }
        }
    }

    func setName(
        _ name: String, in names: Table, _ digest: UnsafeRawBufferPointer,
        _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) {
        try Index.withKey(name) { (key) throws(LMDBError) in
            try transaction.put(table(names), key, digest)
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

/// What the index knows of one manifest.
package struct CatalogEntry: Hashable, Sendable {
    package let id: CheckpointID
    package let location: RecordLocation
    let order: UInt64
    /// True if the checkpoint was forgotten, and its manifest is still in the packs.
    package let isForgotten: Bool
    /// The pack of the record that says so; 0 if it is not forgotten.
    let forgetPack: UInt32

    init(
        id: CheckpointID, location: RecordLocation, order: UInt64, isForgotten: Bool,
        forgetPack: UInt32 = 0
    ) {
        self.id = id
        self.location = location
        self.order = order
        self.isForgotten = isForgotten
        self.forgetPack = forgetPack
    }

    fileprivate init(id: CheckpointID, _ bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        guard bytes.count == 21 else { throw .damagedValue("catalog entry") }
        func number<T: FixedWidthInteger>(_ offset: Int) -> T {
            T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        self.init(
            id: id, location: RecordLocation(pack: number(0), offset: number(4)),
            order: number(8), isForgotten: bytes[16] != 0, forgetPack: number(17))
    }

    fileprivate var encoded: [UInt8] {
        var value = ByteWriter(reserving: 21)
        value.write(location.pack)
        value.write(location.offset)
        value.write(order)
        value.write(UInt8(isForgotten ? 1 : 0))
        value.write(forgetPack)
        return value.bytes
    }
}

extension CheckpointID {
    /// A digest as it lies in the index.
    init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        guard bytes.count == PageDigest.byteCount else { throw .damagedValue("digest") }
        self.init(PageDigest(bytes: bytes))
    }
}
