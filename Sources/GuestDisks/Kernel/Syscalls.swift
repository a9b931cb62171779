import CLinux
import Glibc
import Synchronization
import SystemPackage

// Every kernel call of this module, one function each; nothing else here calls the kernel, but for
// the start of programs (Program.swift) and libdevmapper (LibdevmapperCalls.swift).
// `KernelFault` sees each of them first, so that a test can count, trace and fail them.

/// Lets a test intercept this module's kernel calls on the test's own thread.
package enum KernelFault {
    /// Called before each call with its name; an error number makes the call fail with it.
    package typealias Hook = @Sendable (_ call: String) -> Int32?

    private static let isSet = Atomic(false)
    private static let hooks = Mutex<[pthread_t: Hook]>([:])

    /// Sets or removes the hook of this thread only, because other tests run in parallel.
    package static func set(_ hook: Hook?) {
        hooks.withLock { hooks in
            hooks[pthread_self()] = hook
            isSet.store(!hooks.isEmpty, ordering: .releasing)
        }
    }

    fileprivate static func fails(_ call: String) -> Bool {
        guard isSet.load(ordering: .acquiring),
            let hook = hooks.withLock({ $0[pthread_self()] }),
            let code = hook(call)
        else { return false }
        errno = code
        return true
    }
}

private func retrying<T: FixedWidthInteger & SignedInteger>(
    _ name: String, _ call: () -> T
) -> T {
    if KernelFault.fails(name) { return -1 }
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}

/// `open(2)`, with O_CLOEXEC.
func system_open(_ path: FilePath, _ flags: Int32, _ mode: mode_t = 0) -> Int32 {
    retrying("open") { path.withPlatformString { open($0, flags | O_CLOEXEC, mode) } }
}

/// `open(2)` past the page cache, reading only.
func system_openDirect(_ path: FilePath) -> Int32 {
    // `__O_DIRECT` of the kernel's asm/fcntl.h, which the C library's module hides.
    #if arch(arm64) || arch(arm)
        let direct: Int32 = 0o200_000
    #else
        let direct: Int32 = 0o40_000
    #endif
    return system_open(path, O_RDONLY | direct)
}

/// `close(2)`; not retried: on Linux the descriptor is closed whatever it returns.
func system_close(_ descriptor: Int32) { _ = close(descriptor) }

/// `fstat(2)`.
func system_fstat(_ descriptor: Int32, _ status: inout stat) -> Int32 {
    retrying("fstat") { fstat(descriptor, &status) }
}

/// `stat(2)`.
func system_stat(_ path: FilePath, _ status: inout stat) -> Int32 {
    retrying("stat") { path.withPlatformString { stat($0, &status) } }
}

/// `lstat(2)`.
func system_lstat(_ path: FilePath, _ status: inout stat) -> Int32 {
    retrying("lstat") { path.withPlatformString { lstat($0, &status) } }
}

/// `realpath(3)`; nil on failure.
func system_realpath(_ path: FilePath) -> FilePath? {
    if KernelFault.fails("realpath") { return nil }
    return path.withPlatformString {
        guard let found = realpath($0, nil) else { return nil }
        defer { free(found) }
        return FilePath(platformString: found)
    }
}

/// `readlink(2)`; nil if it is not a symbolic link, or does not exist.
func system_readlink(_ path: FilePath) -> [UInt8]? {
    var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
    let room = buffer.count
    let count = retrying("readlink") {
        path.withPlatformString { readlink($0, &buffer, room) }
    }
    return count > 0 ? buffer[..<count].map { UInt8(bitPattern: $0) } : nil
}

/// `pread(2)`.
func system_pread(
    _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: Int
) -> Int {
    retrying("pread") { pread(descriptor, bytes.baseAddress, bytes.count, off_t(offset)) }
}

/// `pwrite(2)`.
func system_pwrite(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int) -> Int {
    retrying("pwrite") { pwrite(descriptor, bytes.baseAddress, bytes.count, off_t(offset)) }
}

/// `posix_fadvise(3)`, POSIX_FADV_DONTNEED: only advice, so failures do not matter.
func system_forget(_ descriptor: Int32, _ bytes: Range<Int>) {
    _ = posix_fadvise(
        descriptor, off_t(bytes.lowerBound), off_t(bytes.count), POSIX_FADV_DONTNEED)
}

/// `lseek(2)`, SEEK_DATA: the offset of the next data; -1 and ENXIO if there is none.
func system_seekData(_ descriptor: Int32, _ offset: Int) -> Int {
    // Linux's number; the headers hide it under _GNU_SOURCE.
    retrying("lseek") { lseek(descriptor, off_t(offset), 3) }
}

/// `lseek(2)`, SEEK_HOLE: the offset of the next hole, or the end of the file.
func system_seekHole(_ descriptor: Int32, _ offset: Int) -> Int {
    retrying("lseek") { lseek(descriptor, off_t(offset), 4) }
}

/// `fsync(2)`.
func system_fsync(_ descriptor: Int32) -> Int32 {
    retrying("fsync") { fsync(descriptor) }
}

