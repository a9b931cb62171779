import CheckpointFormat
package import CheckpointIndex
import Glibc
import LMDBTables
package import PackStore
package import SystemPackage

// Damage to the index costs a rebuild but no data: when it is found, the index is condemned, so
// that the next open for writing rebuilds it from the packs.

/// Converts errors of the index to errors of the repository.
package enum IndexFailure {
    /// The error to throw; a damaged index is first condemned, which writes its mark.
    package static func resolve(
        _ error: any Error, at path: FilePath, _ files: any RepositoryFiles
    ) -> RepositoryError {
        switch error {
        case let error as RepositoryError: error
        case let error as FileError: RepositoryError(error)
        case let error as IndexError: resolve(error, at: path, files)
        default: condemn("\(error)", at: path, files)
        }
    }

    private static func resolve(
        _ error: IndexError, at path: FilePath, _ files: any RepositoryFiles
    ) -> RepositoryError {
        switch error {
        case .repository(let error): error
        case .file(let error): RepositoryError(error)
        case .call where error.isOutOfAddresses:
            RepositoryError(
                .callFailed,
                "the index does not fit in the address space of this process; raise the "
                    + "address space limit (ulimit -v)")
        case .call(let call, let code) where !error.isDamage:
            RepositoryError(
                FileError(
                    call: call, path: path.appending(StoreDirectory.index).string,
                    errno: cause(of: code, files)))
        case .call, .damagedValue, .contradiction: condemn("\(error)", at: path, files)
        }
    }

    /// True if a file was not there.
    static func isMissingFile(_ error: any Error) -> Bool {
        switch error {
        case IndexError.file(let error): error.isMissing
        case let error as FileError: error.isMissing
        case IndexError.repository(let error): error.errno == ENOENT
        case let error as RepositoryError: error.errno == ENOENT
        default: false
        }
    }

    /// Condemns the index, and returns an error that says so.
    ///
    /// - Parameter reason: what is wrong with the index.
    package static func condemn(
        _ reason: String, at path: FilePath, _ files: any RepositoryFiles
    ) -> RepositoryError {
        let isCondemned = (try? IndexMark.condemn(files)) != nil
        return RepositoryError(
            .indexDamaged,
            "the index of \(path) is damaged (\(reason)), but the packs are intact; "
                + (isCondemned
                    ? "run the command again to rebuild the index from them"
                    : "delete \(path.appending(StoreDirectory.index)) where it can be written, and "
                        + "the next command rebuilds it from them"))
    }

    /// The system error: LMDB reports EIO for a write that a full disk or a limit cut short.
    private static func cause(of code: Int32, _ files: any RepositoryFiles) -> Int32 {
        guard code == EIO, let directory = try? files.openDirectory(StoreDirectory.index)
        else { return code }
        if system_isFull(directory.descriptor) { return ENOSPC }
        return system_isNearSizeLimit("data.mdb", in: directory.descriptor) ? EFBIG : EIO
    }
}

extension Repository {
    /// The relations between the tables of the index that do not hold (`Index+Invariants`).
    ///
    /// Reads all of the index, and every page map. None are checked in a temporary index that
    /// counts no references.
    package func brokenIndexRelations() throws(RepositoryError) -> [BrokenRelation] {
        guard countsReferences else { return [] }
        return try withIndex { index in
            do throws(IndexError) {
                return try index.checkInvariants(
                    maps: MapChainReader(index: index, reader: reader))
            } catch {
                // A forgotten checkpoint's page map may be damaged, or was just pruned.
                guard error.corruption != nil || IndexFailure.isMissingFile(error) else {
                    throw error
                }
                return try index.checkInvariants()
            }
        }
    }

    /// The error to throw for an error of the index; a damaged index is first condemned.
    package func indexFailure(_ error: any Error) -> RepositoryError {
        IndexFailure.resolve(error, at: path, files)
    }
}
