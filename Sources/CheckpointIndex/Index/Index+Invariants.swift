import CheckpointFormat
import GuestModel
package import LMDBTables

// The relations between the tables of an index that counts references. They hold after every txn.
//
//   1. Each checkpoint that exists is in `order` under its order, and `order` lists no other.
//   2. Likewise in `lineages` under its lineage and its order.
//   3. Likewise in `labels`, if it has a label.
//   4. Each checkpoint in `checkpoints` was published by one of `transactions`, and each of those
//      published one of them.
//   5. A checkpoint in `pending` is in `checkpoints`, and was forgotten.
//   6. Each checkpoint that exists has owned frames. Otherwise only those have them that `pending`
//      says to have them, and the one that is being added.
//   7. `successors` has the predecessor of each checkpoint with owned frames, and no other pair.
//      The predecessor has owned frames itself.
//   8. The second checkpoint of each pair in `builders` is in `checkpoints`.
//   9. A page in `unreferenced` has a location, and is not in `references`.
//  10. A page in `references` has a location.
//  11. No page is in a pack that prune removed, and the pages of each run ascend.
//  12. Pages have as many references as there are pages in the frames that checkpoints own.
//
// All of them are checked in one pass over the tables, and the last one in one over the page maps.
// That uses bounded memory: tables are compared by looking up each entry of one in the other, and
// by the number of entries; references by their number and by the sum of the digests of the pages
// referred to, modulo 2^64, which differs if any page has another count.

/// A relation between tables that does not hold.
package struct BrokenRelation: Hashable, Sendable {
    /// Its number in the list.
    package let number: Int
    /// The first contradiction that was found: a clause.
    package let reason: String
}

extension Index {
    /// Checks the relations between its tables, in a snapshot; they are listed at the head of this
    /// file.
    ///
    /// - Parameter maps: reads the page maps for the last relation; nil to skip it.
    /// - Returns: the relations that do not hold.
    package func checkInvariants(
        maps: MapChainReader? = nil
    ) throws(IndexError) -> [BrokenRelation] {
        try environment.read { (txn) throws(IndexError) in
            var check = InvariantCheck(tables)
            try check.checkCatalog(txn)
            try check.checkOwnership(txn)
            let references = try check.checkPages(txn, index: self)
            // A checkpoint that is being added has only a part of its references.
            if var maps, !check.isAdding {
                try check.checkReferences(references, &maps, txn)
            }
            return check.broken.sorted { $0.key < $1.key }.map {
                BrokenRelation(number: $0.key, reason: $0.value)
            }
        }
    }
}

/// A number of pages, each as often as it is referred to, and the sum of their digests.
private struct PageSum: Equatable {
    var count: UInt64 = 0
    var digests: UInt64 = 0

    mutating func add(_ digest: PageDigest, count added: UInt64 = 1) {
        count &+= added
        digests &+= digest.words.0 &* added
    }

    mutating func remove(_ digest: PageDigest) {
        count &-= 1
        digests &-= digest.words.0
    }
}

/// A check in progress.
private struct InvariantCheck {
    private let tables: IndexTables
    /// The relations that do not hold.
    private(set) var broken: [Int: String] = [:]
    /// True if a checkpoint has owned frames that is not in the catalog yet.
    private(set) var isAdding = false

    init(_ tables: IndexTables) { self.tables = tables }

    private mutating func expect(
        _ number: Int, _ holds: Bool, _ reason: @autoclosure () -> String
    ) {
        if !holds, broken[number] == nil { broken[number] = reason() }
    }

    // MARK: - The catalog

    mutating func checkCatalog(_ txn: borrowing LMDBTxn) throws(IndexError) {
        var (listed, labelled) = (0, 0)
        var entries = try tables.checkpoints.entries(in: txn)
        while let (id, entry) = try entries.next() {
            if entry.isForgotten { continue }
            listed += 1
            let inOrder = try tables.order.value(for: CatalogOrder(entry.order), in: txn)
            expect(1, inOrder == id, "checkpoint \(id.short) is not at its place in the order")
            if let key = entry.lineageKey {
                let found = try tables.lineages.value(for: key, in: txn)
                expect(2, found == id, "checkpoint \(id.short) is not in its lineage")
            }
            if let key = entry.labelKey {
                labelled += 1
                let found = try tables.labels.value(for: key, in: txn)
                expect(3, found == id, "checkpoint \(id.short) is not under its label")
            }
            let hasFrames = try tables.ownedFrames.contains(id, in: txn)
            expect(6, hasFrames, "checkpoint \(id.short) has no owned frames")
        }
        let orderCount = try tables.order.count(in: txn)
        expect(1, orderCount == listed, "\(orderCount) checkpoints are in order, not \(listed)")
        let lineageCount = try tables.lineages.count(in: txn)
        expect(
            2, lineageCount == listed, "\(lineageCount) checkpoints are in lineages, not \(listed)")
        let labelCount = try tables.labels.count(in: txn)
        expect(3, labelCount == labelled, "there are \(labelCount) labels, not \(labelled)")
        try checkTransactions(txn)
        try checkPending(txn)
    }

