import CLinux
import Glibc
import Synchronization
import SystemPackage

// Every kernel call of this module, one function each; nothing else here calls the kernel.
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

/// Like `retrying`, for a call that may enlarge a file: beyond the file size limit it fails with
/// EFBIG instead of ending the process (`setrlimit(2)`, RLIMIT_FSIZE).
private func growing<T: FixedWidthInteger & SignedInteger>(
    _ name: String, _ call: () -> T
) -> T {
    var held = clinux_size_signal()
    clinux_hold_size_signal(&held)
    let result = retrying(name, call)
    clinux_release_size_signal(&held, result == -1 && errno == EFBIG ? 1 : 0)
    return result
}

/// `ioctl(PAGEMAP_SCAN)`.
func system_pagemapScan(
    _ pagemap: Int32, _ addresses: Range<UInt64>, clear: Bool,
    _ regions: UnsafeMutableBufferPointer<clinux_page_region>, _ walkEnd: inout UInt64
) -> Int {
    retrying("PAGEMAP_SCAN") {
        clinux_pagemap_scan(
            pagemap, addresses.lowerBound, addresses.upperBound, clear ? 1 : 0,
            regions.baseAddress, regions.count, &walkEnd)
    }
}

/// `userfaultfd(2)`.
func system_userfaultfd() -> Int32 {
    retrying("userfaultfd") { clinux_userfaultfd() }
}

/// `ioctl(UFFDIO_API)`.
func system_enableWriteProtect(_ descriptor: Int32) -> Int32 {
    retrying("UFFDIO_API") { clinux_uffd_enable_write_protect(descriptor) }
}

/// `ioctl(UFFDIO_REGISTER)`.
func system_register(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer) -> Int32 {
    retrying("UFFDIO_REGISTER") {
        clinux_uffd_register(
            descriptor, UInt64(UInt(bitPattern: bytes.baseAddress)), UInt64(bytes.count))
    }
}

/// `ioctl(UFFDIO_UNREGISTER)`.
func system_unregister(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer) -> Int32 {
    retrying("UFFDIO_UNREGISTER") {
        clinux_uffd_unregister(
            descriptor, UInt64(UInt(bitPattern: bytes.baseAddress)), UInt64(bytes.count))
    }
}

/// `memfd_create(2)`.
func system_memfd(_ name: String) -> Int32 {
    retrying("memfd_create") { clinux_memfd(name) }
}

/// `mmap(2)`, readable and writable; private and anonymous without a descriptor, else shared.
func system_mmap(_ byteCount: Int, _ descriptor: Int32?) -> UnsafeMutableRawPointer? {
    if KernelFault.fails("mmap") { return nil }
    let flags = descriptor == nil ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
    let address = mmap(nil, byteCount, PROT_READ | PROT_WRITE, flags, descriptor ?? -1, 0)
    return address == MAP_FAILED ? nil : address
}

/// `munmap(2)`.
func system_munmap(_ bytes: UnsafeMutableRawBufferPointer) {
    munmap(bytes.baseAddress, bytes.count)
}

/// `open(2)`, with O_CLOEXEC.
func system_open(_ path: String, _ flags: Int32, _ mode: mode_t = 0) -> Int32 {
    retrying("open") { open(path, flags | O_CLOEXEC, mode) }
}

/// `open(2)` of a path that need not be UTF-8, with O_CLOEXEC.
func system_open(_ path: FilePath, _ flags: Int32, _ mode: mode_t = 0) -> Int32 {
    retrying("open") { path.withPlatformString { open($0, flags | O_CLOEXEC, mode) } }
}

/// `open(2)` with O_TMPFILE: a file without a name, in a directory, for reading and writing.
func system_openNameless(_ directory: FilePath, _ mode: mode_t) -> Int32 {
    retrying("O_TMPFILE") {
        directory.withPlatformString { open($0, O_RDWR | clinux_unnamed_file | O_CLOEXEC, mode) }
    }
}

/// `stat(2)`.
func system_stat(_ path: FilePath, _ status: inout stat) -> Int32 {
    retrying("stat") { path.withPlatformString { stat($0, &status) } }
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

/// `fcntl(2)`, F_GETFL.
func system_descriptorFlags(_ descriptor: Int32) -> Int32 {
    retrying("fcntl") { fcntl(descriptor, F_GETFL) }
}

/// `write(2)`.
func system_write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
    retrying("write") { write(descriptor, bytes.baseAddress, bytes.count) }
}

/// `close(2)`.
func system_close(_ descriptor: Int32) {
    _ = close(descriptor)
}

/// `fstat(2)`.
func system_fstat(_ descriptor: Int32, _ status: inout stat) -> Int32 {
    retrying("fstat") { fstat(descriptor, &status) }
}

/// `fchown(2)`; `.max` leaves the owner or group unchanged.
func system_fchown(_ descriptor: Int32, _ owner: uid_t, _ group: gid_t) -> Int32 {
    retrying("fchown") { fchown(descriptor, owner, group) }
}

/// `fchmod(2)`.
func system_fchmod(_ descriptor: Int32, _ mode: mode_t) -> Int32 {
    retrying("fchmod") { fchmod(descriptor, mode) }
}

/// `ftruncate(2)`.
func system_ftruncate(_ descriptor: Int32, _ byteCount: Int) -> Int32 {
    growing("ftruncate") { ftruncate(descriptor, byteCount) }
}

/// `fsync(2)`.
func system_fsync(_ descriptor: Int32) -> Int32 {
    retrying("fsync") { fsync(descriptor) }
}

/// `lseek(2)`, SEEK_DATA: the offset of the next data; -1 and ENXIO if there is none.
func system_seekData(_ descriptor: Int32, _ offset: Int) -> Int {
    // Linux's number; the headers hide it under _GNU_SOURCE.
    retrying("lseek") { lseek(descriptor, offset, 3) }
}

/// `pread(2)`.
func system_pread(
    _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, _ offset: Int
) -> Int {
    retrying("pread") { pread(descriptor, bytes.baseAddress, bytes.count, offset) }
}

/// `pwrite(2)`.
func system_pwrite(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, _ offset: Int) -> Int {
    growing("pwrite") { pwrite(descriptor, bytes.baseAddress, bytes.count, offset) }
}

/// `rename(2)`.
func system_rename(_ path: FilePath, _ newPath: FilePath) -> Int32 {
    retrying("rename") {
        path.withPlatformString { old in newPath.withPlatformString { rename(old, $0) } }
    }
}

/// `renameat2(2)` with RENAME_NOREPLACE: EEXIST if the new name is taken.
func system_renameNoReplace(_ path: FilePath, _ newPath: FilePath) -> Int32 {
    retrying("renameat2") {
        path.withPlatformString { old in
            newPath.withPlatformString { clinux_rename_noreplace(old, $0) }
        }
    }
}

/// `linkat(2)`, following a link at `path`: gives a file a second name, and fails if it exists.
func system_link(_ path: FilePath, _ newPath: FilePath) -> Int32 {
    retrying("link") {
        path.withPlatformString { old in
            newPath.withPlatformString { linkat(AT_FDCWD, old, AT_FDCWD, $0, AT_SYMLINK_FOLLOW) }
        }
    }
}

/// `unlink(2)`.
func system_unlink(_ path: FilePath) -> Int32 {
    retrying("unlink") { path.withPlatformString { unlink($0) } }
}
