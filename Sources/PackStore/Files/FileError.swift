import Glibc

/// A failed system call on a file of the repository.
package struct FileError: Error, Hashable, Sendable {
    /// The call: `pwrite`.
    package let call: String
    /// The file, as shown in messages.
    package let path: String
    package let errno: Int32
    /// What was found instead, if no call failed.
    package let finding: Finding?

    /// A problem that the system does not report as an error.
    package enum Finding: Hashable, Sendable {
        /// The file is not of the expected kind: `a symbolic link, not a regular file`.
        case odd(String)
        /// It belongs to another user: the owner's UID.
        case foreign(UInt32)
        /// The path of the store now leads elsewhere: what happened to it.
        case moved(String)
        /// The file `lock` is not the one that was locked.
        case lockLost
        /// A directory for a temporary index cannot be created in this one.
        case noTemporaryPlace
    }

    package init(call: String, path: String, errno: Int32) {
        self.call = call
        self.path = path
        self.errno = errno
        finding = nil
    }

    /// - Parameter errno: the equivalent system error, for callers that want only that.
    package init(_ finding: Finding, path: String, errno: Int32) {
        call = "open"
        self.path = path
        self.errno = errno
        self.finding = finding
    }
}

extension RepositoryError {
    /// The message for a failed call.
    package init(_ error: FileError) {
        if let finding = error.finding {
            self.init(finding, error)
            return
        }
        let reason = String(cString: strerror(error.errno))
        switch error.errno {
        case ENOSPC, EDQUOT:
            self.init(
                .noSpace,
                "no space is left for \(error.path) (\(error.call): \(reason)); free some space "
                    + "and try again; all checkpoints taken so far are safe",
                errno: error.errno)
        case EFBIG:
            self.init(
                .callFailed,
                "\(error.path) would exceed the file size limit (\(error.call): \(reason)); raise "
                    + "the limit (ulimit -f), or use a file system that allows larger files; "
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

extension RepositoryError {
    private init(_ finding: FileError.Finding, _ error: FileError) {
        switch finding {
        case .odd(let what):
            self.init(
                .odd,
                "\(error.path) is \(what); it was not followed, read or written; find out "
                    + "who put it there and move it away",
                errno: error.errno)
        case .foreign(let owner):
            self.init(
                .notOwner,
                "\(error.path) belongs to another user (UID \(owner)), who would be locked out "
                    + "by files written here; run this as that user, or give the whole repository "
                    + "to one user (chown -R)",
                errno: error.errno)
        case .moved(let what):
            self.init(
                .moved,
                "\(error.path) \(what) since it was opened; nothing was written to what is "
                    + "there now, and a checkpoint that was being published is not stored; open "
                    + "the repository where it is now and try again",
                errno: error.errno)
        case .noTemporaryPlace:
            let reason = String(cString: strerror(error.errno))
            self.init(
                error.isFull ? .noSpace : .callFailed,
                "no temporary index can be created in \(error.path) (\(reason)); set TMPDIR to a "
                    + "writable directory with enough space for an index",
                errno: error.errno)
        case .lockLost:
            self.init(
                .lockLost,
                "\(error.path) was removed or replaced while this process held its lock, so "
                    + "another one may be writing too; nothing was changed after that was "
                    + "detected, and the list of checkpoints shows whether one that was being "
                    + "published was stored; open the repository again, and never remove that file",
                errno: error.errno)
        }
    }
}

extension FileError {
    /// What to do about it.
    fileprivate var remedy: String {
        switch errno {
        case EEXIST: "it was left as it is; find out whose it is and move it away"
        case ENAMETOOLONG: "choose a shorter name"
        case ELOOP: "a symbolic link leads to itself; remove it"
        case EISDIR, ENOTDIR: "a path of the repository is of the wrong kind; move it away"
        case ENOENT: "it was removed; open the repository again"
        case EMFILE, ENFILE: "raise the limit of open files"
        case ENOMEM: "free some memory and try again"
        default: "check the disk and the system's log, then try again"
        }
    }

    /// True if the mount, the permissions or the ownership forbids it.
    package var isForbidden: Bool { [EROFS, EACCES, EPERM].contains(errno) }

    /// True if an object of another kind is where a file should be.
    package var isOdd: Bool {
        guard case .odd = finding else { return false }
        return true
    }

    /// True if the disk or the quota is full.
    package var isFull: Bool { [ENOSPC, EDQUOT].contains(errno) }

    /// True if the file or a directory on its path does not exist.
    ///
    /// A missing temporary directory does not count: it is not part of a store.
    package var isMissing: Bool {
        finding == nil && (errno == ENOENT || errno == ENOTDIR)
    }
}
