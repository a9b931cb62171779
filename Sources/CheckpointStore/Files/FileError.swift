import Glibc

/// A system call on a repository's file that failed.
package struct FileError: Error, Hashable, Sendable {
    /// The call: `pwrite`.
    package let call: String
    /// The file, as messages name it.
    package let path: String
    package let errno: Int32

    package init(call: String, path: String, errno: Int32) {
        self.call = call
        self.path = path
        self.errno = errno
    }
}

extension RepositoryError {
    /// The sentence for a failed call.
    package init(_ error: FileError) {
        let reason = String(cString: strerror(error.errno))
        switch error.errno {
        case ENOSPC, EDQUOT:
            self.init(
                .noSpace,
                "no space is left for \(error.path) (\(error.call): \(reason)); free some and try "
                    + "again, all checkpoints taken so far are safe",
                errno: error.errno)
        case EFBIG:
            self.init(
                .callFailed,
                "\(error.path) may not become so large (\(error.call): \(reason)); raise the limit "
                    + "of file sizes (ulimit -f), or use a file system that holds larger files; "
                    + "all checkpoints taken so far are safe",
                errno: error.errno)
        case EROFS, EACCES, EPERM:
            self.init(
                .callFailed,
                "\(error.path) cannot be opened or written (\(error.call): \(reason)); check the "
                    + "mount and the permissions",
                errno: error.errno)
        default:
            self.init(
                .callFailed,
                "\(error.call) failed for \(error.path): \(reason); \(error.remedy)",
                errno: error.errno)
        }
    }
}

extension FileError {
    /// What to do about it.
    fileprivate var remedy: String {
        switch errno {
        case EEXIST: "it was left as it is; find out whose it is and move it away"
        case EISDIR, ENOTDIR: "something else than a repository has lies there; move it away"
        case ENOENT: "somebody removed it; open the repository again"
        case EMFILE, ENFILE: "raise the limit of open files"
        case ENOMEM: "free some memory and try again"
        default: "check the disk and the system's log, then try again"
        }
    }

    /// True if the mount or the permissions forbid it.
    package var isForbidden: Bool { [EROFS, EACCES, EPERM].contains(errno) }

    /// True if the disk or the quota is full.
    package var isFull: Bool { [ENOSPC, EDQUOT].contains(errno) }

    /// True if the file or a directory on its path does not exist.
    package var isMissing: Bool { errno == ENOENT || errno == ENOTDIR }
}
