import Glibc
import GuestModel
import Synchronization

// A domain has one owner among all processes of dom0: who has its lock file.
//
//   /run/varve                  0700, of this user, writable by nobody else
//   /run/varve/domain-7.lock    0600; held by flock(2), says the owner's process number
//
// The kernel ends a lock with the last descriptor of its file, so a process that dies leaves none.
// The guard inherits the descriptor: the domain is nobody else's before the guard is done with it,
// though the checkpointer is dead. The file stays, empty of meaning: removing it would let two
// processes hold two files of one name.

/// The lock of one domain, until this is released.
final class DomainLock: Sendable {
    /// At least 3, so that a child's standard streams never take its place.
    let descriptor: Int32
    private let isLeft = Atomic<Bool>(false)

    /// Takes the lock; makes directory and file if they are not there.
    ///
    /// - Throws: `busy` if a process holds it, this one included; `unavailable` if directory or
    ///   file cannot be made, or are not safe to use: no domain is taken charge of then.
    init(of domain: UInt32, in directory: String) throws(GuestError) {
        let path = "\(directory)/domain-\(domain).lock"
        let folder = try DomainLock.open(directory, domain)
        defer { system_close(folder) }
        let file = system_openAt(folder, "domain-\(domain).lock")
        guard file >= 0 else { throw DomainLock.unavailable(path, domain, errno) }
        guard system_isRegularFile(file) else {
            system_close(file)
            throw GuestError(
                code: .unavailable,
                message: "\(path), the lock of domain \(domain), is no regular file; remove it")
        }
        guard system_lock(file) == 0 else {
            let code = errno
            let owner = system_readText(file)
            system_close(file)
            guard code == EWOULDBLOCK else { throw DomainLock.unavailable(path, domain, code) }
            throw DomainLock.busy(domain, owner, path)
        }
        system_writeText(file, "\(getpid())\n")
        descriptor = file
    }

    deinit {
        // Closing is not enough: a program that another thread is starting has every descriptor for
        // a moment.
        if !isLeft.load(ordering: .relaxed) { system_unlock(descriptor) }
        system_close(descriptor)
    }

    /// From here on the lock is held as long as the guard has its descriptor.
    func leaveToGuard() { isLeft.store(true, ordering: .relaxed) }

    /// Opens the directory, and makes it if it is not there.
    private static func open(_ directory: String, _ domain: UInt32) throws(GuestError) -> Int32 {
        if system_makeDirectory(directory) != 0 && errno != EEXIST {
            throw unavailable(directory, domain, errno)
        }
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { throw unavailable(directory, domain, errno) }
        guard system_isPrivate(folder) else {
            system_close(folder)
            throw GuestError(
                code: .unavailable,
                message: "\(directory), which keeps the locks of domains, is another user's or may "
                    + "be written by others; make it this user's with mode 0700")
        }
        return folder
    }

    private static func busy(_ domain: UInt32, _ owner: String, _ path: String) -> GuestError {
        let process = UInt32(owner.prefix { $0.isNumber })
        let holder =
            process == UInt32(getpid())
            ? "this process" : process.map { "process \($0), or its guard," } ?? "another process"
        return GuestError(
            code: .busy,
            message: "\(holder) has charge of domain \(domain) already (\(path)); end that first: "
                + "two checkpointers would take pages from each other's log")
    }

    private static func unavailable(
        _ path: String, _ domain: UInt32, _ code: Int32
    ) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "\(path), which keeps a second checkpointer from domain \(domain), cannot be "
                + "opened: \(String(cString: strerror(code))); run as root, or name a directory "
                + "that all checkpointers of this host use (XenDomain.Options.lockDirectory)",
            errno: code)
    }
}
