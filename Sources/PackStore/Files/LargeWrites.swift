import Glibc
import GuestModel
import Synchronization

// Large writes bypass the page cache (`open(2)`, O_DIRECT).
//
// A pack is written once, and most of it is never read. A write through the cache copies each page
// into memory that must be allocated first and that evicts pages still in use: a second copy of the
// guest's memory would end up in the cache. Bypassing it costs a tenth of the CPU time per page.
// Reads are cached as usual.
//
//   through the cache |       past it        | through the cache
//   offset ........ aligned .............. aligned ...... end
//
// So each block of the file is written either past the cache or through it, never both, and
// `fdatasync` makes both kinds durable: the disk's own cache is flushed in either case.

/// Writes the middle of each large write to a file past the page cache, if the file system allows
/// it.
package final class LargeWrites: Sendable {
    /// Which writes bypass the cache, and how.
    package struct Limits {
        /// Writes of at least this many bytes are large.
        ///
        /// A small checkpoint stays in the cache: a fuzzer, which goes back and forth between such
        /// checkpoints, reads them soon and often.
        var byteCountMin = 256 << 10
        /// Alignment of offsets, lengths and memory in bytes: the largest block size of disks, and
        /// the smallest of most file systems.
        var alignment = 4096
    }

    private struct Direct {
        /// nil: not opened yet; negative: the file system does not support it.
        var descriptor: Int32?
        /// True if it was opened but cannot be written.
        ///
        /// It stays open: another thread may be about to write to it.
        var isRefused = false
    }

    private let file: Int32
    private let limits: Limits
    private let direct = Mutex(Direct())

    /// - Parameter file: a descriptor; its owner must keep it open.
    package init(to file: Int32, _ limits: Limits) {
        self.file = file
        self.limits = limits
    }

    deinit {
        direct.withLock { direct in
            if let descriptor = direct.descriptor, descriptor >= 0 { system_close(descriptor) }
        }
    }

    /// The part of a write that bypasses the cache, as positions in its bytes; empty if there is
    /// none.
    func middle(of byteCount: Int, at offset: Int) -> Range<Int> {
        guard byteCount >= limits.byteCountMin, descriptor() != nil else { return 0..<0 }
        let mask = limits.alignment - 1
        let start = (offset + mask) & ~mask
        let end = (offset + byteCount) & ~mask
        return start < end ? start - offset..<end - offset : 0..<0
    }

    /// Writes the middle of a large write.
    ///
    /// - Returns: the number of bytes written, fewer if the file system does not support it, and
    ///   the error number; 0 if there was no error.
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
                // Only as much as there was space for.
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

/// Aligned memory for direct I/O; kept for reuse.
private struct AlignedBuffer: @unchecked Sendable {
    // Unchecked: the thread that took it from the idle buffers has exclusive use of it.
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
