import CLMDB
import Glibc

/// A failed call of liblmdb.
package struct LMDBError: Error, Hashable {
    package let call: String
    package let code: Int32
    /// True if data that was read is invalid, in which case `call` describes it.
    var isValue = false

    /// True if the files are damaged or not LMDB's: the index must be rebuilt.
    package var isDamage: Bool {
        [
            MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_INVALID, MDB_VERSION_MISMATCH, MDB_PANIC,
            MDB_BAD_VALSIZE, MDB_BAD_DBI, MDB_INCOMPATIBLE, MDB_BAD_TXN, MDB_NOTFOUND,
        ].contains(code)
    }

    /// True if the file or table does not exist.
    package var isMissing: Bool { [ENOENT, MDB_NOTFOUND].contains(code) }

    /// True if another process prevents the files from being opened at the moment.
    package var isBusy: Bool { code == EBUSY }

    /// True if the permissions or the mount forbids it.
    package var isForbidden: Bool { [EACCES, EPERM, EROFS].contains(code) }

    /// True if the address space of this process is exhausted.
    package var isOutOfAddresses: Bool { code == MDB_MAP_FULL }

    /// True if the files could not be written; LMDB reports EIO for a write that a full disk or the
    /// file size limit cut short.
    package var isWrite: Bool { [ENOSPC, EDQUOT, EFBIG, EIO].contains(code) }
}

extension LMDBError {
    private static let damaged = MDB_CORRUPTED

    /// Tables that contradict one another.
    package static func contradiction(in table: String) -> LMDBError {
        LMDBError(call: table, code: damaged)
    }

    /// A value that no writer can have written.
    package static func damagedValue(_ name: String) -> LMDBError {
        LMDBError(call: name, code: damaged, isValue: true)
    }

    /// LMDB's description of the failure.
    package var reason: String {
        isValue ? "no writer writes such a value" : String(cString: mdb_strerror(code))
    }
}
