import CLMDB
import Glibc

/// A call of liblmdb that failed.
package struct LMDBError: Error, Hashable {
    package let call: String
    package let code: Int32
    /// True if it was found by whoever read a value, and `call` is what the value is.
    var isValue = false

    /// True if the files are damaged or not LMDB's: the index is to be made anew.
    package var isDamage: Bool {
        [
            MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_INVALID, MDB_VERSION_MISMATCH, MDB_PANIC,
            MDB_BAD_VALSIZE, MDB_BAD_DBI, MDB_INCOMPATIBLE, MDB_BAD_TXN, MDB_NOTFOUND,
        ].contains(code)
    }

    /// True if there is no such file or table.
    package var isMissing: Bool { [ENOENT, MDB_NOTFOUND].contains(code) }

    /// True if another process is at a point where the files cannot be opened for the moment.
    package var isBusy: Bool { code == EBUSY }

    /// True if the permissions or the mount forbid it.
    package var isForbidden: Bool { [EACCES, EPERM, EROFS].contains(code) }

    /// True if the address space of this process is used up.
    package var isOutOfAddresses: Bool { code == MDB_MAP_FULL }

    /// True if the files could not be written; LMDB says EIO of a write that a full disk or the
    /// limit of file sizes cut short.
    package var isWrite: Bool { [ENOSPC, EDQUOT, EFBIG, EIO].contains(code) }
}

extension LMDBError {
    private static let damaged = MDB_CORRUPTED

    /// Tables that contradict each other.
    package static func contradiction(in table: String) -> LMDBError {
        LMDBError(call: table, code: damaged)
    }

    /// A value that no writer made.
    package static func damagedValue(_ name: String) -> LMDBError {
        LMDBError(call: name, code: damaged, isValue: true)
    }

    /// LMDB's own words for the failure.
    package var reason: String {
        isValue ? "no writer makes such a value" : String(cString: mdb_strerror(code))
    }
}
