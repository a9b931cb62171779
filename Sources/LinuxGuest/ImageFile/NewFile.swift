import Glibc
public import GuestModel
import Synchronization

/// A file that is written under no name, and gets its name when it is whole.
///
/// Without `finish` nothing is left behind, whatever ends the process: the file has no name until
/// then (`O_TMPFILE`, open(2)). Where a file system has no such files it is written beside its name
/// as `NAME.N.part`, which only a process that is killed leaves behind.
///
/// It may hold a guest's memory, so nobody but its owner can read it, whatever the umask is. A file
/// that replaces another takes over the other's owner, group and permissions.
public final class NewFile: Sendable {
    private let path: String
    private let isReplacing: Bool
    private let descriptorNumber: Int32
    private let state: Mutex<State>

    private struct State {
        /// Where it lies meanwhile; nil: nowhere.
        var temporary: String?
        var isOpen = true
    }

    /// Opens a file to be written.
    ///
    /// - Parameters:
    ///   - path: its name.
    ///   - replacing: whether a file that has the name may be replaced.
    public init(_ path: String, replacing: Bool = false) throws(GuestError) {
        self.path = path
        isReplacing = replacing
        // It gets its name by way of /proc, which may not be mounted.
        let nameless =
            NewFile.canName
            ? system_open(
                NewFile.directory(of: path), O_RDWR | NewFile.withoutName | O_DIRECTORY,
                NewFile.mode)
            : -1
        if nameless >= 0 {
            descriptorNumber = nameless
            state = Mutex(State())
            if replacing { try takeOver() }
            return
        }
        // EISDIR: a kernel or file system that does not know it.
        guard !NewFile.canName || [EOPNOTSUPP, EISDIR, EINVAL].contains(errno) else {
            throw GuestError.call("open", path)
        }
        let temporary = NewFile.temporaryName(path)
        let named = system_open(temporary, O_RDWR | O_CREAT | O_EXCL, NewFile.mode)
        guard named >= 0 else { throw GuestError.call("open", path) }
        descriptorNumber = named
        state = Mutex(State(temporary: temporary))
        if replacing { try takeOver() }
    }

    deinit {
        abandon()
        system_close(descriptorNumber)
    }

    /// The open file; closed when this is released.
    public var descriptor: Int32 { descriptorNumber }

    /// True if a file without a name can be given one.
    private static let canName: Bool = {
        let descriptor = system_open("/proc/self/fd", O_RDONLY | O_DIRECTORY)
        guard descriptor >= 0 else { return false }
        system_close(descriptor)
        return true
    }()

    /// Permissions of a new file.
    private static let mode: mode_t = 0o600

    /// Takes over owner, group and permissions of the file that is to be replaced, if there is one.
    ///
    /// Fails if it cannot be given to that owner. If it cannot be given to that group, the group's
    /// permissions are left out: they would be another group's.
    private func takeOver() throws(GuestError) {
        var (old, new) = (stat(), stat())
        guard stat(path, &old) == 0, old.st_mode & S_IFMT == S_IFREG else { return }
        guard system_fstat(descriptorNumber, &new) == 0 else {
            throw GuestError.call("fstat", path)
        }
        var mode = old.st_mode & 0o777
        if new.st_uid != old.st_uid, system_fchown(descriptorNumber, old.st_uid, .max) != 0 {
            throw GuestError(
                code: .unavailable,
                message: "\(path) belongs to another user and was left as it is; remove it or name "
                    + "another file")
        }
        if new.st_gid != old.st_gid, system_fchown(descriptorNumber, .max, old.st_gid) != 0 {
            mode &= ~0o070
        }
        guard system_fchmod(descriptorNumber, mode) == 0 else {
            throw GuestError.call("fchmod", path)
        }
    }

    /// `__O_TMPFILE` of asm-generic/fcntl.h, which the C library's module hides.
    private static let withoutName: Int32 = 0o20_000_000

    private static func temporaryName(_ path: String) -> String {
        "\(path).\(UInt32.random(in: .min ... .max)).part"
    }

    private static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// Makes the file durable and gives it its name.
    public func finish() throws(GuestError) {
        guard system_fsync(descriptorNumber) == 0 else { throw GuestError.call("fsync", path) }
        try state.withLock { (state) throws(GuestError) in
            let own = "/proc/self/fd/\(descriptorNumber)"
            if isReplacing {
                let name = state.temporary ?? NewFile.temporaryName(path)
                if state.temporary == nil {
                    guard system_link(own, name) == 0 else { throw GuestError.call("link", path) }
                    state.temporary = name
                }
                guard system_rename(name, path) == 0 else {
                    throw GuestError.call("rename", path)
                }
            } else {
                // A name that somebody took meanwhile is not taken from them.
                guard system_link(state.temporary ?? own, path) == 0 else {
                    throw errno == EEXIST ? NewFile.taken(path) : GuestError.call("link", path)
                }
                if let temporary = state.temporary { system_unlink(temporary) }
            }
            state.temporary = nil
            state.isOpen = false
        }
    }

    /// Leaves nothing of it behind; harmless after `finish`.
    public func abandon() {
        state.withLock { state in
            if state.isOpen, let temporary = state.temporary { system_unlink(temporary) }
            state.temporary = nil
            state.isOpen = false
        }
    }

    static func taken(_ path: String) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "\(path) exists and was left as it is; name another file or allow replacing it"
        )
    }
}
