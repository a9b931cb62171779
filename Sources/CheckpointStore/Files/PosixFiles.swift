import Glibc
package import SystemPackage

/// Files of a directory of the system.
package final class PosixFiles: RepositoryFiles {
    private let root: FilePath
    private let largeWrites: LargeWrites.Limits

    package convenience init(root: FilePath) {
        self.init(root: root, largeWrites: LargeWrites.Limits())
    }

    /// - Parameter largeWrites: for tests: which writes go past the page cache, and how.
    init(root: FilePath, largeWrites: LargeWrites.Limits) {
        self.root = root
        self.largeWrites = largeWrites
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        let flags =
            switch mode {
            case .read: O_RDONLY
            case .update: O_RDWR
            case .create: O_RDWR | O_CREAT | O_TRUNC
            case .createNew: O_RDWR | O_CREAT | O_EXCL
            case .lock: O_RDWR | O_CREAT
            }
        let descriptor = system_open(absolute(path), flags, 0o666)
        guard descriptor >= 0 else { throw failure("open", path) }
        return PosixFile(descriptor: descriptor, path: absolute(path), largeWrites)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        if system_mkdir(absolute(path)) != 0 && errno != EEXIST {
            throw failure("mkdir", path)
        }
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        guard let names = system_names(absolute(directory)) else {
            throw failure("readdir", directory)
        }
        return names
    }

    package func syncDirectory(_ path: String) throws(FileError) {
        let descriptor = system_open(absolute(path), O_RDONLY | O_DIRECTORY, 0)
        guard descriptor >= 0 else { throw failure("open", path) }
        defer { system_close(descriptor) }
        if system_fsync(descriptor) != 0 {
            throw failure("fsync", path)
        }
    }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        if system_rename(absolute(path), absolute(newPath)) != 0 {
            throw failure("rename", path)
        }
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        if system_link(absolute(path), absolute(newPath)) != 0 {
            throw FileError(call: "link", path: path, errno: errno)
        }
    }

    package func remove(_ path: String) throws(FileError) {
        if system_unlink(absolute(path)) != 0 {
            throw failure("unlink", path)
        }
    }

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

    /// The error for the call that failed last.
    private func failure(_ call: String, _ path: String) -> FileError {
        let code = errno
        return FileError(call: call, path: absolute(path), errno: code)
    }

    private func absolute(_ path: String) -> String {
        path.isEmpty ? root.string : root.appending(path).string
    }
}

private final class PosixFile: RepositoryFile {
    private let descriptor: Int32
    private let path: String
    private let largeWrites: LargeWrites

    init(descriptor: Int32, path: String, _ limits: LargeWrites.Limits) {
        self.descriptor = descriptor
        self.path = path
        largeWrites = LargeWrites(to: descriptor, limits)
    }

    deinit {
        system_close(descriptor)
    }

    func byteCount() throws(FileError) -> UInt64 {
        var status = stat()
        if system_fstat(descriptor, &status) != 0 { throw failure("fstat") }
        return UInt64(status.st_size)
    }

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
        let middle = largeWrites.middle(of: bytes.count, at: Int(offset))
        guard !middle.isEmpty else { return try writeCached(bytes, at: offset) }
        let head = UnsafeRawBufferPointer(rebasing: bytes[..<middle.lowerBound])
        try writeCached(head, at: offset)
        let (done, code) = largeWrites.write(
            UnsafeRawBufferPointer(rebasing: bytes[middle]), at: Int(offset) + middle.lowerBound)
        guard code == 0 else { throw FileError(call: "pwrite", path: path, errno: code) }
        // What could not go past the cache goes through it, and says what is wrong if anything is.
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
            // Never seen for a file; without this it would be tried for ever.
            if count == 0 { throw FileError(call: "pwrite", path: path, errno: EIO) }
            done += count
        }
    }

    func startWriteback(_ range: Range<UInt64>) {
        system_startWriteback(descriptor, range)
    }

    func truncate(to byteCount: UInt64) throws(FileError) {
        if system_ftruncate(descriptor, Int(byteCount)) != 0 { throw failure("ftruncate") }
    }

    func sync() throws(FileError) {
        if system_fdatasync(descriptor) != 0 { throw failure("fdatasync") }
    }

    func tryLock() throws(FileError) -> Bool {
        if system_flock(descriptor) == 0 { return true }
        if errno == EWOULDBLOCK { return false }
        throw failure("flock")
    }

    private func failure(_ call: String) -> FileError {
        FileError(call: call, path: path, errno: errno)
    }
}
