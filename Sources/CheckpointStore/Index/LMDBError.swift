import CLMDB
import Glibc

/// A call of liblmdb that failed.
struct LMDBError: Error, Hashable {
    let call: String
    let code: Int32
    /// True if it was found by whoever read a value, and `call` is what the value is.
    var isValue = false

    /// True if the files are damaged or not LMDB's: the index is to be made anew.
    var isDamage: Bool {
        [
            MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_INVALID, MDB_VERSION_MISMATCH, MDB_PANIC,
            MDB_BAD_VALSIZE, MDB_BAD_DBI, MDB_INCOMPATIBLE, MDB_BAD_TXN, MDB_NOTFOUND,
        ].contains(code)
    }

    /// True if the files could not be written; LMDB says EIO of a write that a full disk or the
    /// limit of file sizes cut short.
    var isWrite: Bool { [ENOSPC, EDQUOT, EFBIG, EIO].contains(code) }
}

extension LMDBError {
    /// Tables that contradict each other, and values that no writer made.
    static let damaged = MDB_CORRUPTED

    /// A value that no writer made.
    static func damagedValue(_ name: String) -> LMDBError {
        LMDBError(call: name, code: damaged, isValue: true)
    }

    /// LMDB's own words for the failure.
    var reason: String {
        isValue ? "no writer makes such a value" : String(cString: mdb_strerror(code))
    }
}