    private mutating func checkTransactions(_ txn: borrowing LMDBTxn) throws(IndexError) {
        var entries = try tables.transactions.entries(in: txn)
        while let (key, id) = try entries.next() {
            let isKnown = try tables.checkpoints.contains(id, in: txn)
            expect(4, isKnown, "transaction \(key.number) published \(id.short), which is unknown")
        }
        let count = try tables.transactions.count(in: txn)
        let checkpointCount = try tables.checkpoints.count(in: txn)
        expect(
            4, count == checkpointCount,
            "there are \(count) transactions and \(checkpointCount) checkpoints")
    }

    private mutating func checkPending(_ txn: borrowing LMDBTxn) throws(IndexError) {
        var entries = try tables.pending.entries(in: txn)
        while let (id, pending) = try entries.next() {
            let entry = try tables.checkpoints.value(for: id, in: txn)
            expect(
                5, entry?.isForgotten ?? false,
                "checkpoint \(id.short) is to be pruned, and was not forgotten")
            guard pending == .hasOwnedFrames else { continue }
            let hasFrames = try tables.ownedFrames.contains(id, in: txn)
            expect(6, hasFrames, "checkpoint \(id.short), to be pruned, has no owned frames")
        }
    }

    // MARK: - Who owns what

    mutating func checkOwnership(_ txn: borrowing LMDBTxn) throws(IndexError) {
        let adding = try tables.state.adding.value(in: txn)?.id
        var linkCount = 0
        var entries = try tables.ownedFrames.entries(in: txn)
        while let (id, owned) = try entries.next() {
            if let entry = try tables.checkpoints.value(for: id, in: txn) {
                let pending = try tables.pending.value(for: id, in: txn)
                expect(
                    6, !entry.isForgotten || pending == .hasOwnedFrames,
                    "checkpoint \(id.short) was pruned, and has owned frames")
            } else {
                isAdding = true
                expect(6, id == adding, "checkpoint \(id.short) is unknown, and has owned frames")
            }
            guard let predecessor = owned.predecessor else { continue }
            linkCount += 1
            let pair = CheckpointPair(predecessor, id)
            let isLinked = try tables.successors.contains(pair, in: txn)
            expect(
                7, isLinked,
                "checkpoint \(id.short) is not a successor of its predecessor \(predecessor.short)")
            let hasFrames = try tables.ownedFrames.contains(predecessor, in: txn)
            expect(
                7, hasFrames,
                "checkpoint \(predecessor.short), which \(id.short) follows, has no owned frames")
        }
        let count = try tables.successors.count(in: txn)
        expect(7, count == linkCount, "there are \(count) successors, not \(linkCount)")
        var builders = try tables.builders.entries(in: txn)
        while let pair = try builders.nextKey() {
            let isKnown = try tables.checkpoints.contains(pair.second, in: txn)
            expect(
                8, isKnown,
                "checkpoint \(pair.second.short), based on \(pair.first.short), is unknown")
        }
    }

    // MARK: - Pages

    /// Checks the pages, and adds up the references to them.
    mutating func checkPages(
        _ txn: borrowing LMDBTxn, index: Index
    ) throws(IndexError) -> PageSum {
        let window = try index.recentWindow(txn)
        let pruned = try tables.state.pruned.value(in: txn) ?? PrunedRecord()
        var sum = PageSum()
        var pages = try tables.pages.entries(in: txn)
        while let (digest, location) = try pages.next() {
            sum.add(digest)
            expect(
                11, !pruned.contains(location.pack),
                "page \(digest) is in pack \(location.pack), which was removed")
        }
        try checkRuns(pruned, &sum, txn)
        var unreferenced = try tables.unreferenced.entries(in: txn)
        while let digest = try unreferenced.nextKey() {
            let location = try index.location(digest, in: window, txn)
            if location != nil { sum.remove(digest) }
            expect(9, location != nil, "unreferenced page \(digest) has no location")
            let isReferenced = try tables.references.contains(digest, in: txn)
            expect(9, !isReferenced, "page \(digest) has references and has none")
        }
        var references = try tables.references.entries(in: txn)
        while let (digest, more) = try references.next() {
            sum.add(digest, count: UInt64(more.count))
            let location = try index.location(digest, in: window, txn)
            expect(10, location != nil, "page \(digest) has references and no location")
        }
        return sum
    }

    private mutating func checkRuns(
        _ pruned: PrunedRecord, _ sum: inout PageSum, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        var runs = try tables.recent.entries(in: txn)
        while let (key, run) = try runs.next() {
            for position in 0..<run.count {
                let digest = run.digest(position)
                if position > 0 {
                    expect(
                        11, run.digest(position - 1).precedes(digest),
                        "the pages of run \(key.number) do not ascend")
                }
                guard let location = try run.location(position),
                    try !tables.pages.contains(digest, in: txn)
                else { continue }
                sum.add(digest)
                expect(
                    11, !pruned.contains(location.pack),
                    "page \(digest) is in pack \(location.pack), which was removed")
            }
        }
    }

    // MARK: - References

    /// Compares the references to pages with the pages that checkpoints own.
    mutating func checkReferences(
        _ references: PageSum, _ maps: inout MapChainReader, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        var owned = PageSum()
        var entries = try tables.ownedFrames.entries(in: txn)
        while let (id, frames) = try entries.next() {
            try maps.forEachPage(of: id, in: frames.frames) { (_, digest) throws(IndexError) in
                owned.add(digest)
            }
        }
        expect(
            12, owned.count == references.count,
            "pages have \(references.count) references, and checkpoints own \(owned.count)")
        expect(12, owned == references, "a page has more references than own it, another one fewer")
    }
}
