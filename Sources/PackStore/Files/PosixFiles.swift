import Glibc
import Synchronization
package import SystemPackage

// The directory is opened once, and everything in it is named relative to it: neither `chdir` nor a
// rename of a directory on the path leads a session to other files. Only regular files are opened
// in it, and no symbolic link is followed, so a store created by another user reaches nothing
// outside itself. While a writer has the lock, each change first checks that it still has it
// (`StoreLock`). New files are accessible to the owner only, whatever the umask; packs also to
// those who may read the file `repository`.

/// The files of a directory of the file system.
package final class PosixFiles: RepositoryFiles {
    private struct State: Sendable {
        /// nil until the directory exists.
        var directory: OpenDirectory?
        /// The file that identifies the repository; nil until it was read.
        var envelope: Seen?
        /// The packs that were opened for writing.
        var packs: [String: Identity] = [:]
    }

    /// A small file as it was last read.
    private struct Seen: Sendable {
        static let byteCountMax = 4096

        let identity: Identity
        let changeSeconds: Int
        let changeNanoseconds: Int
        let bytes: [UInt8]

        /// True if the file cannot have changed since.
        func isUnchanged(_ status: stat) -> Bool {
            Identity(status) == identity && status.st_ctim.tv_sec == changeSeconds
                && status.st_ctim.tv_nsec == changeNanoseconds
        }
    }

    private let root: FilePath
    private let absoluteRoot: String?
    private let largeWrites: LargeWrites.Limits
    private let locksDirectory: Bool
    private let lock: StoreLock
    private let state = Mutex(State())

    /// - Parameter root: the directory; it need not exist yet. A relative path is resolved against
    ///   the current working directory.
    package convenience init(root: FilePath) {
        self.init(root: root, largeWrites: LargeWrites.Limits())
    }

    /// - Parameter locksDirectory: for tests: false to behave as on a file system without directory
    ///   locks.
    package convenience init(root: FilePath, locksDirectory: Bool) {
        self.init(
            root: root, largeWrites: LargeWrites.Limits(), locksDirectory: locksDirectory)
    }

    /// - Parameter largeWrites: for tests: which writes bypass the page cache, and how.
    init(root: FilePath, largeWrites: LargeWrites.Limits, locksDirectory: Bool = true) {
        self.root = root
        absoluteRoot = OpenDirectory.absolute(root.string)
        self.largeWrites = largeWrites
        self.locksDirectory = locksDirectory
        lock = StoreLock(root: root.string, absoluteRoot: absoluteRoot)
    }

    // MARK: - Directories

    /// The directory, opened on first use.
    private func rootDirectory(_ call: String) throws(FileError) -> OpenDirectory {
        try state.withLock { (state) throws(FileError) in
            if let directory = state.directory { return directory }
            do throws(FileError) {
                let directory = try OpenDirectory(absoluteRoot ?? root.string, named: root.string)
                state.directory = directory
                return directory
            } catch {
                throw FileError(call: call, path: root.string, errno: error.errno)
            }
        }
    }

    package func foreignOwner() throws(FileError) -> UInt32? {
        let owner = try rootDirectory("open").status().st_uid
        return owner == system_user() ? nil : owner
    }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try openDirectory(path, "open")
    }

    private func openDirectory(
        _ path: String, _ call: String
    ) throws(FileError) -> OpenDirectory {
        let root = try rootDirectory(call)
        return path.isEmpty ? root : try OpenDirectory(path, in: root)
    }

    /// The directory of a file, and the file's name in it.
    private func place(
        of path: String, _ call: String
    ) throws(FileError) -> (directory: OpenDirectory, name: String) {
        guard let slash = path.firstIndex(of: "/") else { return (try rootDirectory(call), path) }
        let name = String(path[path.index(after: slash)...])
        precondition(!name.contains("/") && !name.isEmpty, "a store's directories are not nested")
        return (try openDirectory(String(path[..<slash]), call), name)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        let result: Int32
        if path.isEmpty {
            result = system_mkdir(absoluteRoot ?? root.string)
        } else {
            let directory = try rootDirectory("mkdir")
            result = withExtendedLifetime(directory) { system_mkdirat(directory.descriptor, path) }
        }
        if result != 0 && errno != EEXIST { throw failure("mkdir", path) }
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        let open = try openDirectory(directory, "readdir")
        guard let names = system_names(in: open.descriptor) else {
            throw failure("readdir", directory)
        }
        return names
    }

    package func syncDirectory(_ path: String) throws(FileError) {
        let directory = try openDirectory(path, "open")
        let descriptor = system_openat(directory.descriptor, ".", O_RDONLY | O_DIRECTORY)
        guard descriptor >= 0 else { throw failure("open", path) }
        defer { system_close(descriptor) }
        if system_fsync(descriptor) != 0 { throw failure("fsync", path) }
    }

    // MARK: - Files

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        let (directory, name) = try place(of: path, "open")
        if mode == .create || mode == .createNew { try checkLock(path) }
        let descriptor =
            switch mode {
            case .read: try directory.open(name, O_RDONLY)
            case .update: try directory.open(name, O_RDWR)
            case .create: try create(name, in: directory, try permissions(of: path))
            case .createNew:
                try createNew(name, in: directory, try permissions(of: path))
            case .lock: try directory.open(name, O_RDWR | O_CREAT, PosixFiles.ownerOnly)
            }
        let isGuarded = mode != .read && PosixFiles.isGuarded(path)
        let file = PosixFile(
            descriptor: descriptor, path: absolute(path), largeWrites,
            lock: isGuarded ? lock : nil)
        try note(file, path, mode)
        guard mode == .lock, path == StoreLock.name else { return file }
        return try StoreLockFile(file, in: directory, lock, locksDirectory: locksDirectory)
    }

    /// False for files that belong to the process that created them and not to the writer.
    private static func isGuarded(_ path: String) -> Bool {
        !path.hasPrefix("\(StoreDirectory.leases)/")
    }

    /// Fails if a file may by now belong to another writer.
    private func checkLock(_ path: String) throws(FileError) {
        if PosixFiles.isGuarded(path) { try lock.check() }
    }

    private func createNew(
        _ name: String, in directory: OpenDirectory, _ mode: mode_t
    ) throws(FileError) -> Int32 {
        let descriptor = system_openat(
            directory.descriptor, name, O_RDWR | O_CREAT | O_EXCL, mode)
        guard descriptor >= 0 else {
            throw FileError(call: "open", path: "\(directory.path)/\(name)", errno: errno)
        }
        PosixFiles.permit(descriptor, mode)
        return descriptor
    }

    /// Applies the requested mode whatever the umask; on failure the file stays owner-only.
    private static func permit(_ descriptor: Int32, _ mode: mode_t) {
        if mode != ownerOnly { _ = system_fchmod(descriptor, mode) }
    }

    /// Creates a file, or truncates an existing one.
    ///
    /// A file with more than one link is removed instead: the other link may be a user's own file,
    /// which the store must not change.
    private func create(
        _ name: String, in directory: OpenDirectory, _ mode: mode_t
    ) throws(FileError) -> Int32 {
        if let status = try directory.status(of: name), status.st_mode & S_IFMT == S_IFREG,
            status.st_nlink > 1
        {
            _ = system_unlinkat(directory.descriptor, name)
        }
        let descriptor = try directory.open(name, O_RDWR | O_CREAT, mode)
        if system_ftruncate(descriptor, 0) == 0 {
            PosixFiles.permit(descriptor, mode)
            return descriptor
        }
        let code = errno
        system_close(descriptor)
        throw FileError(call: "ftruncate", path: "\(directory.path)/\(name)", errno: code)
    }

    /// Permissions of a new file.
    private static let ownerOnly: mode_t = 0o600

    /// Packs and the head are readable by those who may read the file `repository`: an owner who
    /// grants access to that file and the existing packs need not do so again for each new pack.
    private func permissions(of path: String) throws(FileError) -> mode_t {
        guard path.hasPrefix("\(StoreDirectory.packs)/") || path == StoreHead.path + ".new",
            let status = try rootDirectory("open").status(of: PosixFiles.envelopeName)
        else { return PosixFiles.ownerOnly }
        return PosixFiles.ownerOnly | status.st_mode & 0o044
    }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        let (directory, name) = try place(of: path, "rename")
        let (newDirectory, newName) = try place(of: newPath, "rename")
        try checkLock(path)
        let result = system_renameat(
            directory.descriptor, name, newDirectory.descriptor, newName)
        if result != 0 { throw failure("rename", path) }
        if newPath == PosixFiles.envelopeName { state.withLock { $0.envelope = nil } }
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        let (directory, name) = try place(of: path, "link")
        let (newDirectory, newName) = try place(of: newPath, "link")
        try checkLock(path)
        let result = system_linkat(directory.descriptor, name, newDirectory.descriptor, newName)
        if result != 0 { throw FileError(call: "link", path: path, errno: errno) }
    }

    package func remove(_ path: String) throws(FileError) {
        let (directory, name) = try place(of: path, "unlink")
        try checkLock(path)
        if system_unlinkat(directory.descriptor, name) != 0 { throw failure("unlink", path) }
    }

    // MARK: - Whether it is still there

    private static let envelopeName = "repository"

    /// Records what `checkPlace` checks later.
    private func note(
        _ file: PosixFile, _ path: String, _ mode: FileMode
    ) throws(FileError) {
        if path == PosixFiles.envelopeName {
            let seen = try see(file)
            state.withLock { if $0.envelope == nil { $0.envelope = seen } }
        } else if mode == .update || mode == .createNew {
            let identity = Identity(try file.status())
            state.withLock { $0.packs[path] = identity }
        }
    }

    private func see(_ file: PosixFile) throws(FileError) -> Seen {
        let status = try file.status()
        return Seen(
            identity: Identity(status), changeSeconds: status.st_ctim.tv_sec,
            changeNanoseconds: status.st_ctim.tv_nsec,
            bytes: try file.readBytes(Seen.byteCountMax, at: 0))
    }

    package func checkPlace(writing pack: String?) throws(FileError) {
        let directory = try rootDirectory("stat")
        try lock.checkRoot(directory)
        try lock.check()
        let (envelope, writes) = state.withLock { state in
            (state.envelope, pack.flatMap { state.packs[$0] })
        }
        if let pack, let writes {
            guard let status = try directory.status(of: pack), Identity(status) == writes else {
                throw moved("lost \(pack)")
            }
        }
        guard let envelope else { return }
        guard let status = try directory.status(of: PosixFiles.envelopeName) else {
            throw moved("was removed or emptied")
        }
        if envelope.isUnchanged(status) { return }
        // Its owner was changed, for example, or a copy was put in its place.
        let now = try see(
            PosixFile(
                descriptor: try directory.open(PosixFiles.envelopeName, O_RDONLY),
                path: absolute(PosixFiles.envelopeName), largeWrites, lock: nil))
        guard now.bytes == envelope.bytes else { throw moved("became another repository") }
        state.withLock { $0.envelope = now }
    }

    private func moved(_ what: String) -> FileError {
        FileError(.moved(what), path: root.string, errno: ESTALE)
    }

    // MARK: - The machine

    package var bootID: [UInt8] { PosixFiles.bootID }

    private static let bootID: [UInt8] = {
        let descriptor = system_open("/proc/sys/kernel/random/boot_id", O_RDONLY, 0)
        guard descriptor >= 0 else { return Array("unknown".utf8) }
        defer { system_close(descriptor) }
        let bytes = [UInt8](unsafeUninitializedCapacity: 36) { buffer, count in
            count = max(0, system_pread(descriptor, UnsafeMutableRawBufferPointer(buffer), 0))
        }
        return bytes.isEmpty ? Array("unknown".utf8) : bytes
    }()

    /// The error for the most recent failed call.
    private func failure(_ call: String, _ path: String) -> FileError {
        let code = errno
        return FileError(call: call, path: absolute(path), errno: code)
    }

    private func absolute(_ path: String) -> String {
        path.isEmpty ? root.string : root.appending(path).string
    }
}

