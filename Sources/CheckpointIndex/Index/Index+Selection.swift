import CheckpointFormat
import GuestModel
package import LMDBTables

// Lists of checkpoints, read from the end: the cost of a list depends on the length of its output.

extension Index {
    /// The checkpoints of a selection, in order of publication.
    ///
    /// Reads no more of them than it returns, unless the selection has times: then it reads those
    /// of the lineage before `before`, until there are enough.
    package func catalog(_ selection: CheckpointSelection) throws(IndexError) -> [CatalogEntry] {
        if let count = selection.newest, count <= 0 { return [] }
        return try environment.read { (txn) throws(IndexError) in
            var found: [CatalogEntry] = []
            var end = UInt64.max
            if let before = selection.before {
                guard let entry = try entry(before, txn), !entry.isForgotten else { return [] }
                end = entry.order
            }
            if let lineage = selection.lineage?.text {
                guard let key = NameKey(lineage, end) else { return [] }
                var entries = try tables.lineages.entriesBackwards(before: key, in: txn)
                while found.count != selection.newest, let (key, id) = try entries.next(),
                    key.isKey(of: lineage)
                {
                    let entry = try listed(id, order: key.order, lineage: lineage, txn)
                    if selection.includes(entry) { found.append(entry) }
                }
            } else {
                var entries = try tables.order.entriesBackwards(
                    before: CatalogOrder(end), in: txn)
                while found.count != selection.newest, let (key, id) = try entries.next() {
                    let entry = try listed(id, order: key.order, lineage: nil, txn)
                    if selection.includes(entry) { found.append(entry) }
                }
            }
            return found.reversed()
        }
    }

    /// A checkpoint that a list names.
    ///
    /// - Parameter lineage: the one that has it, if the list is that of a lineage.
    private func listed(
        _ id: CheckpointID, order: UInt64, lineage: String?, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> CatalogEntry {
        guard let entry = try entry(id, txn), !entry.isForgotten, entry.order == order,
            lineage.map({ NameForm.areSame(entry.lineage, $0) }) ?? true
        else { throw .damagedValue("list of checkpoints") }
        return entry
    }

    /// The newest checkpoint with a name.
    func newest(
        of name: String, in names: LMDBTable<NameKey, CheckpointID>, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> CheckpointID? {
        guard let end = NameKey.end(of: name) else { return nil }
        var entries = try names.entriesBackwards(before: end, in: txn)
        guard let (key, id) = try entries.next(), key.isKey(of: name) else { return nil }
        return id
    }
}

/// What the index counts, from one snapshot of it.
package struct IndexCounts: Sendable {
    /// The index's state (`LMDBTxn.moment`).
    package let moment: UInt64
    package fileprivate(set) var checkpointCount = 0
    // Of all checkpoints.
    package fileprivate(set) var pageCount = 0
    package fileprivate(set) var zeroPageCount = 0
    package fileprivate(set) var changedPageCount = 0
    /// Number of distinct pages stored.
    package fileprivate(set) var uniquePageCount = 0
    /// The numbers of all transactions that published a checkpoint, forgotten or not.
    package fileprivate(set) var transactions: Set<UInt64> = []

    fileprivate init(moment: UInt64) {
        self.moment = moment
    }
}

extension Index {
    /// Counts checkpoints, pages and transactions.
    package func counts() throws(IndexError) -> IndexCounts {
        try environment.read { (txn) throws(IndexError) in
            var counts = IndexCounts(moment: txn.moment)
            var checkpoints = try tables.checkpoints.entries(in: txn)
            while let (_, entry) = try checkpoints.next() {
                guard !entry.isForgotten else { continue }
                counts.checkpointCount += 1
                counts.pageCount += Int(entry.pageCount)
                counts.zeroPageCount += Int(entry.zeroPageCount)
                counts.changedPageCount += Int(entry.changedPageCount)
            }
            counts.uniquePageCount = try pageCount(txn)
            counts.transactions.reserveCapacity(try tables.transactions.count(in: txn))
            var transactions = try tables.transactions.entries(in: txn)
            while let key = try transactions.nextKey() { counts.transactions.insert(key.number) }
            return counts
        }
    }
}

extension CheckpointSelection {
    /// True if the time of a checkpoint is among the selected ones.
    fileprivate func includes(_ entry: CatalogEntry) -> Bool {
        includes(timeNanoseconds: entry.timeNanoseconds)
    }
}
