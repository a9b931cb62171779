import CheckpointFormat
import CheckpointIndex
import Glibc
import LMDBTables
package import PackStore
package import SystemPackage

// Damage to the index costs a rebuild and no data: whoever meets it condemns the index, so that the
// next opening that may write rebuilds it from the packs.

/// What the index threw, as an error of the repository.
package enum IndexFailure {
    /// The error to throw; an index that is damaged is condemned first, which writes its mark.
    package static func resolve(
        _ error: any Error, at path: FilePath, _ files: any RepositoryFiles
    ) -> RepositoryError {
        switch error {
        case let error as RepositoryError: error
        case let error as FileError: RepositoryError(error)
        case let error as LMDBError where error.isOutOfAddresses:
            RepositoryError(
                .callFailed,
                "the index does not fit the address space that this process may have; raise its "
                    + "limit (ulimit -v)")
        case let error as LMDBError where !error.isDamage:
            RepositoryError(
                FileError(
                    call: error.call, path: path.appending(StoreDirectory.index).string,
                    errno: cause(of: error, files)))
        case let error as LMDBError: condemn("\(error.call): \(error.reason)", at: path, files)
        default: condemn("\(error)", at: path, files)
        }
    }

    /// Condemns the index, and returns the error that says so.
    ///
    /// - Parameter reason: what is wrong with it.
    package static func condemn(
        _ reason: String, at path: FilePath, _ files: any RepositoryFiles
    ) -> RepositoryError {
        let isCondemned = (try? IndexMark.condemn(files)) != nil
        return RepositoryError(
            .indexDamaged,
            "the index of \(path) is damaged (\(reason)), and the packs are intact; "
                + (isCondemned
                    ? "run the command again to rebuild the index from them"
                    : "delete \(path.appending(StoreDirectory.index)) where it can be written, and "
                        + "the next command rebuilds it from them"))
    }

    /// What the system said: LMDB says EIO of a write that a full disk or a limit cut short.
    private static func cause(of error: LMDBError, _ files: any RepositoryFiles) -> Int32 {
        guard error.code == EIO,
            let directory = try? files.openDirectory(StoreDirectory.index)
        else { return error.code }
        if system_isFull(directory.descriptor) { return ENOSPC }
        return system_isNearSizeLimit("data.mdb", in: directory.descriptor) ? EFBIG : EIO
    }
}

extension Repository {
    /// The error to throw for what the index threw; an index that is damaged is condemned first.
    package func indexFailure(_ error: any Error) -> RepositoryError {
        IndexFailure.resolve(error, at: path, files)
    }
}
