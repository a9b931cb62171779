import Glibc
import GuestModel
import Synchronization

// Large writes go past the page cache (`open(2)`, O_DIRECT).
//
// A pack is written once, and most of it is never read. Through the cache, each of its pages is
// copied into memory that must be found first, and drives out one that somebody may still want: a
// store would come to hold a second copy of the guest's memory there. Past it, a page takes a tenth
// of the processor's time. What is read is cached as ever.
//
//   through the cache |       past it        | through the cache
//   offset ........ aligned .............. aligned ...... end
//
// So each block of the file is written past the cache or through it, never both, and `fdatasync`
// makes durable what went either way: the disk's own cache is flushed in both cases.

/// Writes the middles of large writes to one file past the page cache, if its file system can.
package final class LargeWrites: Sendable {
    /// Which writes, and how.
    package struct Limits {
        /// Bytes from which on a write is large.
        ///
        /// A small checkpoint stays in the cache: whoever goes back and forth between such, as a
        /// fuzzer does, reads them soon and often.
        var byteCountMin = 256 << 10
        /// What offsets, lengths and memory are multiples of: the largest block of disks, and the
        /// smallest of most file systems.
        var alignment = 4096
    }

    private struct Direct {
        /// nil: not opened yet; less than 0: the file system cannot.
        var descriptor: Int32?
        /// True if it could be opened, and not be written to.
        ///
        /// It stays open: another thread may be about to write to it.
        var isRefused = false
    }

    private let file: Int32
    private let limits: Limits
    private let direct = Mutex(Direct())

    /// - Parameter file: a descriptor; its owner keeps it open.
    package init(to file: Int32, _ limits: Limits) {
        self.file = file
        self.limits = limits
    }

    deinit {
        direct.withLock { direct in
            if let descriptor = direct.descriptor, descriptor >= 0 { system_close(descriptor) }
        }
    }

    /// What of a write goes past the cache, as positions in its bytes; empty if nothing does.
    func middle(of byteCount: Int, at offset: Int) -> Range<Int> {
        guard byteCount >= limits.byteCountMin, descriptor() != nil else { return 0..<0 }
        let mask = limits.alignment - 1
        let start = (offset + mask) & ~mask
        let end = (offset + byteCount) & ~mask
        return start < end ? start - offset..<end - offset : 0..<0
    }

    /// Writes a middle.
    ///
    /// - Returns: the bytes that were written, fewer if the file system cannot, and the number of
    ///   the error; 0 if there was none.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> (count: Int, errno: Int32) {
        guard let descriptor = descriptor() else { return (0, 0) }
        return AlignedBuffer.withOne { buffer in
            var done = 0
            while done < bytes.count {
                let piece = bytes[done..<min(done + buffer.count, bytes.count)]
                buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: piece))
                let count = system_pwrite(
                    descriptor, UnsafeRawBufferPointer(rebasing: buffer[..<piece.count]),
                    offset + done)
                guard count >= 0 else {
                    let code = errno
                    guard code == EINVAL else { return (done, code) }
                    direct.withLock { $0.isRefused = true }
                    return (done, 0)
                }
                done += count
                // As much as there was room for.
                if count < piece.count { break }
            }
            return (done, 0)
        }
    }

    private func descriptor() -> Int32? {
        direct.withLock { direct in
            let descriptor = direct.descriptor ?? system_openDirect(file)
            direct.descriptor = descriptor
            return descriptor >= 0 && !direct.isRefused ? descriptor : nil
        }
    }
}

/// Memory that a disk can read from; kept for the next one who needs it.
private struct AlignedBuffer: @unchecked Sendable {
    // Unchecked: whoever took it from the idle ones is alone with it.
    private let bytes: UnsafeMutableRawBufferPointer

    private static let byteCount = 1 << 20
    private static let idleCountMax = 4
    private static let idle = Mutex<[AlignedBuffer]>([])

    static func withOne<T>(_ body: (UnsafeMutableRawBufferPointer) -> T) -> T {
        let buffer =
            idle.withLock { $0.popLast() }
            ?? AlignedBuffer(bytes: PageMemory.allocate(byteCount: byteCount))
        defer {
            let isKept = idle.withLock { idle in
                guard idle.count < idleCountMax else { return false }
                idle.append(buffer)
                return true
            }
            if !isKept { PageMemory.deallocate(buffer.bytes) }
        }
        return body(buffer.bytes)
    }
}
