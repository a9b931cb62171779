import CLinux
import Glibc
public import GuestModel
import Synchronization
public import SystemPackage

/// A file that is written under no name, and gets its name when it is whole.
///
/// Without `finish` nothing is left behind, whatever ends the process: the file has no name until
/// then (`O_TMPFILE`, open(2)). Where a file system has no such files, or they cannot be given a
/// name, it is written beside its name as `NAME.N.part` (`.varve.N.part` if that is too long),
/// which only a process that is killed leaves behind.
///
/// What the last step needs is tried before the work, with an empty file.
///
/// It may hold a guest's memory, so nobody but its owner can read it, whatever the umask is. A file
/// that replaces another takes over the other's owner, group and permissions; where the path is a
/// symbolic link, the file that it leads to is replaced. Another hard link to a file that was
/// replaced keeps the old contents.
public final class NewFile: Sendable {
    private let path: FilePath
    private let isReplacing: Bool
    private let descriptorNumber: Int32
    private let state: Mutex<State>

    private struct State {
        /// Where it lies meanwhile; nil: nowhere.
        var temporary: FilePath?
        var isOpen = true
    }

    /// Opens a file to be written.
    ///
    /// - Parameters:
    ///   - path: its name.
    ///   - replacing: whether a file that has the name may be replaced.
    ///   - byteCount: bytes that will be written at least, if that is known: what has no room for
    ///     them is refused now.
    public init(
        _ path: FilePath, replacing: Bool = false, byteCount: Int? = nil
    ) throws(GuestError) {
        guard case .file(let target, let exists) = try OutputPlace(path) else {
            throw GuestError(
                code: .unavailable,
                message: "\(path.printable) is no regular file, and cannot be replaced by one")
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
    public var descriptor: Int32 { descriptorNumber }

    /// Permissions of a new file.
    private static let mode: mode_t = 0o600

    // MARK: - Before the work

    /// True if a file without a name can be given one in a directory: an empty file is.
    ///
    /// A file system may have no such files, /proc may not be mounted, by which they are named, and
    /// a security module may forbid it.
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

    /// Refuses a file that no other can take the place of.
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
                throw refusal("is a mount point of its own")
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

    /// Refuses a file that is larger than the process may write, the file system has, or is free.
    ///
    /// Only file systems that store every byte are asked what is free.
    private func checkRoom(_ byteCount: Int) throws(GuestError) {
        func refusal(_ code: Int32, _ reason: String) -> GuestError {
            GuestError(
                code: .callFailed,
                message: "\(path.printable) will have \(byteCount) bytes at least, and \(reason)",
                errno: code)
        }
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0,
            UInt64(limit.rlim_cur) < UInt64(byteCount)
        {
            throw refusal(
                EFBIG, "this process may write \(limit.rlim_cur) (ulimit -f); raise the limit")
        }
        var (free, largest) = (UInt64.max, UInt64.max)
        guard clinux_room(descriptorNumber, &free, &largest) == 0 else { return }
        if largest < UInt64(byteCount) {
            throw refusal(
                EFBIG, "its file system holds \(largest) in one file; name a file on another one")
        }
        if free < UInt64(byteCount) {
            throw refusal(ENOSPC, "\(free) are free there; free some and try again")
        }
    }

    /// Takes over owner, group and permissions of the file that is to be replaced.
    ///
    /// Fails if it cannot be given to that owner. If it cannot be given to that group, the group's
    /// permissions are left out: they would be another group's.
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

    /// A name beside a file's, no longer than names may be (`NAME_MAX`).
    private static func temporaryName(_ path: FilePath) -> FilePath {
        let suffix = Array(".\(UInt32.random(in: .min ... .max)).part".utf8)
        let name = path.name
        let start = name.count + suffix.count <= 255 ? name : Array(".varve".utf8)
        return path.directory.pushing(FilePath(bytes: start + suffix))
    }

    // MARK: - Naming

    /// Makes the file durable and gives it its name.
    public func finish() throws(GuestError) {
        guard system_fsync(descriptorNumber) == 0 else {
            throw GuestError.call("fsync", path.printable)
        }
        try state.withLock { (state) throws(GuestError) in
            if isReplacing {
                try replace(&state)
            } else if let temporary = state.temporary {
                try giveName(to: temporary)
            } else {
                // A name that somebody took meanwhile is not taken from them.
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

    /// Gives a file its name unless the name is taken, in the way that the file system has: by
    /// `RENAME_NOREPLACE`; by a hard link, which FAT and exFAT have none of; or by taking the name
    /// first.
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

    /// Leaves nothing of it behind; harmless after `finish`.
    public func abandon() {
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
