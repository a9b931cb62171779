import CLinux
package import Glibc

// All system calls of the store, one function each; nothing else in this module calls libc for
// files. Results are the kernel's: -1 with errno set on failure.

private func retrying<T: FixedWidthInteger & SignedInteger>(_ call: () -> T) -> T {
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}

/// The same for a call that may grow a file: beyond the file size limit it fails with EFBIG instead
/// of ending the process (`setrlimit(2)`, RLIMIT_FSIZE).
private func growing<T: FixedWidthInteger & SignedInteger>(_ call: () -> T) -> T {
    let held = HeldSizeSignal()
    let result = retrying(call)
    held.release(mayHaveCome: result == -1 && errno == EFBIG)
    return result
}

/// SIGXFSZ blocked on this thread, so that writes beyond the file size limit fail like any others.
///
/// `release` must follow on the same thread. The process's signal handler and a signal that was
/// already pending are not affected.
package struct HeldSizeSignal {
    private var before = clinux_size_signal()

    package init() { clinux_hold_size_signal(&before) }

    /// - Parameter mayHaveCome: false if no call failed with EFBIG in between.
    package func release(mayHaveCome: Bool = true) {
        withUnsafePointer(to: before) { clinux_release_size_signal($0, mayHaveCome ? 1 : 0) }
    }
}

/// True if a file is close to the file size limit (`getrlimit(2)`).
///
/// LMDB reports a write that the limit cut short as a failed one.
package func system_isNearSizeLimit(_ name: String, in directory: Int32) -> Bool {
    var limit = rlimit()
    var status = stat()
    guard getrlimit(__rlimit_resource_t(1), &limit) == 0, limit.rlim_cur != rlim_t.max,
        system_stat(name, at: directory, &status) == 0
    else { return false }
    return UInt64(status.st_size) + (16 << 20) >= UInt64(limit.rlim_cur)
}

/// `open(2)`, with O_CLOEXEC.
func system_open(_ path: String, _ flags: Int32, _ mode: mode_t) -> Int32 {
    retrying { open(path, flags | O_CLOEXEC, mode) }
}

/// `openat(2)`, with O_CLOEXEC and O_NOFOLLOW: a symbolic link is an error, ELOOP.
///
/// Never blocks on a pipe's other end or a device's carrier.
func system_openat(
    _ directory: Int32, _ name: String, _ flags: Int32, _ mode: mode_t = 0
) -> Int32 {
    let all = flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY
    return retrying { openat(directory, name, all, mode) }
}

/// Opens a directory only for access to files in it: `open(2)`, O_PATH.
func system_openDirectory(_ path: String) -> Int32 {
    retrying { open(path, pathFlag | O_DIRECTORY | O_CLOEXEC) }
}

/// The same for a subdirectory of an open directory; a symbolic link is an error.
func system_openDirectory(at directory: Int32, _ name: String) -> Int32 {
    retrying { openat(directory, name, pathFlag | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW) }
}

/// O_PATH of asm-generic/fcntl.h, which the C library module does not expose.
private let pathFlag: Int32 = 0o10_000_000

/// Opens an open file again, for writing past the page cache: `open(2)`, O_DIRECT.
func system_openDirect(_ descriptor: Int32) -> Int32 {
    retrying { clinux_open_direct(descriptor) }
}

/// `close(2)`; not retried: on Linux the descriptor is closed whatever the result.
package func system_close(_ descriptor: Int32) {
    _ = close(descriptor)
}

/// `pread(2)`.
package func system_pread(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, _ offset: Int
) -> Int {
    retrying { pread(descriptor, buffer.baseAddress, buffer.count, offset) }
}

/// `pwrite(2)`.
package func system_pwrite(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, _ offset: Int)
    -> Int
{
    growing { pwrite(descriptor, bytes.baseAddress, bytes.count, offset) }
}

/// Creates a file without a name in a directory, for reading and writing: `open(2)`, O_TMPFILE.
func system_openUnnamed(in directory: Int32) -> Int32 {
    retrying { openat(directory, ".", clinux_unnamed_file | O_RDWR | O_CLOEXEC, 0o600) }
}

/// Allocates the blocks of a range of a file, and makes it as long (`posix_fallocate(3)`).
///
/// - Returns: 0 or the error number.
func system_allocate(_ descriptor: Int32, at offset: Int, _ byteCount: Int) -> Int32 {
    let held = HeldSizeSignal()
    var code = EINTR
    while code == EINTR { code = posix_fallocate(descriptor, offset, byteCount) }
    held.release(mayHaveCome: code == EFBIG)
    return code
}

/// Reserves disk space for a file's first bytes without changing its size (`fallocate(2)`).
///
/// - Returns: 0 or the error number; 0 where the file system does not support it.
package func system_reserve(_ descriptor: Int32, _ byteCount: Int) -> Int32 {
    let result = growing { clinux_reserve(descriptor, UInt64(byteCount)) }
    let code = result == 0 ? 0 : errno
    return code == EOPNOTSUPP || code == ENOSYS ? 0 : code
}

/// True if a file system has almost no space left (`fstatvfs(3)`), which explains a short write.
package func system_isFull(_ descriptor: Int32) -> Bool {
    var status = statvfs()
    guard fstatvfs(descriptor, &status) == 0 else { return false }
    return UInt64(status.f_bavail) * UInt64(status.f_frsize) < 4 << 20
}

