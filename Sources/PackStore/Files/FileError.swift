import Glibc

/// A system call on a repository's file that failed.
package struct FileError: Error, Hashable, Sendable {
    /// The call: `pwrite`.
    package let call: String
    /// The file, as messages name it.
    package let path: String
    package let errno: Int32
    /// What was found besides, if no call failed.
    package let finding: Finding?

    /// What is wrong though the system does not say so.
    package enum Finding: Hashable, Sendable {
        /// It is not what a store keeps there: `a symbolic link, not a regular file`.
        case odd(String)
        /// Another user's: its owner's number.
        case foreign(UInt32)
        /// The path of the store leads to something else now: what that is.
        case moved(String)
        /// The file `lock` is not the one that was locked.
        case lockLost
    }

    package init(call: String, path: String, errno: Int32) {
        self.call = call
        self.path = path
        self.errno = errno
        finding = nil
    }

    /// - Parameter errno: what the system would say, for whoever asks for that only.
    package init(_ finding: Finding, path: String, errno: Int32) {
        call = "open"
        self.path = path
        self.errno = errno
        self.finding = finding
    }
}

extension RepositoryError {
    /// The sentence for a failed call.
    package init(_ error: FileError) {
        if let finding = error.finding {
            self.init(finding, error)
            return
        }
        let reason = String(cString: strerror(error.errno))
        if error.call == FileError.makingTemporary {
            self.init(
                error.isFull ? .noSpace : .callFailed,
                "no temporary index can be made in \(error.path) (\(reason)); set TMPDIR to a "
                    + "directory that can be written to, with room for an index",
                errno: error.errno)
            return
        }
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

extension RepositoryError {
    private init(_ finding: FileError.Finding, _ error: FileError) {
        switch finding {
        case .odd(let what):
            self.init(
                .odd,
                "\(error.path) is \(what); it was neither followed nor read nor written; find out "
                    + "who put it there and move it away",
                errno: error.errno)
        case .foreign(let owner):
            self.init(
                .notOwner,
                "\(error.path) belongs to another user (number \(owner)), whom files written here "
                    + "would lock out; run this as that user, or give all of the repository to one "
                    + "user (chown -R)",
                errno: error.errno)
        case .moved(let what):
            self.init(
                .moved,
                "\(error.path) \(what) since it was opened; nothing was written to what is there "
                    + "now, and a checkpoint that was being published is not stored; open the "
                    + "repository where it is now and try again",
                errno: error.errno)
        case .lockLost:
            self.init(
                .lockLost,
                "\(error.path) was removed or replaced while this process had it locked, so "
                    + "another one may write there too; nothing was changed since that was seen, "
                    + "and the list of checkpoints says whether one that was being published is "
                    + "stored; open the repository again, and never remove that file",
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
        case EISDIR, ENOTDIR: "something else than a repository has lies there; move it away"
        case ENOENT: "somebody removed it; open the repository again"
        case EMFILE, ENFILE: "raise the limit of open files"
        case ENOMEM: "free some memory and try again"
        default: "check the disk and the system's log, then try again"
        }
    }

    /// The call that begins a temporary index.
    package static let makingTemporary = "mkdtemp"

    /// True if the mount, the permissions or the owner forbid it.
    package var isForbidden: Bool { [EROFS, EACCES, EPERM].contains(errno) }

    /// True if something else lies where a file should.
    package var isOdd: Bool {
        guard case .odd = finding else { return false }
        return true
    }

    /// True if the disk or the quota is full.
    package var isFull: Bool { [ENOSPC, EDQUOT].contains(errno) }

    /// True if the file or a directory on its path does not exist.
    ///
    /// That of a temporary directory is another matter: it is no part of a store.
    package var isMissing: Bool {
        finding == nil && call != FileError.makingTemporary
            && (errno == ENOENT || errno == ENOTDIR)
    }
}
