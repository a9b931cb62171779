import Glibc

/// Memory for what guests' pages hold, which is left out of this process's core dumps.
///
/// For buffers: they hold other people's memory, and a dump is often sent to somebody. Only
/// mappings of its own are advised of: a piece of another one that was would be a mapping more, and
/// the kernel allows a process some 65,000.
package enum PageMemory {
    /// Reserves memory, whole pages of it, zeroed; traps if there is none.
    ///
    /// `mmap(2)`, and `madvise(2)` with MADV_DONTDUMP. The kernel gives a page when it is first
    /// touched.
    package static func allocate(byteCount: Int) -> UnsafeMutableRawBufferPointer {
        guard let memory = allocateIfPossible(byteCount: byteCount) else {
            preconditionFailure("no memory is left for \(byteCount) bytes of pages")
        }
        return memory
    }

    /// The same; nil if there is none.
    package static func allocateIfPossible(byteCount: Int) -> UnsafeMutableRawBufferPointer? {
        let size = roundedUp(byteCount)
        guard
            let memory = mmap(
                nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            UInt(bitPattern: memory) != .max
        else { return nil }
        // Fails on kernels that were built without it only; nothing else can be done there.
        _ = madvise(memory, size, MADV_DONTDUMP)
        return UnsafeMutableRawBufferPointer(start: memory, count: byteCount)
    }

    /// Gives memory back that `allocate` reserved.
    package static func deallocate(_ memory: UnsafeMutableRawBufferPointer) {
        munmap(memory.baseAddress, roundedUp(memory.count))
    }

    private static let pageByteCount = Int(sysconf(Int32(_SC_PAGESIZE)))

    private static func roundedUp(_ byteCount: Int) -> Int {
        max(1, (byteCount + pageByteCount - 1) / pageByteCount) * pageByteCount
    }
}
