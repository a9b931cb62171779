import Glibc

// System calls for the locks of domains, one function each. Results are the kernel's, -1 with errno
// set on failure.

private func retrying(_ call: () -> Int32) -> Int32 {
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}

/// `mkdir(2)`, accessible only to this user.
func system_makeDirectory(_ path: String) -> Int32 { mkdir(path, 0o700) }

/// `open(2)` of a directory, not following a symbolic link.
func system_openDirectory(_ path: String) -> Int32 {
    retrying { open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) }
}

/// `openat(2)` of a file, not following a link, accessible only to this user, created if missing.
///
/// The descriptor is at least 3.
func system_openAt(_ directory: Int32, _ name: String) -> Int32 {
    let flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
    let file = retrying { openat(directory, name, flags, 0o600) }
    guard 0...2 ~= file else { return file }
    let moved = fcntl(file, F_DUPFD_CLOEXEC, 3)
    let code = errno
    _ = close(file)
    errno = code
    return moved
}

/// `close(2)`; not retried: on Linux the descriptor is closed whatever it returns.
func system_close(_ descriptor: Int32) { _ = close(descriptor) }

/// `usleep(3)`.
func system_sleep(microseconds: UInt32) { usleep(microseconds) }

/// `fstat(2)`: a regular file.
func system_isRegularFile(_ descriptor: Int32) -> Bool {
    var status = stat()
    return fstat(descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
}

/// `stat(2)`: a regular file.
func system_isRegularFile(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
}

/// `fstat(2)`: owned by this user, and not writable by others.
func system_isPrivate(_ descriptor: Int32) -> Bool {
    var status = stat()
    return fstat(descriptor, &status) == 0 && status.st_uid == geteuid()
        && status.st_mode & 0o022 == 0
}

/// `flock(2)`, exclusive, without waiting.
func system_lock(_ descriptor: Int32) -> Int32 {
    retrying { flock(descriptor, LOCK_EX | LOCK_NB) }
}

/// `flock(2)`: unlocks, even if other processes have descriptors of the same open file.
func system_unlock(_ descriptor: Int32) {
    _ = retrying { flock(descriptor, LOCK_UN) }
}

/// `openat(2)` of a file that exists, not following a link.
func system_openPresent(_ directory: Int32, _ name: String) -> Int32 {
    retrying { openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) }
}

/// `unlinkat(2)` of a file; a failure is ignored.
func system_remove(_ directory: Int32, _ name: String) { _ = unlinkat(directory, name, 0) }

/// `pread(2)` of a file's beginning.
func system_readText(_ descriptor: Int32, byteCountMax: Int = 32) -> String {
    var bytes = [UInt8](repeating: 0, count: byteCountMax)
    let count = pread(descriptor, &bytes, bytes.count, 0)
    return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : ""
}

/// `pwrite(2)` of a file's whole text; failures are ignored, because the text is only for messages.
func system_writeText(_ descriptor: Int32, _ text: String) {
    let bytes = Array(text.utf8)
    _ = ftruncate(descriptor, 0)
    _ = pwrite(descriptor, bytes, bytes.count, 0)
}

/// `ftruncate(2)` to nothing.
func system_truncate(_ descriptor: Int32) -> Int32 { retrying { ftruncate(descriptor, 0) } }

/// `fstat(2)`: the size of a file; nil if it cannot be examined.
func system_byteCount(_ descriptor: Int32) -> Int? {
    var status = stat()
    return fstat(descriptor, &status) == 0 ? Int(status.st_size) : nil
}

/// `pwrite(2)` of all bytes; false if one cannot be written.
func system_write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int) -> Bool {
    var done = 0
    while done < bytes.count {
        let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
        let count = pwrite(descriptor, rest.baseAddress, rest.count, offset + done)
        if count < 0 && errno == EINTR { continue }
        guard count > 0 else { return false }
        done += count
    }
    return true
}

/// `pread(2)` of all bytes; false if one cannot be read.
func system_read(
    _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: Int
) -> Bool {
    var done = 0
    while done < bytes.count {
        let rest = UnsafeMutableRawBufferPointer(rebasing: bytes[done...])
        let count = pread(descriptor, rest.baseAddress, rest.count, offset + done)
        if count < 0 && errno == EINTR { continue }
        guard count > 0 else { return false }
        done += count
    }
    return true
}

/// The names in a directory; none if it cannot be read.
func system_names(in path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        names.append(
            withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            })
    }
    return names
}

/// The first 4096 bytes of a file; empty if it cannot be read.
func system_text(of path: String) -> String {
    let file = retrying { open(path, O_RDONLY | O_CLOEXEC) }
    guard file >= 0 else { return "" }
    defer { _ = close(file) }
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = read(file, &bytes, bytes.count)
    return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : ""
}

/// `readlink(2)`; nil if it is none.
func system_target(ofLink path: String) -> String? {
    var bytes = [CChar](repeating: 0, count: 4096)
    let count = readlink(path, &bytes, bytes.count)
    guard count > 0, count < bytes.count else { return nil }
    return String(decoding: bytes[..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
}