/// An open file of the file system.
final class PosixFile: RepositoryFile {
    private let descriptor: Int32
    private let path: String
    private let lock: StoreLock?
    private let largeWrites: LargeWrites

    /// - Parameter lock: the lock that must be held for each change; nil if none is needed.
    init(descriptor: Int32, path: String, _ limits: LargeWrites.Limits, lock: StoreLock?) {
        self.descriptor = descriptor
        self.path = path
        self.lock = lock
        largeWrites = LargeWrites(to: descriptor, limits)
    }

    deinit {
        system_close(descriptor)
    }

    /// Its `fstat(2)` result.
    func status() throws(FileError) -> stat {
        var status = stat()
        if system_fstat(descriptor, &status) != 0 { throw failure("fstat") }
        return status
    }

    func byteCount() throws(FileError) -> UInt64 { UInt64(try status().st_size) }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        var done = 0
        while done < buffer.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let count = system_pread(descriptor, rest, Int(offset) + done)
            if count < 0 { throw failure("pread") }
            if count == 0 { break }
            done += count
        }
        return done
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        try lock?.check()
        let middle = largeWrites.middle(of: bytes.count, at: Int(offset))
        guard !middle.isEmpty else { return try writeCached(bytes, at: offset) }
        let head = UnsafeRawBufferPointer(rebasing: bytes[..<middle.lowerBound])
        try writeCached(head, at: offset)
        let (done, code) = largeWrites.write(
            UnsafeRawBufferPointer(rebasing: bytes[middle]), at: Int(offset) + middle.lowerBound)
        guard code == 0 else { throw FileError(call: "pwrite", path: path, errno: code) }
        // What could not bypass the cache is written through it, which reports the error if there
        // is one.
        let rest = bytes[(middle.lowerBound + done)...]
        try writeCached(
            UnsafeRawBufferPointer(rebasing: rest), at: offset + UInt64(rest.startIndex))
    }

    private func writeCached(
        _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(FileError) {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = system_pwrite(descriptor, rest, Int(offset) + done)
            if count < 0 { throw failure("pwrite") }
            // Never seen for a file; without this check it would be retried forever.
            if count == 0 { throw FileError(call: "pwrite", path: path, errno: EIO) }
            done += count
        }
    }

    func startWriteback(_ range: Range<UInt64>) {
        system_startWriteback(descriptor, range)
    }

    func truncate(to byteCount: UInt64) throws(FileError) {
        try lock?.check()
        if system_ftruncate(descriptor, Int(byteCount)) != 0 { throw failure("ftruncate") }
    }

    func sync() throws(FileError) {
        if system_fdatasync(descriptor) != 0 { throw failure("fdatasync") }
    }

    func tryLock() throws(FileError) -> Bool {
        if system_flock(descriptor) == 0 {
            // A lock of `flock` cannot be seen without trying to take it, which could make a writer
            // that starts at that moment fail. Best effort: a reader that does not see it reads on
            // regardless.
            _ = system_announceLock(descriptor)
            return true
        }
        if errno == EWOULDBLOCK { return false }
        throw failure("flock")
    }

    func isLocked() throws(FileError) -> Bool {
        guard let isLocked = system_isLocked(descriptor, at: 0, 0) else { throw failure("fcntl") }
        return isLocked
    }

    private func failure(_ call: String) -> FileError {
        FileError(call: call, path: path, errno: errno)
    }
}
