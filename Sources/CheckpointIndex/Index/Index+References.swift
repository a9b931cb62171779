package import CheckpointFormat
package import GuestModel
package import LMDBTables

// The reference count of a page:
//
//   its count in `references`, plus one if the index has a location for it and it is not in
//   `unreferenced`

extension Index {
    package static func withKey<T>(
        _ digest: PageDigest, _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> T
    ) throws(LMDBError) -> T {
        try withKey(CheckpointID(digest), body)
    }

    /// A page's reference count.
    func referenceCount(
        _ digest: PageDigest, in window: RecentWindow?, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> Int {
        try Index.withKey(digest) { (key) throws(LMDBError) in
            let more = try extraCount(key, transaction)
            guard try location(digest, in: window, transaction) != nil else { return Int(more) }
            let isNobodys = try transaction.get(table(.unreferenced), key) { _ in true } ?? false
            return Int(more) + (isNobodys ? 0 : 1)
        }
    }

    /// Adds references to a page.
    func reference(
        _ digest: PageDigest, count: UInt32 = 1, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(digest) { (key) throws(LMDBError) in
            let isFirst = try transaction.delete(table(.unreferenced), key)
            let added = count - (isFirst ? 1 : 0)
            guard added > 0 else { return }
            let sum = try extraCount(key, transaction).addingReportingOverflow(added)
            guard !sum.overflow else { throw .damagedValue("reference count") }
            try setExtraCount(sum.partialValue, key, transaction)
        }
    }

    /// Removes one reference to a page.
    func dereference(
        _ digest: PageDigest, in window: RecentWindow?, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(digest) { (key) throws(LMDBError) in
            let more = try extraCount(key, transaction)
            guard more == 0 else { return try setExtraCount(more - 1, key, transaction) }
            if try location(digest, in: window, transaction) != nil { try note(key, transaction) }
        }
    }

    /// Gives a location to a page without references.
    ///
    /// References that already existed remain.
    package func placeUnreferenced(
        _ digest: PageDigest, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(digest) { (key) throws(LMDBError) in
            let more = try extraCount(key, transaction)
            if more > 0 {
                try setExtraCount(more - 1, key, transaction)
            } else {
                try note(key, transaction)
            }
        }
    }

    /// Records that a page has no reference.
    private func note(
        _ key: UnsafeRawBufferPointer, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try transaction.put(
            table(.unreferenced), key, UnsafeRawBufferPointer(start: nil, count: 0))
    }

    private func extraCount(
        _ key: UnsafeRawBufferPointer, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> UInt32 {
        try transaction.get(table(.references), key) { (bytes) throws(LMDBError) in
            guard bytes.count == 4 else { throw .damagedValue("reference count") }
            return UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self))
        } ?? 0
    }

    private func setExtraCount(
        _ count: UInt32, _ key: UnsafeRawBufferPointer, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        guard count > 0 else {
            _ = try transaction.delete(table(.references), key)
            return
        }
        var value = count.littleEndian
        let result = withUnsafeBytes(of: &value) { bytes in
            Result { () throws(LMDBError) in try transaction.put(table(.references), key, bytes) }
        }
        try result.get()
    }

    /// Pages without references, and their locations.
    package func unreferencedPages() throws -> [PageDigest: PageLocation] {
        try environment.read { transaction in
            let window = try recentWindow(transaction)
            var found: [PageDigest: PageLocation] = [:]
            try transaction.scan(table(.unreferenced), from: []) {
                (key, _) throws(LMDBError) in
                let digest = try CheckpointID(indexed: key).digest
                found[digest] = try location(digest, in: window, transaction)
                return true
            }
            return found
        }
    }

    /// Of the given pages, those that would have no references left, and their locations.
    ///
    /// - Parameter changes: the changes of the pages' reference counts.
    package func pagesWithoutReferences(
        after changes: [PageDigest: Int]
    ) throws -> [PageDigest: PageLocation] {
        try environment.read { transaction in
            let window = try recentWindow(transaction)
            var found: [PageDigest: PageLocation] = [:]
            for (digest, change) in changes where change < 0 {
                let count = try referenceCount(digest, in: window, transaction)
                guard count + change <= 0 else { continue }
                found[digest] = try location(digest, in: window, transaction)
            }
            return found
        }
    }
}
