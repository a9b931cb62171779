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

    consuming func commit() throws(LMDBError) {
        isOpen = false
        try LMDBEnvironment.check(mdb_txn_commit(handle), "mdb_txn_commit")
    }

    /// The value of a key, valid only inside `body`; nil if there is none.
    ///
    /// - Parameter isChecked: false to skip the checksum of a large value that was verified when it
    ///   was first read.
    @inlinable
    package func get<T>(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer, isChecked: Bool = true,
        _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> T
    ) throws(LMDBError) -> T? {
        guard let value = try find(table, key, isChecked: isChecked) else { return nil }
        return try body(value)
    }

    /// The value of a key, valid until the txn ends; nil if there is none.
    @usableFromInline
    package func find(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer, isChecked: Bool
    ) throws(LMDBError) -> UnsafeRawBufferPointer? {
        var keyValue = LMDBTxn.value(key)
        var found = MDB_val()
        let code = mdb_get(handle, table.handle, &keyValue, &found)
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_get")
        let stored = UnsafeRawBufferPointer(start: found.mv_data, count: found.mv_size)
        return try SealedValue.open(stored, of: key, isChecked: isChecked)
    }

    /// Calls `body` with a finder for looking up many keys, each value valid only inside it.
    ///
    /// Lookups in byte order of the keys are several times as fast as in any other: neighbours
    /// share a page.
    package func withFinder<T>(
        _ table: LMDBTableID, _ body: (borrowing LMDBFinder) throws(LMDBError) -> T
    ) throws(LMDBError) -> T {
        var cursor: OpaquePointer?
        try LMDBEnvironment.check(mdb_cursor_open(handle, table.handle, &cursor), "mdb_cursor_open")
        guard let cursor else { throw LMDBError(call: "mdb_cursor_open", code: ENOMEM) }
        return try body(LMDBFinder(cursor: cursor))
    }

    /// Sets a key's value.
    package func put(
        _ table: LMDBTableID, _ key: UnsafeRawBufferPointer, _ bytes: UnsafeRawBufferPointer
    ) throws(LMDBError) {
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
    @discardableResult
    package func delete(_ table: LMDBTableID, _ key: UnsafeRawBufferPointer) throws(LMDBError)
        -> Bool
    {
        var keyValue = LMDBTxn.value(key)
        let code = mdb_del(handle, table.handle, &keyValue, nil)
        if code == MDB_NOTFOUND { return false }
        try LMDBEnvironment.check(code, "mdb_del")
        return true
    }

    /// The greatest key of a table; nil if it is empty.
    package func lastKey(_ table: LMDBTableID) throws(LMDBError) -> [UInt8]? {
        var cursor: OpaquePointer?
        try LMDBEnvironment.check(mdb_cursor_open(handle, table.handle, &cursor), "mdb_cursor_open")
        defer { mdb_cursor_close(cursor) }
        var key = MDB_val()
        var value = MDB_val()
        let code = mdb_cursor_get(cursor, &key, &value, MDB_LAST)
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_cursor_get")
        return Array(UnsafeRawBufferPointer(start: key.mv_data, count: key.mv_size))
    }

    /// Removes all keys of a table.
    package func clear(_ table: LMDBTableID) throws(LMDBError) {
        try LMDBEnvironment.check(mdb_drop(handle, table.handle, 0), "mdb_drop")
    }

    /// Number of keys in a table.
    package func count(_ table: LMDBTableID) throws(LMDBError) -> Int {
        var status = MDB_stat()
        try LMDBEnvironment.check(mdb_stat(handle, table.handle, &status), "mdb_stat")
        return status.ms_entries
    }

    /// Calls `body` with keys from `start` on, in byte order, until it returns false.
    package func scan(
        _ table: LMDBTableID, from start: [UInt8],
        _ body: (
            _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer
        ) throws(LMDBError) -> Bool
    ) throws(LMDBError) {
        var cursor: OpaquePointer?
        try LMDBEnvironment.check(mdb_cursor_open(handle, table.handle, &cursor), "mdb_cursor_open")
        defer { mdb_cursor_close(cursor) }
        var key = MDB_val()
        var value = MDB_val()
        var code = start.withUnsafeBytes { bytes in
            key = LMDBTxn.value(bytes)
            return mdb_cursor_get(cursor, &key, &value, start.isEmpty ? MDB_FIRST : MDB_SET_RANGE)
        }
        while code == 0 {
            if try !LMDBTxn.passOn(key, value, body) { return }
            code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)
        }
        if code != MDB_NOTFOUND { throw LMDBError(call: "mdb_cursor_get", code: code) }
    }

    /// Calls `body` with keys before `end` in descending order, until it returns false.
    package func scanBackwards(
        _ table: LMDBTableID, before end: [UInt8],
        _ body: (
            _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer
        ) throws(LMDBError) -> Bool
    ) throws(LMDBError) {
        var cursor: OpaquePointer?
        try LMDBEnvironment.check(mdb_cursor_open(handle, table.handle, &cursor), "mdb_cursor_open")
        defer { mdb_cursor_close(cursor) }
        var key = MDB_val()
        var value = MDB_val()
        var code = end.withUnsafeBytes { bytes in
            key = LMDBTxn.value(bytes)
            return mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE)
        }
        let first = code == MDB_NOTFOUND ? MDB_LAST : MDB_PREV
        if code == 0 || code == MDB_NOTFOUND {
            code = mdb_cursor_get(cursor, &key, &value, first)
        }
        while code == 0 {
            if try !LMDBTxn.passOn(key, value, body) { return }
            code = mdb_cursor_get(cursor, &key, &value, MDB_PREV)
        }
        if code != MDB_NOTFOUND { throw LMDBError(call: "mdb_cursor_get", code: code) }
    }

    private static func passOn(
        _ key: MDB_val, _ value: MDB_val,
        _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) throws(LMDBError) -> Bool
    ) throws(LMDBError) -> Bool {
        let key = UnsafeRawBufferPointer(start: key.mv_data, count: key.mv_size)
        let stored = UnsafeRawBufferPointer(start: value.mv_data, count: value.mv_size)
        return try body(key, try SealedValue.open(stored, of: key))
    }

    static func value(_ bytes: UnsafeRawBufferPointer) -> MDB_val {
        MDB_val(mv_size: bytes.count, mv_data: UnsafeMutableRawPointer(mutating: bytes.baseAddress))
    }
}
