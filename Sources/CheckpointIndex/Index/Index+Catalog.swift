import CheckpointFormat
package import GuestModel
package import LMDBTables

extension Index {
    /// The catalog entry of a checkpoint; nil if there is none with that ID.
    package func entry(_ id: CheckpointID) throws(IndexError) -> CatalogEntry? {
        try environment.read { (txn) throws(IndexError) in try entry(id, txn) }
    }

    func entry(
        _ id: CheckpointID, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> CatalogEntry? {
        try tables.checkpoints.value(for: id, in: txn)
    }

    /// All checkpoints that exist, in order of publication.
    package func catalog() throws(IndexError) -> [CatalogEntry] {
        try catalog(CheckpointSelection())
    }

    /// All manifests in the packs, including those of forgotten checkpoints, in pack order.
    package func manifests() throws(IndexError) -> [CatalogEntry] {
        var entries = try environment.read { (txn) throws(IndexError) in
            var found: [CatalogEntry] = []
            var entries = try tables.checkpoints.entries(in: txn)
            while let (_, entry) = try entries.next() { found.append(entry) }
            return found
        }
        entries.sort {
            ($0.location.pack, $0.location.offset) < ($1.location.pack, $1.location.offset)
        }
        return entries
    }

    /// The newest checkpoint of a lineage.
    package func newest(lineage: String) throws(IndexError) -> CheckpointID? {
        try environment.read { (txn) throws(IndexError) in
            try newest(of: lineage, in: tables.lineages, txn)
        }
    }

    /// The checkpoint with a label; the newest if several have it.
    package func labelled(_ label: String) throws(IndexError) -> CheckpointID? {
        try environment.read { (txn) throws(IndexError) in
            try newest(of: label, in: tables.labels, txn)
        }
    }

    /// The names of lineages and of labels, at most `limit` of each.
    package func names(limit: Int) throws(IndexError) -> [String] {
        try environment.read { (txn) throws(IndexError) in
            try names(in: tables.lineages, limit: limit, txn)
                + names(in: tables.labels, limit: limit, txn)
        }
    }

    /// The distinct names in a table, at most `limit`.
    ///
    /// Reads one entry per name.
    private func names(
        in names: LMDBTable<NameKey, CheckpointID>, limit: Int = .max, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> [String] {
        var found: [String] = []
        var start: NameKey?
        while found.count < limit {
            var keys = try names.entries(from: start, in: txn)
            guard let key = try keys.nextKey(), let end = NameKey.end(of: key.name) else { break }
            found.append(key.name)
            start = end
        }
        return found
    }

    /// The names of all lineages with their newest checkpoints, in byte order.
    ///
    /// Reads one entry per lineage.
    package func lineages() throws(IndexError) -> [(name: String, newest: CheckpointID)] {
        let found = try environment.read { (txn) throws(IndexError) in
            var found: [(name: String, newest: CheckpointID)] = []
            for name in try names(in: tables.lineages, txn) {
                guard let newest = try newest(of: name, in: tables.lineages, txn) else {
                    throw .damagedValue("lineage")
                }
                found.append((name, newest))
            }
            return found
        }
        return found.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
    }

    /// IDs that begin with the given hexadecimal digits, at most `limit`.
    package func ids(prefix: String, limit: Int) throws(IndexError) -> [CheckpointID] {
        let digits = prefix.compactMap { $0.hexDigitValue }
        guard digits.count == prefix.utf8.count, !digits.isEmpty, digits.count <= 64 else {
            return []
        }
        let padded = digits + Array(repeating: 0, count: 2 * PageDigest.byteCount - digits.count)
        let first = CheckpointID(
            PageDigest(
                bytes: stride(from: 0, to: padded.count, by: 2).map {
                    UInt8(padded[$0] * 16 + padded[$0 + 1])
                }))
        let wanted = prefix.lowercased()
        return try environment.read { (txn) throws(IndexError) in
            var result: [CheckpointID] = []
            var entries = try tables.checkpoints.entries(from: first, in: txn)
            while result.count < limit, let (id, entry) = try entries.next(),
                id.description.hasPrefix(wanted)
            {
                if !entry.isForgotten { result.append(id) }
            }
            return result
        }
    }

    /// Adds one published checkpoint to the catalog, inside a write txn.
    func addToCatalog(
        _ id: CheckpointID, _ manifest: Manifest, at location: RecordLocation, isForgotten: Bool,
        forgetPack: UInt32, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        let last = try tables.order.lastKey(in: txn)
        let entry = CatalogEntry(
            id: id, manifest, at: location, order: last.map { $0.order + 1 } ?? 0,
            isForgotten: isForgotten, forgetPack: forgetPack)
        try put(entry, txn)
        if !isForgotten { try addToLists(entry, txn) }
    }

    /// Adds a checkpoint to the lists and the name tables.
    func addToLists(_ entry: CatalogEntry, _ txn: borrowing LMDBTxn) throws(IndexError) {
        try tables.order.put(entry.id, for: CatalogOrder(entry.order), in: txn)
        if let key = entry.lineageKey { try tables.lineages.put(entry.id, for: key, in: txn) }
        if let key = entry.labelKey { try tables.labels.put(entry.id, for: key, in: txn) }
    }

    /// Removes a checkpoint from the lists and the name tables.
    func removeFromLists(_ entry: CatalogEntry, _ txn: borrowing LMDBTxn) throws(IndexError) {
        try tables.order.remove(CatalogOrder(entry.order), in: txn)
        if let key = entry.lineageKey { try tables.lineages.remove(key, in: txn) }
        if let key = entry.labelKey { try tables.labels.remove(key, in: txn) }
    }

    func put(_ entry: CatalogEntry, _ txn: borrowing LMDBTxn) throws(IndexError) {
        try tables.checkpoints.put(entry, for: entry.id, in: txn)
    }
}

extension CatalogEntry {
    /// Its key in the table of lineages.
    var lineageKey: NameKey? { NameKey(lineage, order) }

    /// Its key in the table of labels; nil if it has none.
    var labelKey: NameKey? { label.isEmpty ? nil : NameKey(label, order) }
}