/// `fdatasync(2)`.
func system_fdatasync(_ descriptor: Int32) -> Int32 {
    retrying("fdatasync") { fdatasync(descriptor) }
}

/// `ftruncate(2)`.
func system_resize(_ descriptor: Int32, _ byteCount: Int) -> Int32 {
    retrying("ftruncate") { ftruncate(descriptor, byteCount) }
}

/// `ftruncate(2)` to nothing.
func system_truncate(_ descriptor: Int32) -> Int32 {
    retrying("ftruncate") { ftruncate(descriptor, 0) }
}

/// `unlink(2)`.
func system_unlink(_ path: FilePath) -> Int32 {
    retrying("unlink") { path.withPlatformString { unlink($0) } }
}

/// `rename(2)`.
func system_rename(_ path: FilePath, _ newPath: FilePath) -> Int32 {
    retrying("rename") {
        path.withPlatformString { old in newPath.withPlatformString { rename(old, $0) } }
    }
}

/// `mkdir(2)`, accessible only to this user.
func system_makeDirectory(_ path: FilePath) -> Int32 {
    retrying("mkdir") { path.withPlatformString { mkdir($0, 0o700) } }
}

/// `mknod(2)`: a block device, accessible only to this user.
func system_makeNode(_ path: FilePath, _ number: dev_t) -> Int32 {
    retrying("mknod") { path.withPlatformString { mknod($0, S_IFBLK | 0o600, number) } }
}

/// The names in a directory, without `.` and `..`; nil with errno set on failure.
///
/// `opendir(3)`, `readdir(3)`.
func system_list(_ path: FilePath) -> [String]? {
    if KernelFault.fails("opendir") { return nil }
    guard let stream = path.withPlatformString({ opendir($0) }) else { return nil }
    defer { closedir(stream) }
    var names: [String] = []
    errno = 0
    while let entry = readdir(stream) {
        // In place: the record ends with the name, and the type has room for the longest one.
        let name = withUnsafePointer(to: &entry.pointee.d_name) { bytes in
            String(cString: UnsafeRawPointer(bytes).assumingMemoryBound(to: CChar.self))
        }
        if name != "." && name != ".." { names.append(name) }
    }
    return errno == 0 ? names : nil
}

/// `flock(2)`, exclusive, without waiting.
func system_lock(_ descriptor: Int32) -> Int32 {
    retrying("flock") { flock(descriptor, LOCK_EX | LOCK_NB) }
}

/// `flock(2)`: unlocks, even if other processes have descriptors of the same open file.
func system_unlock(_ descriptor: Int32) { _ = flock(descriptor, LOCK_UN) }

/// `ioctl(FICLONE)`.
func system_clone(_ descriptor: Int32, from source: Int32) -> Int32 {
    retrying("FICLONE") { clinux_clone_file(descriptor, source) }
}

/// `ioctl(FICLONERANGE)` of a file's beginning.
func system_cloneBeginning(_ descriptor: Int32, from source: Int32, _ byteCount: Int) -> Int32 {
    retrying("FICLONERANGE") {
        clinux_clone_beginning(descriptor, source, UInt64(byteCount))
    }
}

/// `ioctl(FS_IOC_GETFLAGS)`: 1 if a file is written in place.
func system_isNocow(_ descriptor: Int32) -> Int32 {
    retrying("FS_IOC_GETFLAGS") { clinux_is_nocow(descriptor) }
}

/// `ioctl(FS_IOC_SETFLAGS)`, for an empty file.
func system_setNocow(_ descriptor: Int32) -> Int32 {
    retrying("FS_IOC_SETFLAGS") { clinux_set_nocow(descriptor) }
}

/// `ioctl(FS_IOC_FIEMAP)`.
func system_extents(
    _ descriptor: Int32, from start: UInt64, _ extents: inout [clinux_extent]
) -> Int32 {
    retrying("FS_IOC_FIEMAP") {
        clinux_extents(descriptor, start, &extents, UInt32(extents.count))
    }
}

/// `fstatfs(2)`: the magic number of the file system; nil on failure.
func system_fileSystem(_ descriptor: Int32) -> UInt32? {
    var magic: UInt32 = 0
    return retrying("fstatfs") { clinux_file_system(descriptor, &magic) } == 0 ? magic : nil
}

/// `ioctl(BLKGETSIZE64)`.
func system_deviceSize(_ descriptor: Int32, _ byteCount: inout UInt64) -> Int32 {
    retrying("BLKGETSIZE64") { clinux_device_size(descriptor, &byteCount) }
}

/// `ioctl(BLKSSZGET)`.
func system_deviceSector(_ descriptor: Int32, _ byteCount: inout Int32) -> Int32 {
    retrying("BLKSSZGET") { clinux_device_sector(descriptor, &byteCount) }
}

/// `usleep(3)`.
func system_sleep(microseconds: UInt32) { usleep(microseconds) }

/// `poll(2)` of one descriptor: true if it can be read, or its other end was closed; false when the
/// milliseconds are over, or a signal came.
func system_isReadable(_ descriptor: Int32, within milliseconds: Int32) -> Bool {
    var waited = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&waited, 1, milliseconds) > 0
}
