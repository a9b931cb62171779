// A target for libFuzzer; Scripts/fuzz builds and runs it. Conditions for any file in place of
// LMDB's:
//
//   - the check ends, with or without a fault, and reads nothing outside the file
//   - if it finds none, LMDB can read and change all of it without a trap, an abort or a stray read
//
// Checksums of values are left out: no input would pass them, and the structures that LMDB follows
// must be sound without them.
import CLMDB
import Glibc

@testable import LMDBTables

/// The entry that libFuzzer calls.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOne(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 2 * pageByteCount else { return 0 }
    let path = "/dev/shm/varve-index-fuzz-\(getpid())"
    let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard descriptor >= 0, pwrite(descriptor, start, count, 0) == count else {
        preconditionFailure("\(path) cannot be written")
    }
    defer {
        close(descriptor)
        unlink(path)
    }
    // LMDB itself refuses these, before it follows anything.
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    guard let moment = moment(bytes) else { return 0 }
    let check = LMDBFileCheck(
        descriptor: descriptor, pageByteCount: pageByteCount, checksValues: false)
    guard (try? check.check(moment: moment)) == .sound else { return 0 }
    use(path)
    return 0
}

private let pageByteCount = 4096

/// The newest txn of the file, if LMDB would open it.
private func moment(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
    var numbers: [UInt64] = []
    for head in [0, pageByteCount] {
        let last = bytes.loadUnaligned(fromByteOffset: head + 136, as: UInt64.self)
        guard bytes.loadUnaligned(fromByteOffset: head + 16, as: UInt32.self) == 0xbeef_c0de,
            bytes.loadUnaligned(fromByteOffset: head + 20, as: UInt32.self) == 1,
            bytes.loadUnaligned(fromByteOffset: head + 40, as: UInt32.self) == pageByteCount,
            last < UInt64(bytes.count / pageByteCount)
        else { return nil }
        numbers.append(bytes.loadUnaligned(fromByteOffset: head + 144, as: UInt64.self))
    }
    return numbers.max()
}

/// Opens the file with LMDB, reads all of it, and changes it.
private func use(_ path: String) {
    var environment: OpaquePointer?
    mdb_env_create(&environment)
    mdb_env_set_mapsize(environment, 64 << 20)
    mdb_env_set_maxdbs(environment, 64)
    defer { mdb_env_close(environment) }
    let flags = MDB_NOSUBDIR | MDB_NOSYNC | MDB_NOTLS | MDB_NOLOCK
    guard mdb_env_open(environment, path, UInt32(flags), 0o600) == 0 else {
        preconditionFailure("a sound file does not open")
    }
    var transaction: OpaquePointer?
    guard mdb_txn_begin(environment, nil, 0, &transaction) == 0 else {
        preconditionFailure("a sound file has no transaction")
    }
    for name in names(transaction) {
        var table: MDB_dbi = 0
        guard mdb_dbi_open(transaction, name, 0, &table) == 0 else { continue }
        let keys = read(transaction, table)
        change(transaction, table, keys)
    }
    _ = mdb_txn_commit(transaction)
}

/// The names of the tables.
private func names(_ transaction: OpaquePointer?) -> [String] {
    var main: MDB_dbi = 0
    guard mdb_dbi_open(transaction, nil, 0, &main) == 0 else { return [] }
    // Names with a zero byte cannot be looked up.
    return read(transaction, main).filter { !$0.contains(0) }.prefix(60).map {
        String(decoding: $0, as: UTF8.self)
    }
}

/// Reads each key and value, and looks each key up; returns the keys.
private func read(_ transaction: OpaquePointer?, _ table: MDB_dbi) -> [[UInt8]] {
    var cursor: OpaquePointer?
    guard mdb_cursor_open(transaction, table, &cursor) == 0 else {
        preconditionFailure("a sound table has no cursor")
    }
    defer { mdb_cursor_close(cursor) }
    var (key, value) = (MDB_val(), MDB_val())
    var keys: [[UInt8]] = []
    var sum: UInt8 = 0
    var code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST)
    while code == 0 {
        keys.append(Array(UnsafeRawBufferPointer(start: key.mv_data, count: key.mv_size)))
        for byte in UnsafeRawBufferPointer(start: value.mv_data, count: value.mv_size) {
            sum &+= byte
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)
    }
    precondition(code == MDB_NOTFOUND, "a sound table is read to its end")
    for key in keys {
        key.withUnsafeBytes { bytes in
            var wanted = MDB_val(
                mv_size: bytes.count, mv_data: UnsafeMutableRawPointer(mutating: bytes.baseAddress))
            precondition(
                mdb_get(transaction, table, &wanted, &value) == 0, "a key that is there is found")
        }
    }
    withExtendedLifetime(sum) {}
    return keys
}

/// Replaces some values, deletes some keys and adds others: pages split and merge.
private func change(_ transaction: OpaquePointer?, _ table: MDB_dbi, _ keys: [[UInt8]]) {
    let large = [UInt8](repeating: 7, count: 9000)
    for (position, key) in keys.enumerated() {
        key.withUnsafeBytes { bytes in
            var found = MDB_val(
                mv_size: bytes.count, mv_data: UnsafeMutableRawPointer(mutating: bytes.baseAddress))
            if position % 2 == 0 {
                _ = mdb_del(transaction, table, &found, nil)
                return
            }
            large.withUnsafeBytes { large in
                var value = MDB_val(
                    mv_size: position % 5 == 0 ? large.count : position % 60,
                    mv_data: UnsafeMutableRawPointer(mutating: large.baseAddress))
                _ = mdb_put(transaction, table, &found, &value, 0)
            }
        }
    }
}
