import CLMDB
import Glibc
package import PackStore

/// Why the index, or what it is built from, cannot be read or written.
///
/// The store converts it to a `RepositoryError` in one place (`IndexFailure`).
package enum IndexError: Error, Hashable, Sendable {
    /// A call of liblmdb failed, or one of the system on LMDB's files.
    case call(String, code: Int32)
    /// A value that no writer can have written: what it is.
    case damagedValue(String)
    /// Tables that contradict one another: where.
    case contradiction(in: String)
    /// A file of the index, or one that it is built from, is inaccessible or of the wrong kind.
    case file(FileError)
    /// The packs that it is built from are damaged, or another operation of the store failed.
    indirect case repository(RepositoryError)
}

extension IndexError {
    /// The code of a failed call of liblmdb; nil for everything else.
    private var code: Int32? {
        if case .call(_, let code) = self { return code }
        return nil
    }

    /// True if the index's files are damaged or not LMDB's: the index must be rebuilt.
    package var isDamage: Bool {
        switch self {
        case .damagedValue, .contradiction: true
        case .call(_, let code):
            [
                MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_INVALID, MDB_VERSION_MISMATCH, MDB_PANIC,
                MDB_BAD_VALSIZE, MDB_BAD_DBI, MDB_INCOMPATIBLE, MDB_BAD_TXN, MDB_NOTFOUND,
            ].contains(code)
        case .file, .repository: false
        }
    }

    /// The damage to the packs that was found; nil if it is something else.
    package var corruption: Corruption? {
        if case .repository(let error) = self { return error.corruption }
        return nil
    }

    /// True if LMDB's file or a table does not exist.
    package var isMissing: Bool { code.map { [ENOENT, MDB_NOTFOUND].contains($0) } ?? false }

    /// True if LMDB has no such table.
    var isMissingTable: Bool { code == MDB_NOTFOUND }

    /// True if another process prevents the files from being opened at the moment.
    package var isBusy: Bool { code == EBUSY }

    /// True if the permissions or the mount forbids it.
    package var isForbidden: Bool { code.map { [EACCES, EPERM, EROFS].contains($0) } ?? false }

    /// True if the address space of this process is exhausted.
    package var isOutOfAddresses: Bool { code == MDB_MAP_FULL }

    /// True if there is not enough memory.
    package var isOutOfMemory: Bool { code == ENOMEM }

    /// True if the files could not be written; LMDB reports EIO for a write that a full disk or the
    /// file size limit cut short.
    package var isWrite: Bool {
        code.map { [ENOSPC, EDQUOT, EFBIG, EIO].contains($0) } ?? false
    }
}

extension IndexError: CustomStringConvertible {
    /// What failed, as a clause.
    package var description: String {
        switch self {
        case .call(let call, let code): "\(call): \(String(cString: mdb_strerror(code)))"
        case .damagedValue(let name): "\(name): no writer writes such a value"
        case .contradiction(let table): "\(table): \(String(cString: mdb_strerror(MDB_CORRUPTED)))"
        case .file(let error): "\(RepositoryError(error))"
        case .repository(let error): "\(error)"
        }
    }
}

extension IndexError {
    /// Does what may fail on a file.
    package static func ofFiles<T: ~Copyable>(
        _ body: @autoclosure () throws(FileError) -> T
    ) throws(IndexError) -> T {
        do throws(FileError) {
            return try body()
        } catch {
            throw .file(error)
        }
    }

    /// Does what may fail on the packs.
    package static func ofPacks<T>(
        _ body: @autoclosure () throws(RepositoryError) -> T
    ) throws(IndexError) -> T {
        do throws(RepositoryError) {
            return try body()
        } catch {
            throw .repository(error)
        }
    }
}
