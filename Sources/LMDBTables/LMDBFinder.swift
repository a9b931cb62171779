import CLMDB

/// Looks up values in a table, and inserts some, starting from the position of the last operation.
package struct LMDBFinder: ~Copyable {
    private let cursor: OpaquePointer

    /// - Parameter cursor: an open cursor, which this closes.
    init(cursor: OpaquePointer) {
        self.cursor = cursor
    }

    deinit {
        mdb_cursor_close(cursor)
    }

    /// Returns the value of a key; nil if there is none.
    package func value(of key: UnsafeRawBufferPointer) throws(LMDBError) -> UnsafeRawBufferPointer?
    {
        var keyValue = LMDBTxn.value(key)
        var found = MDB_val()
        let code = mdb_cursor_get(cursor, &keyValue, &found, MDB_SET)
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_cursor_get")
        let stored = UnsafeRawBufferPointer(start: found.mv_data, count: found.mv_size)
        return try SealedValue.open(stored, of: key)
    }

    /// Sets a key's value unless it has one.
    package func insert(
        _ key: UnsafeRawBufferPointer, _ bytes: UnsafeRawBufferPointer
    ) throws(LMDBError) {
        var keyValue = LMDBTxn.value(key)
        var value = MDB_val(mv_size: SealedValue.byteCount(of: bytes.count), mv_data: nil)
        let code = mdb_cursor_put(
            cursor, &keyValue, &value, UInt32(MDB_NOOVERWRITE | MDB_RESERVE))
        if code == MDB_KEYEXIST { return }
        try LMDBEnvironment.check(code, "mdb_cursor_put")
        SealedValue.seal(bytes, of: key, into: value.mv_data)
    }
}
