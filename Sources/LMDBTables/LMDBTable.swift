// The index's tables are typed: a table states what its keys and values are, and codecs turn these
// to bytes and back. Small codecs write to the stack: no call allocates for a key.
//
// All of it is inlinable, so that it is compiled for the types of each table; the calls of LMDB
// themselves are not generic (`LMDBTxn`).

/// The key of a table; the table is in the order of the keys' bytes.
package protocol TableKey {
    /// Decodes a key.
    init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError)

    /// Calls `body` with the key's bytes.
    func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T
}

/// The value of a table.
package protocol TableValue {
    /// Decodes a value; a view of its bytes is valid until the txn ends or writes.
    ///
    /// - Parameter key: the bytes of its key.
    init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError)

    /// Calls `body` with the value's bytes.
    func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T
}

/// A table of an open environment.
package struct LMDBTable<Key: TableKey, Value: TableValue>: Sendable {
    package let id: LMDBTableID

    @inlinable
    package init(_ id: LMDBTableID) { self.id = id }

    /// The value of a key; nil if there is none.
    ///
    /// - Parameter isChecked: false to skip the checksum of a large value that was verified when it
    ///   was first read.
    @inlinable
    package func value(
        for key: Key, in txn: borrowing LMDBTxn, isChecked: Bool = true
    ) throws(IndexError) -> Value? {
        try key.withBytes { (key) throws(IndexError) -> Value? in
            guard let found = try txn.find(id, key, isChecked: isChecked) else { return nil }
            return try Value(indexed: found, of: key)
        }
    }

    /// True if a key has a value.
    @inlinable
    package func contains(_ key: Key, in txn: borrowing LMDBTxn) throws(IndexError) -> Bool {
        try key.withBytes { (key) throws(IndexError) in
            try txn.find(id, key, isChecked: true) != nil
        }
    }

    /// Sets a key's value.
    @inlinable
    package func put(
        _ value: Value, for key: Key, in txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try key.withBytes { (key) throws(IndexError) in
            try value.withBytes { (value) throws(IndexError) in try txn.put(id, key, value) }
        }
    }

    /// Removes a key; a missing one is not an error.
    ///
    /// - Returns: true if it existed.
    @inlinable @discardableResult
    package func remove(_ key: Key, in txn: borrowing LMDBTxn) throws(IndexError) -> Bool {
        try key.withBytes { (key) throws(IndexError) in try txn.delete(id, key) }
    }

    /// Number of keys.
    package func count(in txn: borrowing LMDBTxn) throws(IndexError) -> Int {
        try txn.count(id)
    }

    /// The greatest key; nil if the table is empty.
    @inlinable
    package func lastKey(in txn: borrowing LMDBTxn) throws(IndexError) -> Key? {
        var entries = LMDBEntries<Key, Value>(try LMDBCursor(txn, id, isAscending: false))
        return try entries.nextKey()
    }

    /// The entries from a key on, in the order of the keys.
    ///
    /// - Parameter start: nil: the least key.
    @inlinable
    package func entries(
        from start: Key? = nil, in txn: borrowing LMDBTxn
    ) throws(IndexError) -> LMDBEntries<Key, Value> {
        var cursor = try LMDBCursor(txn, id, isAscending: true)
        try start?.withBytes { (key) throws(IndexError) in try cursor.seek(key) }
        return LMDBEntries(cursor)
    }

    /// The entries before a key, in descending order of the keys.
    @inlinable
    package func entriesBackwards(
        before end: Key, in txn: borrowing LMDBTxn
    ) throws(IndexError) -> LMDBEntries<Key, Value> {
        var cursor = try LMDBCursor(txn, id, isAscending: false)
        try end.withBytes { (key) throws(IndexError) in try cursor.seek(key) }
        return LMDBEntries(cursor)
    }

    /// A finder for looking up many keys.
    @inlinable
    package func finder(
        in txn: borrowing LMDBTxn
    ) throws(IndexError) -> LMDBFinder<Key, Value> {
        LMDBFinder(try LMDBCursor(txn, id, isAscending: true))
    }
}

/// Entries of a table, one after the other; must not outlive the txn.
package struct LMDBEntries<Key: TableKey, Value: TableValue>: ~Copyable {
    package var cursor: LMDBCursor

    @inlinable
    package init(_ cursor: consuming LMDBCursor) { self.cursor = cursor }

    /// The next entry; nil after the last one.
    @inlinable
    package mutating func next() throws(IndexError) -> (key: Key, value: Value)? {
        guard let (key, value) = try cursor.next() else { return nil }
        return (try Key(indexed: key), try Value(indexed: value, of: key))
    }

    /// The next key, without decoding its value; nil after the last one.
    @inlinable
    package mutating func nextKey() throws(IndexError) -> Key? {
        guard let (key, _) = try cursor.next() else { return nil }
        return try Key(indexed: key)
    }
}

/// Looks up values in a table, and inserts some, starting from the position of the last operation;
/// must not outlive the txn.
///
/// Lookups in byte order of the keys are several times as fast as in any other: neighbours share a
/// page.
package struct LMDBFinder<Key: TableKey, Value: TableValue>: ~Copyable {
    package let cursor: LMDBCursor

    @inlinable
    package init(_ cursor: consuming LMDBCursor) { self.cursor = cursor }

    /// The value of a key; nil if there is none.
    @inlinable
    package func value(for key: Key) throws(IndexError) -> Value? {
        try key.withBytes { (key) throws(IndexError) -> Value? in
            guard let found = try cursor.find(key) else { return nil }
            return try Value(indexed: found, of: key)
        }
    }

    /// Sets a key's value unless it has one.
    @inlinable
    package func insert(_ value: Value, for key: Key) throws(IndexError) {
        try key.withBytes { (key) throws(IndexError) in
            try value.withBytes { (value) throws(IndexError) in try cursor.insert(key, value) }
        }
    }
}

/// One value of a table whose values differ in type, by its key.
package struct LMDBCell<Key: TableKey & Sendable, Value: TableValue>: Sendable {
    package let table: LMDBTable<Key, Value>
    package let key: Key

    @inlinable
    package init(_ table: LMDBTableID, _ key: Key) {
        self.table = LMDBTable(table)
        self.key = key
    }

    /// The value; nil if it was never set.
    @inlinable
    package func value(in txn: borrowing LMDBTxn) throws(IndexError) -> Value? {
        try table.value(for: key, in: txn)
    }

    /// Sets the value.
    @inlinable
    package func set(_ value: Value, in txn: borrowing LMDBTxn) throws(IndexError) {
        try table.put(value, for: key, in: txn)
    }
}

/// No value: the table is a set of keys.
package struct NoValue: TableValue {
    @inlinable
    package init() {}

    @inlinable
    package init(indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer) {}

    @inlinable
    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try body(UnsafeRawBufferPointer(start: nil, count: 0))
    }
}

extension LMDBTable where Value == NoValue {
    /// Adds a key.
    @inlinable
    package func insert(_ key: Key, in txn: borrowing LMDBTxn) throws(IndexError) {
        try put(NoValue(), for: key, in: txn)
    }
}

extension [UInt8]: TableKey, TableValue {
    package init(indexed bytes: UnsafeRawBufferPointer) { self.init(bytes) }

    package init(indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer) {
        self.init(bytes)
    }

    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try withUnsafeBufferPointer { (bytes) throws(IndexError) in
            try body(UnsafeRawBufferPointer(bytes))
        }
    }
}
