package import CheckpointFormat
package import GuestModel
package import LMDBTables

// The reference count of a page:
//
//   its count in `references`, plus one if the index has a location for it and it is not in
//   `unreferenced`

extension Index {
    /// A page's reference count.
    func referenceCount(
        _ digest: PageDigest, in window: RecentWindow?, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> Int {
        let more = Int(try extraCount(digest, txn))
        guard try location(digest, in: window, txn) != nil else { return more }
        return try tables.unreferenced.contains(digest, in: txn) ? more : more + 1
    }

    /// Adds references to a page.
    func reference(
        _ digest: PageDigest, count: UInt32 = 1, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        let isFirst = try tables.unreferenced.remove(digest, in: txn)
        let added = count - (isFirst ? 1 : 0)
        guard added > 0 else { return }
        let sum = try extraCount(digest, txn).addingReportingOverflow(added)
        guard !sum.overflow else { throw .damagedValue("reference count") }
        try setExtraCount(sum.partialValue, digest, txn)
    }

    /// Removes one reference to a page.
    func dereference(
        _ digest: PageDigest, in window: RecentWindow?, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        let more = try extraCount(digest, txn)
        guard more == 0 else { return try setExtraCount(more - 1, digest, txn) }
        if try location(digest, in: window, txn) != nil {
            try tables.unreferenced.insert(digest, in: txn)
        }
    }

    /// Gives a location to a page without references.
    ///
    /// References that already existed remain.
    package func placeUnreferenced(
        _ digest: PageDigest, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        let more = try extraCount(digest, txn)
        if more > 0 {
            try setExtraCount(more - 1, digest, txn)
        } else {
            try tables.unreferenced.insert(digest, in: txn)
        }
    }

    private func extraCount(
        _ digest: PageDigest, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> UInt32 {
        try tables.references.value(for: digest, in: txn)?.count ?? 0
    }

    private func setExtraCount(
        _ count: UInt32, _ digest: PageDigest, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        if count > 0 {
            try tables.references.put(ReferenceCount(count), for: digest, in: txn)
        } else {
            try tables.references.remove(digest, in: txn)
        }
    }

    /// Pages without references, and their locations.
    package func unreferencedPages() throws(IndexError) -> [PageDigest: PageLocation] {
        try environment.read { (txn) throws(IndexError) in
            let window = try recentWindow(txn)
            var found: [PageDigest: PageLocation] = [:]
            var entries = try tables.unreferenced.entries(in: txn)
            while let digest = try entries.nextKey() {
                found[digest] = try location(digest, in: window, txn)
            }
            return found
        }
    }

    /// Of the given pages, those that would have no references left, and their locations.
    ///
    /// - Parameter changes: the changes of the pages' reference counts.
    package func pagesWithoutReferences(
        after changes: [PageDigest: Int]
    ) throws(IndexError) -> [PageDigest: PageLocation] {
        try environment.read { (txn) throws(IndexError) in
            let window = try recentWindow(txn)
            var found: [PageDigest: PageLocation] = [:]
            for (digest, change) in changes where change < 0 {
                let count = try referenceCount(digest, in: window, txn)
                guard count + change <= 0 else { continue }
                found[digest] = try location(digest, in: window, txn)
            }
            return found
        }
    }
}
