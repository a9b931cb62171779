import Glibc

/// Memory for the contents of guests' pages, excluded from this process's core dumps.
///
/// Used for buffers: they hold guests' data, and core dumps are often passed on. Only whole
/// mappings are advised: advising a part of a mapping would split it, and the kernel limits a
/// process to about 65,000 mappings.
package enum PageMemory {
    /// Reserves whole pages of zeroed memory; traps if there is none.
    ///
    /// `mmap(2)`, and `madvise(2)` with MADV_DONTDUMP. The kernel allocates a page when it is first
    /// touched.
    package static func allocate(byteCount: Int) -> UnsafeMutableRawBufferPointer {
        guard let memory = allocateIfPossible(byteCount: byteCount) else {
            preconditionFailure("no memory is left for \(byteCount) bytes of pages")
        }
        return memory
    }

    /// Like `allocate`, but returns nil if there is no memory.
    package static func allocateIfPossible(byteCount: Int) -> UnsafeMutableRawBufferPointer? {
        let size = roundedUp(byteCount)
        guard
            let memory = mmap(
                nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            UInt(bitPattern: memory) != .max
        else { return nil }
        // Fails only on kernels built without it; nothing else can be done there.
        _ = madvise(memory, size, MADV_DONTDUMP)
        return UnsafeMutableRawBufferPointer(start: memory, count: byteCount)
    }

    /// Frees memory that `allocate` reserved.
    package static func deallocate(_ memory: UnsafeMutableRawBufferPointer) {
        munmap(memory.baseAddress, roundedUp(memory.count))
    }

    private static let pageByteCount = Int(sysconf(Int32(_SC_PAGESIZE)))

    private static func roundedUp(_ byteCount: Int) -> Int {
        max(1, (byteCount + pageByteCount - 1) / pageByteCount) * pageByteCount
    }
}
