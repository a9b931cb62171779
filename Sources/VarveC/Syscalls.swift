import CVarve
import Glibc

/// Every kernel call of this module.
enum Syscalls {
    /// What `fstat(2)` says of a descriptor.
    static func fileStatus(
        _ descriptor: Int32
    ) throws(Failure) -> (device: UInt64, number: UInt64, byteCount: Int) {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw failed("fstat", "descriptor \(descriptor)", errno)
        }
        return (UInt64(status.st_dev), UInt64(status.st_ino), Int(status.st_size))
    }

    /// Maps a part of a file, shared: `mmap(2)`.
    static func map(
        _ descriptor: Int32, _ offset: UInt64, _ byteCount: Int
    ) throws(Failure) -> UnsafeMutableRawBufferPointer {
        let address = mmap(
            nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, off_t(offset))
        guard let address, UInt(bitPattern: address) != .max else {
            throw failed("mmap", "\(byteCount) bytes of descriptor \(descriptor)", errno)
        }
        return UnsafeMutableRawBufferPointer(start: address, count: byteCount)
    }

    /// `munmap(2)`.
    static func unmap(_ bytes: UnsafeMutableRawBufferPointer) {
        munmap(bytes.baseAddress, bytes.count)
    }

    /// Writes all bytes.
    static func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) throws(Failure) {
        let code = cvarve_write(descriptor, bytes.baseAddress, bytes.count)
        guard code == 0 else { throw failed("write", "descriptor \(descriptor)", code) }
    }

    static func failed(_ call: String, _ object: String, _ code: Int32) -> Failure {
        Failure(
            VARVE_CALL_FAILED, "\(call) of \(object) failed (\(String(cString: strerror(code))))",
            number: code)
    }
}

/// A descriptor that becomes readable once: `eventfd(2)`.
final class EventDescriptor: Sendable {
    let number: Int32

    init() throws(Failure) {
        number = cvarve_event()
        guard number >= 0 else { throw Syscalls.failed("eventfd", "a capture", errno) }
    }

    deinit { close(number) }

    func signal() {
        cvarve_signal_event(number)
    }
}
