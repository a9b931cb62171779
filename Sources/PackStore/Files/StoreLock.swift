import Glibc
import Synchronization

// The writer's lock consists of two locks, because either alone can be circumvented:
//
//  - `flock` of the file `lock`, which readers can see without taking it. If a user removes the
//    file as stale, the next writer locks another file of that name.
//  - `flock` of the store's directory, which cannot be replaced without moving the store. Some file
//    systems (NFS) do not lock directories.
//
// Where the second is unavailable, the first is also verified: the file that was locked is
// identified by device and inode, and every call that would change a file of the store first checks
// that `lock` is still that file. Only the time of one system call lies between the check and the
// change.

/// The writer's lock on a store, held by this process.
package final class StoreLock: Sendable {
    /// The name of the lock file in the store's directory.
    package static let name = "lock"

    private struct Held: Sendable {
        let directory: OpenDirectory
        let identity: Identity
    }

    private let root: String
    private let absoluteRoot: String?
    private let held = Mutex<Held?>(nil)

    /// - Parameters:
    ///   - root: the store's directory, as shown in messages.
    ///   - absoluteRoot: its absolute path when it was opened; nil if unknown.
    init(root: String, absoluteRoot: String?) {
        self.root = root
        self.absoluteRoot = absoluteRoot
    }

    /// Records the file that was locked.
    ///
    /// - Returns: false if the file does not, or no longer, have that name: it was removed so that
    ///   others lock another file.
    func take(_ file: stat, in directory: OpenDirectory) throws(FileError) -> Bool {
        let identity = Identity(file)
        guard let named = try directory.status(of: StoreLock.name), Identity(named) == identity
        else { return false }
        held.withLock { $0 = Held(directory: directory, identity: identity) }
        return true
    }

    /// Records that the lock is about to be released.
    func release() { held.withLock { $0 = nil } }

    /// Fails if the lock is held and its file was removed or replaced: another writer may have
    /// opened the store, and any file in it may be that writer's.
    ///
    /// If the whole store is gone, the error says so instead.
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

    /// Fails if the path at which the store was opened now leads elsewhere.
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

/// The file `lock`, open: one attempt at the writer's lock.
///
/// Its locks end when it is released.
final class StoreLockFile: RepositoryFile {
    private let file: PosixFile
    private let directory: OpenDirectory
    private let lock: StoreLock
    /// The store's directory, opened for locking; nil if it is not to be locked.
    private let directoryDescriptor: Int32?
    private let isTaken = Atomic<Bool>(false)

    /// - Parameter locksDirectory: false to behave as if the file system did not support it.
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
        // Any other error: directories cannot be locked there.
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
