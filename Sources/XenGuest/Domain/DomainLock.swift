import Glibc
import GuestModel
import Synchronization

// Among all processes of dom0, a domain's owner is the one that has its lock file, and so is its
// monitor.
//
//   /run/varve                  0700, owned by this user
//   /run/varve/domain-7.lock    0600; locked by flock(2), contains the owner's process ID
//   /run/varve/monitor-7.lock   the monitor's, likewise
//
// The kernel releases a lock with the last descriptor of its file, so a process that dies leaves
// none. The guard inherits the descriptor: even if the checkpointer is dead, no other process owns
// the domain before the guard is done with it. The file stays, without meaning: removing it would
// let two processes lock two files of one name.

/// The lock of one domain, until this is released.
final class DomainLock: Sendable {
    /// What the holder of a lock does with the domain.
    enum Role: String {
        case owner = "domain"
        case monitor

        fileprivate var excluded: String {
            self == .owner ? "a second checkpointer" : "a second monitor"
        }
    }

    /// At least 3, so that it is never one of a child's standard streams.
    let descriptor: Int32
    private let isLeft = Atomic<Bool>(false)

    /// Takes the lock; creates directory and file if they are missing.
    ///
    /// - Throws: `busy` if a process holds it, this one included; `unavailable` if directory or
    ///   file cannot be created, or are not safe to use: the domain is not taken over then.
    init(
        of domain: UInt32, as role: Role = .owner, in directory: String
    ) throws(GuestError) {
        let name = "\(role.rawValue)-\(domain).lock"
        let path = "\(directory)/\(name)"
        let folder = try DomainLock.open(directory, domain, role)
        defer { system_close(folder) }
        let file = system_openAt(folder, name)
        guard file >= 0 else { throw DomainLock.unavailable(path, domain, role, errno) }
        guard system_isRegularFile(file) else {
            system_close(file)
            throw GuestError(
                code: .unavailable,
                message: "\(path), the lock of domain \(domain), is not a regular file; remove it")
        }
        guard system_lock(file) == 0 else {
            let code = errno
            let owner = system_readText(file)
            system_close(file)
            guard code == EWOULDBLOCK else {
                throw DomainLock.unavailable(path, domain, role, code)
            }
            throw DomainLock.busy(domain, role, owner, path)
        }
        system_writeText(file, "\(getpid())\n")
        descriptor = file
    }

    deinit {
        // Closing is not enough: a program that another thread is starting briefly has every
        // descriptor.
        if !isLeft.load(ordering: .relaxed) { system_unlock(descriptor) }
        system_close(descriptor)
    }

    /// From here on the lock is held as long as the guard has its descriptor.
    func leaveToGuard() { isLeft.store(true, ordering: .relaxed) }

    /// Opens the directory, and creates it if it is missing.
    private static func open(
        _ directory: String, _ domain: UInt32, _ role: Role
    ) throws(GuestError) -> Int32 {
        if system_makeDirectory(directory) != 0 && errno != EEXIST {
            throw unavailable(directory, domain, role, errno)
        }
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { throw unavailable(directory, domain, role, errno) }
        guard system_isPrivate(folder) else {
            system_close(folder)
            throw GuestError(
                code: .unavailable,
                message: "\(directory), which has the locks of domains, is another user's or may "
                    + "be written by others; give it to this user with mode 0700")
        }
        return folder
    }

    private static func busy(
        _ domain: UInt32, _ role: Role, _ owner: String, _ path: String
    ) -> GuestError {
        let process = UInt32(owner.prefix { $0.isNumber })
        let holder =
            process == UInt32(getpid())
            ? "this process" : process.map { "process \($0), or its guard," } ?? "another process"
        guard role == .owner else {
            return GuestError(
                code: .busy, message: "\(holder) already monitors domain \(domain) (\(path))")
        }
        return GuestError(
            code: .busy,
            message: "\(holder) already owns domain \(domain) (\(path)); end that first: "
                + "two checkpointers would take pages from each other's log")
    }

    private static func unavailable(
        _ path: String, _ domain: UInt32, _ role: Role, _ code: Int32
    ) -> GuestError {
        GuestError(
            code: .unavailable,
            message: "\(path), which excludes \(role.excluded) of domain \(domain), cannot be "
                + "opened: \(String(cString: strerror(code))); run as root, or name a directory "
                + "that all checkpointers of this host use (XenDomain.Options.lockDirectory)",
            errno: code)
    }
}
