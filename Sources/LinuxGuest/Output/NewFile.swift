import CLinux
import Glibc
package import GuestModel
import Synchronization
package import SystemPackage

/// A file that is written without a name, and gets its name when it is complete.
///
/// Without `finish` nothing remains, however the process ends: the file has no name until then
/// (`O_TMPFILE`, open(2)). Where a file system has no such files, or they cannot be given a name,
/// it is written next to its final name as `NAME.N.part` (`.varve.N.part` if that is too long),
/// which remains only if the process is killed.
///
/// The operations of the last step are tried before the work, with an empty file.
///
/// It may hold a guest's memory, so only its owner can read it, whatever the umask. A file that
/// replaces another takes over the other's owner, group and permissions; where the path is a
/// symbolic link, its target is replaced. Other hard links to a replaced file keep the old
/// contents.
package final class NewFile: Sendable {
    private let path: FilePath
    private let isReplacing: Bool
    private let descriptorNumber: Int32
    private let state: Mutex<State>

    private struct State {
        /// Its temporary name; nil: it has none.
        var temporary: FilePath?
        var isOpen = true
    }

    /// Opens a file for writing.
    ///
    /// - Parameters:
    ///   - path: its name.
    ///   - replacing: whether a file that has the name may be replaced.
    ///   - byteCount: the least number of bytes that will be written, if that is known; a file
    ///     system without that much room is refused now.
    package init(
        _ path: FilePath, replacing: Bool = false, byteCount: Int? = nil
    ) throws(GuestError) {
        guard case .file(let target, let exists) = try OutputPlace(path) else {
            throw GuestError(
                code: .unavailable,
                message: "\(path.printable) is not a regular file, so it cannot be replaced by one")
        }
        if exists && !replacing { throw NewFile.taken(path) }
        self.path = target
        isReplacing = replacing
        if exists { try NewFile.checkReplaceable(target) }
        if NewFile.canName(in: target.directory) {
            descriptorNumber = system_openNameless(target.directory, NewFile.mode)
            guard descriptorNumber >= 0 else { throw GuestError.call("open", target.printable) }
            state = Mutex(State())
        } else {
            let temporary = NewFile.temporaryName(target)
            descriptorNumber = system_open(temporary, O_RDWR | O_CREAT | O_EXCL, NewFile.mode)
            guard descriptorNumber >= 0 else { throw GuestError.call("open", target.printable) }
            state = Mutex(State(temporary: temporary))
        }
        if let byteCount { try checkRoom(byteCount) }
        if exists { try takeOver() }
    }

    deinit {
        abandon()
        if descriptorNumber >= 0 { system_close(descriptorNumber) }
    }

    /// The open file; closed when this is released.
    package var descriptor: Int32 { descriptorNumber }

    /// Permissions of a new file.
    private static let mode: mode_t = 0o600

    // MARK: - Before writing

    /// True if a nameless file can be given a name in a directory; tried with an empty file.
    ///
    /// A file system may have no such files, /proc, by which they are named, may not be mounted,
    /// and a security module may forbid it.
    private static func canName(in directory: FilePath) -> Bool {
        let descriptor = system_openNameless(directory, mode)
        guard descriptor >= 0 else { return false }
        defer { system_close(descriptor) }
        let name = temporaryName(directory.pushing("trial"))
        guard system_link(ownName(descriptor), name) == 0 else { return false }
        return system_unlink(name) == 0
    }

    private static func ownName(_ descriptor: Int32) -> FilePath {
        FilePath("/proc/self/fd/\(descriptor)")
    }

    /// Refuses a file that cannot be replaced.
    private static func checkReplaceable(_ path: FilePath) throws(GuestError) {
        func refusal(_ reason: String) -> GuestError {
            GuestError(
                code: .unavailable,
                message: "\(path.printable) \(reason) and was left as it is; name another file")
        }
        let attributes = path.withPlatformString { clinux_attributes($0) }
        if attributes >= 0 {
            let bits = UInt64(attributes)
            if bits & UInt64(CLINUX_IMMUTABLE) != 0 { throw refusal("may not be changed (chattr)") }
            if bits & UInt64(CLINUX_MOUNT_ROOT) != 0 {
                throw refusal("is a mount point")
            }
        }
        var (file, directory) = (stat(), stat())
        guard system_stat(path, &file) == 0, system_stat(path.directory, &directory) == 0 else {
            throw GuestError.call("stat", path.printable)
        }
        let user = geteuid()
        let isOwn = user == 0 || user == file.st_uid || user == directory.st_uid
        if directory.st_mode & S_ISVTX != 0 && !isOwn {
            throw refusal("belongs to another user, in a directory with the sticky bit,")
        }
    }

    /// Refuses a size that exceeds the process's limit, the file system's limit, or the free space.
    ///
    /// Free space is checked only on file systems that store every byte.
    private func checkRoom(_ byteCount: Int) throws(GuestError) {
        func refusal(_ code: Int32, _ reason: String) -> GuestError {
            GuestError(
                code: .callFailed,
                message: "\(path.printable) needs at least \(byteCount) bytes, but \(reason)",
                errno: code)
        }
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0,
            UInt64(limit.rlim_cur) < UInt64(byteCount)
        {
            throw refusal(
                EFBIG, "this process may write only \(limit.rlim_cur) (ulimit -f); raise it")
        }
        var (free, largest) = (UInt64.max, UInt64.max)
        guard clinux_room(descriptorNumber, &free, &largest) == 0 else { return }
        if largest < UInt64(byteCount) {
            throw refusal(
                EFBIG, "its file system allows \(largest) per file; name a file on another one")
        }
        if free < UInt64(byteCount) {
            throw refusal(ENOSPC, "only \(free) are free there; free some space and try again")
        }
    }

    /// Takes over owner, group and permissions of the file that will be replaced.
    ///
    /// Throws if it cannot be given to that owner. If it cannot be given to that group, the group's
    /// permissions are dropped: they would apply to another group.
    private func takeOver() throws(GuestError) {
        var (old, new) = (stat(), stat())
        guard system_stat(path, &old) == 0, old.st_mode & S_IFMT == S_IFREG else { return }
        guard system_fstat(descriptorNumber, &new) == 0 else {
            throw GuestError.call("fstat", path.printable)
        }
        var mode = old.st_mode & 0o777
        if new.st_uid != old.st_uid, system_fchown(descriptorNumber, old.st_uid, .max) != 0 {
            throw GuestError(
                code: .unavailable,
                message: "\(path.printable) belongs to another user and was left as it is; remove "
                    + "it or name another file")
        }
        if new.st_gid != old.st_gid, system_fchown(descriptorNumber, .max, old.st_gid) != 0 {
            mode &= ~0o070
        }
        guard system_fchmod(descriptorNumber, mode) == 0 else {
            throw GuestError.call("fchmod", path.printable)
        }
    }

    /// A temporary name next to a file's, no longer than names may be (`NAME_MAX`).
    private static func temporaryName(_ path: FilePath) -> FilePath {
        let suffix = Array(".\(UInt32.random(in: .min ... .max)).part".utf8)
        let name = path.name
        let start = name.count + suffix.count <= 255 ? name : Array(".varve".utf8)
        return path.directory.pushing(FilePath(bytes: start + suffix))
    }

    // MARK: - Naming

    /// Makes the file durable and gives it its name.
    package func finish() throws(GuestError) {
        guard system_fsync(descriptorNumber) == 0 else {
            throw GuestError.call("fsync", path.printable)
        }
        try state.withLock { (state) throws(GuestError) in
            if isReplacing {
                try replace(&state)
            } else if let temporary = state.temporary {
                try giveName(to: temporary)
            } else {
                // A name that was taken meanwhile is not overwritten.
                guard system_link(NewFile.ownName(descriptorNumber), path) == 0 else {
                    throw failure("link")
                }
            }
            state.temporary = nil
            state.isOpen = false
        }
    }

    private func failure(_ call: String) -> GuestError {
        errno == EEXIST ? NewFile.taken(path) : GuestError.call(call, path.printable)
    }

    private func replace(_ state: inout State) throws(GuestError) {
        let name = state.temporary ?? NewFile.temporaryName(path)
        if state.temporary == nil {
            guard system_link(NewFile.ownName(descriptorNumber), name) == 0 else {
                throw GuestError.call("link", path.printable)
            }
            state.temporary = name
        }
        guard system_rename(name, path) == 0 else {
            throw GuestError.call("rename", path.printable)
        }
    }

    /// Gives a file its name unless the name exists, in a way that the file system supports: by
    /// `RENAME_NOREPLACE`; by a hard link, which FAT and exFAT lack; or by creating the name first.
    private func giveName(to temporary: FilePath) throws(GuestError) {
        if system_renameNoReplace(temporary, path) == 0 { return }
        guard [EINVAL, ENOSYS, EOPNOTSUPP].contains(errno) else { throw failure("rename") }
        if system_link(temporary, path) == 0 {
            _ = system_unlink(temporary)
            return
        }
        guard [EPERM, EOPNOTSUPP, ENOSYS, EMLINK, EINVAL].contains(errno) else {
            throw failure("link")
        }
        let place = system_open(path, O_WRONLY | O_CREAT | O_EXCL, NewFile.mode)
        guard place >= 0 else { throw failure("open") }
        system_close(place)
        guard system_rename(temporary, path) == 0 else {
            let error = GuestError.call("rename", path.printable)
            _ = system_unlink(path)
            throw error
        }
    }

    /// Removes it completely; harmless after `finish`.
    package func abandon() {
        state.withLock { state in
            if state.isOpen, let temporary = state.temporary { _ = system_unlink(temporary) }
            state.temporary = nil
            state.isOpen = false
        }
    }

    static func taken(_ path: FilePath) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "\(path.printable) exists and was left as it is; name another file or allow "
                + "replacing it")
    }
}