/// `fdatasync(2)`.
func system_fdatasync(_ descriptor: Int32) -> Int32 {
    retrying { fdatasync(descriptor) }
}

/// `sync_file_range(2)`, starting the writeback only.
///
/// The flags that wait are never used: they would consume a write error that the next `fdatasync`
/// must report. Failures are harmless, and not all file systems support the call.
package func system_startWriteback(_ descriptor: Int32, _ range: Range<UInt64>) {
    _ = retrying {
        clinux_start_writeback(descriptor, range.lowerBound, UInt64(range.count))
    }
}

/// `fsync(2)`, for directories.
func system_fsync(_ descriptor: Int32) -> Int32 {
    retrying { fsync(descriptor) }
}

/// `ftruncate(2)`.
package func system_ftruncate(_ descriptor: Int32, _ byteCount: Int) -> Int32 {
    growing { ftruncate(descriptor, byteCount) }
}

/// `fstat(2)`.
package func system_fstat(_ descriptor: Int32, _ status: inout stat) -> Int32 {
    fstat(descriptor, &status)
}

/// `stat(2)`, or `fstatat(2)` of a name in an open directory, which follows no symbolic link.
func system_stat(_ path: String, at directory: Int32? = nil, _ status: inout stat) -> Int32 {
    guard let directory else { return stat(path, &status) }
    return fstatat(directory, path, &status, AT_SYMLINK_NOFOLLOW)
}

/// `flock(2)`, exclusive, without waiting.
func system_flock(_ descriptor: Int32) -> Int32 {
    retrying { flock(descriptor, LOCK_EX | LOCK_NB) }
}

/// `fcntl(2)`, F_OFD_SETLK: a lock that `system_isLocked` sees.
func system_announceLock(_ descriptor: Int32) -> Int32 {
    retrying { clinux_announce_lock(descriptor) }
}

/// `fcntl(2)`, F_OFD_GETLK: true if another holder has a write lock on the range; takes none.
///
/// - Parameter byteCount: 0: to the end of the file.
package func system_isLocked(_ descriptor: Int32, at offset: Int, _ byteCount: Int) -> Bool? {
    let result = retrying { clinux_is_locked(descriptor, Int64(offset), Int64(byteCount)) }
    return result < 0 ? nil : result == 1
}

/// `fchmod(2)`.
func system_fchmod(_ descriptor: Int32, _ mode: mode_t) -> Int32 {
    fchmod(descriptor, mode)
}

/// `geteuid(2)`.
package func system_user() -> UInt32 { geteuid() }

/// `getcwd(3)`; nil if the directory is gone or inaccessible.
func system_currentDirectory() -> String? {
    guard let path = getcwd(nil, 0) else { return nil }
    defer { free(path) }
    return String(cString: path)
}

/// `mkdir(2)`, accessible to the owner only.
func system_mkdir(_ path: String) -> Int32 {
    mkdir(path, 0o700)
}

/// `mkdirat(2)`, accessible to the owner only.
func system_mkdirat(_ directory: Int32, _ name: String) -> Int32 {
    mkdirat(directory, name, 0o700)
}

/// `renameat(2)`.
func system_renameat(
    _ directory: Int32, _ name: String, _ newDirectory: Int32, _ newName: String
) -> Int32 {
    renameat(directory, name, newDirectory, newName)
}

/// `linkat(2)`; of a symbolic link, the link itself.
func system_linkat(
    _ directory: Int32, _ name: String, _ newDirectory: Int32, _ newName: String
) -> Int32 {
    linkat(directory, name, newDirectory, newName, 0)
}

/// `unlinkat(2)`.
func system_unlinkat(_ directory: Int32, _ name: String) -> Int32 {
    unlinkat(directory, name, 0)
}

/// `unlink(2)`.
func system_unlink(_ path: String) -> Int32 {
    unlink(path)
}

/// `opendir(3)` and `readdir(3)`: the names in a directory, or nil with errno set.
func system_names(_ path: String) -> [String]? {
    guard let directory = opendir(path) else { return nil }
    return names(directory)
}

/// `fdopendir(3)` and `readdir(3)`: the names in an open directory, or nil with errno set.
func system_names(in directory: Int32) -> [String]? {
    let descriptor = system_openat(directory, ".", O_RDONLY | O_DIRECTORY)
    guard descriptor >= 0 else { return nil }
    guard let stream = fdopendir(descriptor) else {
        let code = errno
        system_close(descriptor)
        errno = code
        return nil
    }
    return names(stream)
}

/// Reads all names of a directory, and closes it.
private func names(_ directory: OpaquePointer) -> [String]? {
    defer { closedir(directory) }
    var names: [String] = []
    while true {
        errno = 0
        guard let entry = readdir(directory) else { break }
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name != "." && name != ".." { names.append(name) }
    }
    return errno == 0 ? names : nil
}

/// `mkdtemp(3)`: creates a directory whose path begins with `prefix`; nil with errno set.
func system_mkdtemp(_ prefix: String) -> String? {
    var template = Array((prefix + "XXXXXX").utf8CString)
    guard mkdtemp(&template) != nil else { return nil }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// `rmdir(2)`.
func system_rmdir(_ path: String) -> Int32 {
    rmdir(path)
}

/// `getenv(3)`.
func system_environment(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }
}
