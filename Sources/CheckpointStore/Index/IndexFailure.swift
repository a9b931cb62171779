import CLMDB
import CheckpointFormat
import Glibc
import SystemPackage

// Damage to the index costs a rebuild and no data: whoever meets it condemns the index, so that the
// next opening that may write makes it anew from the packs.

extension Repository {
    /// The error for whatever the index threw; an index that is damaged is condemned.
    func indexFailure(_ error: any Error) -> RepositoryError {
        RepositoryError(indexFailure: error, path: path, files: files)
    }
}

extension RepositoryError {
    /// The error for whatever the index threw; an index that is damaged is condemned.
    init(indexFailure error: any Error, path: FilePath, files: any RepositoryFiles) {
        switch error {
        case let error as RepositoryError:
            self = error
        case let error as FileError:
            self.init(error)
        case let error as LMDBError where error.code == MDB_MAP_FULL:
            self.init(
                .callFailed,
                "the index does not fit the address space that this process may have; raise its "
                    + "limit (ulimit -v)")
        case let error as LMDBError where !error.isDamage:
            let directory = path.appending(IndexMark.directory).string
            let open = try? files.openDirectory(IndexMark.directory)
            var code = error.code
            if code == EIO, let descriptor = open?.descriptor {
                if system_isFull(descriptor) {
                    code = ENOSPC
                } else if system_isNearSizeLimit("data.mdb", in: descriptor) {
                    code = EFBIG
                }
            }
            self.init(FileError(call: error.call, path: directory, errno: code))
        case let error as LMDBError:
            self.init(damagedIndex: "\(error.call): \(error.reason)", path, files)
        default:
            self.init(damagedIndex: "\(error)", path, files)
        }
    }

    /// Condemns the index.
    init(damagedIndex reason: String, _ path: FilePath, _ files: any RepositoryFiles) {
        let isCondemned = (try? IndexMark.condemn(files)) != nil
        self.init(
            .indexDamaged,
            "the index of \(path) is damaged (\(reason)) and the packs are not touched by that; "
                + (isCondemned
                    ? "try again: the next command makes it anew from them"
                    : "delete \(path.appending(IndexMark.directory)) where it can be written, and "
                        + "the next command makes it anew from them"))
    }
}
