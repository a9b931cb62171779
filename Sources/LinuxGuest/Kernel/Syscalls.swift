import CLinux
import Glibc
import Synchronization

// Every kernel call that this module makes, one function each; nothing else here calls the kernel.
// `KernelFault` sees each of them first, so that a test can count, trace and fail them.

/// A test's hand on this module's kernel calls.
package enum KernelFault {
    /// Asked before each call with its name; an error number makes the call fail with it.
    package typealias Hook = @Sendable (_ call: String) -> Int32?

    private static let isSet = Atomic(false)
    private static let hook = Mutex<Hook?>(nil)

    /// Sets or removes the hook, for the whole process.
    package static func set(_ newHook: Hook?) {
        hook.withLock { $0 = newHook }
        isSet.store(newHook != nil, ordering: .releasing)
    }

    fileprivate static func fails(_ call: String) -> Bool {
        guard isSet.load(ordering: .acquiring), let hook = hook.withLock({ $0 }),
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

/// The same for a call that may make a file larger: past the limit of file sizes it fails with
/// EFBIG, and does not end the process (`setrlimit(2)`, RLIMIT_FSIZE).
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

/// `close(2)`.
func system_close(_ descriptor: Int32) {
    _ = close(descriptor)
}

/// `fstat(2)`.
func system_fstat(_ descriptor: Int32, _ status: inout stat) -> Int32 {
    retrying("fstat") { fstat(descriptor, &status) }
}

/// `fchown(2)`; `.max` leaves an owner or a group as it is.
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
func system_rename(_ path: String, _ newPath: String) -> Int32 {
    retrying("rename") { rename(path, newPath) }
}

/// `linkat(2)`, following a link at `path`: gives a file a second name, and fails if it is taken.
func system_link(_ path: String, _ newPath: String) -> Int32 {
    retrying("link") { linkat(AT_FDCWD, path, AT_FDCWD, newPath, AT_SYMLINK_FOLLOW) }
}

/// `unlink(2)`.
func system_unlink(_ path: String) {
    _ = unlink(path)
}
