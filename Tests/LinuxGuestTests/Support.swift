import Foundation
import Glibc

@testable import LinuxGuest

/// A thread of a test.
final class TestThread: @unchecked Sendable {
    // Unchecked: Foundation's Thread is used to start it and the semaphore to wait for it.
    private let ended = DispatchSemaphore(value: 0)

    init(_ body: @escaping @Sendable () -> Void) {
        let ended = ended
        Thread.detachNewThread {
            body()
            ended.signal()
        }
    }

    func join() { ended.wait() }
}

/// Discards memory.
///
/// `madvise(MADV_DONTNEED)`.
func discard(_ address: UnsafeMutableRawPointer, _ byteCount: Int) -> Bool {
    madvise(address, byteCount, MADV_DONTNEED) == 0
}

/// Makes the kernel write.
///
/// `read(2)` of /dev/urandom.
func readRandom(_ address: UnsafeMutableRawPointer, _ byteCount: Int) -> Bool {
    let descriptor = open("/dev/urandom", O_RDONLY)
    defer { close(descriptor) }
    return read(descriptor, address, byteCount) == byteCount
}

/// Makes kernel calls of a name fail, only on this thread: other tests run in parallel.
func failCalls(_ name: String, errno code: Int32) {
    KernelFault.set { $0 == name ? code : nil }
}
