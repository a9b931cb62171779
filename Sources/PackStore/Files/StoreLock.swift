import Glibc
import Synchronization

// The writer's lock is two locks, because each alone can be got around:
//
//  - `flock` of the file `lock`, which readers see without taking it. Whoever takes the file for a
//    stale one and removes it lets the next writer lock another file of that name.
//  - `flock` of the store's directory, which nobody can replace without moving the store. Some
//    file systems (NFS) lock no directories.
//
// Where the second cannot be had, the first is looked at besides: the file that was locked is known
// by device and inode, and every call that would change a file of the store asks first whether
// `lock` is still that file. Between the question and the change lies no lock, only the time of
// one call of the system.

/// The writer's lock on a store, as long as this process has it.
package final class StoreLock: Sendable {
    /// The file's name in the store's directory.
    package static let name = "lock"

    private struct Held: Sendable {
        let directory: OpenDirectory
        let identity: Identity
    }

    private let root: String
    private let absoluteRoot: String?
    private let held = Mutex<Held?>(nil)

    /// - Parameters:
    ///   - root: the store's directory, as messages name it.
    ///   - absoluteRoot: where it was when it was named; nil if that cannot be told.
    init(root: String, absoluteRoot: String?) {
        self.root = root
        self.absoluteRoot = absoluteRoot
    }

    /// Notes the file that was locked.
    ///
    /// - Returns: false if it is not, or no longer, the one of that name: whoever removed it meant
    ///   others to lock another.
    func take(_ file: stat, in directory: OpenDirectory) throws(FileError) -> Bool {
        let identity = Identity(file)
        guard let named = try directory.status(of: StoreLock.name), Identity(named) == identity
        else { return false }
        held.withLock { $0 = Held(directory: directory, identity: identity) }
        return true
    }

    /// Notes that the lock is about to be given up.
    func release() { held.withLock { $0 = nil } }

    /// Fails if the lock is held, and its file was removed or replaced: another writer may have
    /// come in, and whatever lies in the store may be its.
    ///
    /// If all of the store is gone, that is what is said.
    func check() throws(FileError) {
        guard let held = held.withLock({ $0 }) else { return }
        guard let named = try held.directory.status(of: StoreLock.name),
            Identity(named) == held.identity
        else {
            try checkRoot(held.directory)
            throw FileError(
                .lockLost, path: "\(held.directory.path)/\(StoreLock.name)", errno: ESTALE)
        }
    }

    /// Fails if the path at which the store was opened leads to something else now.
    func checkRoot(_ directory: OpenDirectory) throws(FileError) {
        guard let absoluteRoot else { return }
        func moved(_ what: String) -> FileError {
            FileError(.moved(what), path: root, errno: ESTALE)
        }
        var status = stat()
        if system_stat(absoluteRoot, &status) != 0 {
            let code = errno
            guard [ENOENT, ENOTDIR, ELOOP].contains(code) else {
                throw FileError(call: "stat", path: root, errno: code)
            }
            throw moved("was moved or removed")
        }
        guard Identity(status) == Identity(try directory.status()) else {
            throw moved("was moved, and something else took its place,")
        }
    }
}

/// The file `lock`, open: one try at the writer's lock.
///
/// What it has locked is given up when it is released.
final class StoreLockFile: RepositoryFile {
    private let file: PosixFile
    private let directory: OpenDirectory
    private let lock: StoreLock
    /// The store's directory, open to be locked; nil if it is not to be.
    private let directoryDescriptor: Int32?
    private let isTaken = Atomic<Bool>(false)

    /// - Parameter locksDirectory: false: as if the file system could not.
    init(
        _ file: PosixFile, in directory: OpenDirectory, _ lock: StoreLock, locksDirectory: Bool
    ) throws(FileError) {
        self.file = file
        self.directory = directory
        self.lock = lock
        guard locksDirectory else {
            directoryDescriptor = nil
            return
        }
        let descriptor = system_openat(directory.descriptor, ".", O_RDONLY | O_DIRECTORY)
        directoryDescriptor = descriptor
        guard descriptor >= 0 else {
            throw FileError(call: "open", path: directory.path, errno: errno)
        }
    }

    deinit {
        if isTaken.load(ordering: .relaxed) { lock.release() }
        if let directoryDescriptor, directoryDescriptor >= 0 {
            system_close(directoryDescriptor)
        }
    }

    func tryLock() throws(FileError) -> Bool {
        // Any other answer: directories are not locked there.
        if let directoryDescriptor, system_flock(directoryDescriptor) != 0, errno == EWOULDBLOCK {
            return false
        }
        guard try file.tryLock(), try lock.take(try file.status(), in: directory) else {
            return false
        }
        isTaken.store(true, ordering: .relaxed)
        return true
    }

    func byteCount() throws(FileError) -> UInt64 { try file.byteCount() }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int { try file.read(into: buffer, at: offset) }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        try file.write(bytes, at: offset)
    }

    func startWriteback(_ range: Range<UInt64>) { file.startWriteback(range) }
    func truncate(to byteCount: UInt64) throws(FileError) { try file.truncate(to: byteCount) }
    func sync() throws(FileError) { try file.sync() }
    func isLocked() throws(FileError) -> Bool { try file.isLocked() }
}
