import CheckpointFormat
import GuestModel
package import LMDBTables

// The relations between the tables of an index that counts references. They hold after every txn,
// and messages of `verify` name them by these numbers. A checkpoint exists if it is in
// `checkpoints` and was not forgotten.
//
//   1. `order` has each checkpoint that exists, under its number in the order, and no other.
//   2. `lineages` has each checkpoint that exists, under its lineage and its number in the order,
//      and no other.
//   3. `labels` has each checkpoint that exists and has a label, under its label, and no other.
//   4. `transactions` has the transaction that published each checkpoint in `checkpoints`, and no
//      other.
//   5. Each checkpoint in `pending` is in `checkpoints` and was forgotten.
//   6. `ownedFrames` has each checkpoint that exists, those of which `pending` says that they have
//      owned frames, the checkpoint that is being added, and no other.
//   7. `successors` has the predecessor of each checkpoint in `ownedFrames`, and no other pair. The
//      predecessor is in `ownedFrames` too.
//   8. The second checkpoint of each pair in `builders` is in `checkpoints`.
//   9. Each page in `unreferenced` has a location and is not in `references`.
//  10. Each page in `references` has a location.
//  11. No page has a location in a pack that prune removed. The pages of each sorted run ascend.
//  12. The number of references to each page is the number of owned frames that have it.
//
// Relations 1 to 11 are checked in one pass over the tables, and relation 12 in one pass over the
// page maps. The memory that this needs does not grow with the tables: two tables are compared by
// looking up each entry of one in the other, and by their numbers of entries. References are
// compared by their number and by the sum, modulo 2^64, of the first words of the digests of the
// pages to which they refer. If any page has another number of references, the sums almost
// certainly differ.

/// A relation between tables that does not hold.
package struct BrokenRelation: Hashable, Sendable {
    /// The number of the relation in the list at the head of this file.
    package let number: Int
    /// The first contradiction that was found, as a clause.
    package let reason: String
}

extension Index {
    /// Checks the relations that are listed at the head of this file, in one snapshot.
    ///
    /// Reads every table, and every page map if `maps` is given. Relation 12 is not checked while a
    /// checkpoint is being added.
    ///
    /// - Parameter maps: reads the page maps for relation 12; nil to leave that out.
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

/// A number of references to pages, and the sum of the first words of those pages' digests.
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
    /// True if a checkpoint that is not in the catalog yet has owned frames.
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

    /// Checks the pages, and returns the sum of the references to them.
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
