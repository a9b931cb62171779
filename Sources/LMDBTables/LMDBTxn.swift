import CLMDB
import Glibc

/// A table of an open environment.
package struct LMDBTableID: Sendable {
    let handle: MDB_dbi
}

/// An LMDB transaction, called a txn; aborted when it is dropped.
package struct LMDBTxn: ~Copyable {
    private let handle: OpaquePointer
    private var isOpen = true

    init(handle: OpaquePointer) {
        self.handle = handle
    }

    deinit {
        if isOpen { mdb_txn_abort(handle) }
    }

    consuming func commit() throws(IndexError) {
        isOpen = false
        try LMDBEnvironment.check(mdb_txn_commit(handle), "mdb_txn_commit")
    }

    /// The value of a key, valid until the txn ends; nil if there is none.
    @usableFromInline
    package func find(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer, isChecked: Bool
    ) throws(IndexError) -> UnsafeRawBufferPointer? {
        var keyValue = LMDBTxn.value(key)
        var found = MDB_val()
        let code = mdb_get(handle, table.handle, &keyValue, &found)
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_get")
        let stored = UnsafeRawBufferPointer(start: found.mv_data, count: found.mv_size)
        return try SealedValue.open(stored, of: key, isChecked: isChecked)
    }

    /// Opens a cursor; it must be closed.
    func openCursor(_ table: LMDBTableID) throws(IndexError) -> OpaquePointer {
        var cursor: OpaquePointer?
        try LMDBEnvironment.check(mdb_cursor_open(handle, table.handle, &cursor), "mdb_cursor_open")
        guard let cursor else { throw .call("mdb_cursor_open", code: ENOMEM) }
        return cursor
    }

    /// Sets a key's value.
    @usableFromInline
    package func put(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer, _ bytes: UnsafeRawBufferPointer
    ) throws(IndexError) {
        var keyValue = LMDBTxn.value(key)
        var value = MDB_val(mv_size: SealedValue.byteCount(of: bytes.count), mv_data: nil)
        try LMDBEnvironment.check(
            mdb_put(handle, table.handle, &keyValue, &value, UInt32(MDB_RESERVE)), "mdb_put")
        SealedValue.seal(bytes, of: key, into: value.mv_data)
    }

    /// The ID of this snapshot of the index: it grows with each change.
    package var moment: UInt64 { UInt64(mdb_txn_id(handle)) }

    /// Removes a key; a missing one is not an error.
    ///
    /// - Returns: true if it existed.
    @usableFromInline
    package func delete(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer
    ) throws(IndexError) -> Bool {
        var keyValue = LMDBTxn.value(key)
        let code = mdb_del(handle, table.handle, &keyValue, nil)
        if code == MDB_NOTFOUND { return false }
        try LMDBEnvironment.check(code, "mdb_del")
        return true
    }

    /// Removes all keys of a table.
    package func clear(_ table: LMDBTableID) throws(IndexError) {
        try LMDBEnvironment.check(mdb_drop(handle, table.handle, 0), "mdb_drop")
    }

    /// Number of keys in a table.
    func count(_ table: LMDBTableID) throws(IndexError) -> Int {
        var status = MDB_stat()
        try LMDBEnvironment.check(mdb_stat(handle, table.handle, &status), "mdb_stat")
        return status.ms_entries
    }

    static func value(_ bytes: UnsafeRawBufferPointer) -> MDB_val {
        MDB_val(mv_size: bytes.count, mv_data: UnsafeMutableRawPointer(mutating: bytes.baseAddress))
    }
}
