import CLMDB
import Glibc

/// A position in a table, and the direction in which it moves; must not outlive its txn.
package struct LMDBCursor: ~Copyable {
    private let cursor: OpaquePointer
    private let isAscending: Bool
    /// How to get the next entry.
    private var step: MDB_cursor_op
    /// The entry that `seek` found; nil once it was returned.
    private var found: (key: MDB_val, value: MDB_val)?
    private var isAtEnd = false

    /// Opens a cursor at the beginning of a table or, to move backwards, at its end.
    @usableFromInline
    package init(
        _ txn: borrowing LMDBTxn, _ table: LMDBTableID, isAscending: Bool
    ) throws(IndexError) {
        cursor = try txn.openCursor(table)
        self.isAscending = isAscending
        step = isAscending ? MDB_FIRST : MDB_LAST
    }

    deinit {
        mdb_cursor_close(cursor)
    }

    /// Moves to a key or the next greater one, which is returned next; to move backwards, the one
    /// before.
    @usableFromInline
    package mutating func seek(_ key: UnsafeRawBufferPointer) throws(IndexError) {
        var keyValue = LMDBTxn.value(key)
        var value = MDB_val()
        let code = mdb_cursor_get(cursor, &keyValue, &value, MDB_SET_RANGE)
        if isAscending {
            step = MDB_NEXT
            found = code == 0 ? (keyValue, value) : nil
            // A cursor that found nothing is at no entry, and would move to the first one.
            isAtEnd = code == MDB_NOTFOUND
        } else {
            step = code == MDB_NOTFOUND ? MDB_LAST : MDB_PREV
        }
        if code != MDB_NOTFOUND { try LMDBEnvironment.check(code, "mdb_cursor_get") }
    }

    /// The next entry; nil after the last one.
    @usableFromInline
    package mutating func next() throws(IndexError) -> (
        key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer
    )? {
        if let found {
            self.found = nil
            return try LMDBCursor.entry(found.key, found.value)
        }
        if isAtEnd { return nil }
        var key = MDB_val()
        var value = MDB_val()
        let code = mdb_cursor_get(cursor, &key, &value, step)
        step = isAscending ? MDB_NEXT : MDB_PREV
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_cursor_get")
        return try LMDBCursor.entry(key, value)
    }

    private static func entry(
        _ key: MDB_val, _ value: MDB_val
    ) throws(IndexError) -> (key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer) {
        let key = UnsafeRawBufferPointer(start: key.mv_data, count: key.mv_size)
        let stored = UnsafeRawBufferPointer(start: value.mv_data, count: value.mv_size)
        return (key, try SealedValue.open(stored, of: key))
    }

    /// The value of a key; nil if there is none.
    @usableFromInline
    package func find(_ key: UnsafeRawBufferPointer) throws(IndexError) -> UnsafeRawBufferPointer? {
        var keyValue = LMDBTxn.value(key)
        var found = MDB_val()
        let code = mdb_cursor_get(cursor, &keyValue, &found, MDB_SET)
        if code == MDB_NOTFOUND { return nil }
        try LMDBEnvironment.check(code, "mdb_cursor_get")
        let stored = UnsafeRawBufferPointer(start: found.mv_data, count: found.mv_size)
        return try SealedValue.open(stored, of: key)
    }

    /// Sets a key's value unless it has one.
    @usableFromInline
    package func insert(
        _ key: UnsafeRawBufferPointer, _ bytes: UnsafeRawBufferPointer
    ) throws(IndexError) {
        var keyValue = LMDBTxn.value(key)
        var value = MDB_val(mv_size: SealedValue.byteCount(of: bytes.count), mv_data: nil)
        let code = mdb_cursor_put(
            cursor, &keyValue, &value, UInt32(MDB_NOOVERWRITE | MDB_RESERVE))
        if code == MDB_KEYEXIST { return }
        try LMDBEnvironment.check(code, "mdb_cursor_put")
        SealedValue.seal(bytes, of: key, into: value.mv_data)
    }
}
