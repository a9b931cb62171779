import CheckpointFormat
import GuestModel
import LMDBTables

// Lists of checkpoints, read from the end: the cost of a list depends on the length of its output.

extension Index {
    /// The checkpoints of a selection, in order of publication.
    ///
    /// Reads no more of them than it returns, unless the selection has times: then it reads those
    /// of the lineage before `before`, until there are enough.
    package func catalog(_ selection: CheckpointSelection) throws -> [CatalogEntry] {
        if let count = selection.newest, count <= 0 { return [] }
        var found: [CatalogEntry] = []
        try environment.read { transaction in
            try forEachNewest(selection, transaction) { (entry) throws(LMDBError) in
                guard selection.includes(timeNanoseconds: entry.timeNanoseconds) else {
                    return true
                }
                found.append(entry)
                return found.count != selection.newest
            }
        }
        found.reverse()
        return found
    }

    /// Calls `body` with the checkpoints of a lineage, or all, before a given one, newest first,
    /// until it returns false.
    private func forEachNewest(
        _ selection: CheckpointSelection, _ transaction: borrowing LMDBTxn,
        _ body: (CatalogEntry) throws(LMDBError) -> Bool
    ) throws(LMDBError) {
        var end = UInt64.max
        if let before = selection.before {
            guard let entry = try entry(before, transaction), !entry.isForgotten else { return }
            end = entry.order
        }
        let lineage = selection.lineage?.text
        var bound = Index.orderKey(end)
        if let lineage {
            guard let key = NameKey.key(lineage, end) else { return }
            bound = key
        }
        let list = table(lineage == nil ? .order : .lineages)
        try transaction.scanBackwards(list, before: bound) { (key, value) throws(LMDBError) in
            if let lineage, !NameKey.isKey(key, of: lineage) { return false }
            let id = try CheckpointID(indexed: value)
            let order = try Index.order(in: key.suffix(8))
            guard let entry = try entry(id, transaction), !entry.isForgotten,
                entry.order == order, lineage == nil || NameForm.areSame(entry.lineage, lineage)
            else { throw .damagedValue("list of checkpoints") }
            return try body(entry)
        }
    }

    /// The newest checkpoint with a name.
    func newest(
        of name: String, in names: Table, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> CheckpointID? {
        guard let end = NameKey.end(of: name) else { return nil }
        var found: CheckpointID?
        try transaction.scanBackwards(table(names), before: end) { (key, value) throws(LMDBError) in
            if NameKey.isKey(key, of: name) { found = try CheckpointID(indexed: value) }
            return false
        }
        return found
    }

    /// A key that follows all keys of orders.
    static let orderEnd = orderKey(.max)

    static func orderKey(_ order: UInt64) -> [UInt8] {
        withUnsafeBytes(of: order.bigEndian) { Array($0) }
    }

    /// The order in a key, or at the end of one.
    static func order(
        in key: some Collection<UInt8>
    ) throws(LMDBError) -> UInt64 {
        guard key.count == 8 else { throw .damagedValue("order") }
        let order = key.reduce(0) { $0 << 8 | UInt64($1) }
        guard order < numberMax else { throw .damagedValue("order") }
        return order
    }

    /// The numbers of all transactions that published a checkpoint.
    package func publishedTransactions() throws -> Set<UInt64> {
        try environment.read { transaction in
            var found: Set<UInt64> = []
            found.reserveCapacity(try transaction.count(table(.transactions)))
            try transaction.scan(table(.transactions), from: []) { (key, _) throws(LMDBError) in
                guard key.count == 8 else { throw .damagedValue("transaction") }
                found.insert(UInt64(bigEndian: key.loadUnaligned(as: UInt64.self)))
                return true
            }
            return found
        }
    }
}
