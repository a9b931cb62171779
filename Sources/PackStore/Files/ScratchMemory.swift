import CLinux
import Glibc
import Synchronization

// What a page map takes grows with the disk: 32 GiB for 4 TiB. Most of it is not used in a capture.
// So it is in a file, mapped; the kernel keeps in memory what is used, and writes the rest back.
//
//   the first bytes of an owner  -> the process's own memory: small disks need no file
//   the rest                     -> a file without a name in the store's directory, in extents
//                                   whose blocks are allocated before they are used
//
// The file vanishes with the process. Where there can be none (O_TMPFILE, fallocate(2)), or the
// file system is full, the memory is the process's own: that costs memory, and nothing else.

/// Memory that may grow large, for one owner: freed all at once, when the last reference goes.
///
/// A read error of the file's disk ends the process with SIGBUS, as one of the index's file does
/// (`mmap(2)`).
package final class ScratchMemory: Sendable {
    /// Where files can be created, and how much of the process's own memory an owner takes first.
    package struct Place: Sendable {
        let files: (any RepositoryFiles)?
        let ownByteCountMax: Int

        /// - Parameters:
        ///   - files: the store; nil: the process's own memory alone.
        ///   - ownByteCountMax: bytes of the process's own memory that one owner takes first.
        package init(files: (any RepositoryFiles)?, ownByteCountMax: Int = 4 << 20) {
            self.files = files
            self.ownByteCountMax = ownByteCountMax
        }

        /// The process's own memory.
        package static let process = Place(files: nil)
    }

    private struct Extent {
        let memory: UnsafeMutableRawPointer
        let byteCount: Int
        let isFile: Bool
    }

    private struct State {
        var extents: [Extent] = []
        /// The address of memory that is not in use, and how many bytes of it there are.
        var free: UInt = 0
        var freeByteCount = 0
        var ownByteCount = 0
        /// The file; nil until it is needed.
        var file: Int32?
        var fileByteCount = 0
        /// False if there can be no file, or it can grow no more.
        var canGrowFile: Bool
    }

    private static let ownExtentByteCount = 1 << 20
    private static let fileExtentByteCount = 8 << 20

    private let place: Place
    private let state: Mutex<State>

    package init(_ place: Place) {
        self.place = place
        state = Mutex(State(canGrowFile: place.files != nil))
    }

    deinit {
        state.withLock { state in
            for extent in state.extents { munmap(extent.memory, extent.byteCount) }
            if let file = state.file { system_close(file) }
        }
    }

    /// Allocates an array, all bytes of which are zero.
    ///
    /// Valid as long as this object. Thread-safe; blocks while a file grows. Traps if the process
    /// has no more memory, as Swift's own allocation does.
    package func allocate<T: BitwiseCopyable>(
        _ count: Int, of type: T.Type = T.self
    ) -> UnsafeMutablePointer<T> {
        precondition(MemoryLayout<T>.alignment <= 16, "memory is aligned to 16 bytes")
        let byteCount = (count * MemoryLayout<T>.stride + 15) & ~15
        return take(byteCount).bindMemory(to: T.self, capacity: count)
    }

    private func take(_ byteCount: Int) -> UnsafeMutableRawPointer {
        let address = state.withLock { state -> UInt in
            if byteCount > state.freeByteCount {
                let extent = extent(&state, for: byteCount)
                state.extents.append(extent)
                let rest = extent.byteCount - byteCount
                let address = UInt(bitPattern: extent.memory)
                // Small arrays go on to fill what an extent for a large one was not needed for.
                if rest > state.freeByteCount {
                    state.free = address + UInt(byteCount)
                    state.freeByteCount = rest
                }
                return address
            }
            defer {
                state.free += UInt(byteCount)
                state.freeByteCount -= byteCount
            }
            return state.free
        }
        guard let memory = UnsafeMutableRawPointer(bitPattern: address) else {
            preconditionFailure("an extent is not at address 0")
        }
        return memory
    }

    private func extent(_ state: inout State, for byteCount: Int) -> Extent {
        if state.canGrowFile, state.ownByteCount + byteCount > place.ownByteCountMax {
            if let extent = fileExtent(&state, for: byteCount) {
                // Its owner is filling it: what it filled before can go to the disk.
                if let last = state.extents.last { release(last) }
                return extent
            }
            state.canGrowFile = false
        }
        let size = max(byteCount, ScratchMemory.ownExtentByteCount)
        guard
            let memory = mmap(
                nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            memory != MAP_FAILED
        else { fatalError("the system has no more memory: mmap(2) of \(size) bytes failed") }
        state.ownByteCount += size
        return Extent(memory: memory, byteCount: size, isFile: false)
    }

    /// The file's next extent; nil if there can be none.
    private func fileExtent(_ state: inout State, for byteCount: Int) -> Extent? {
        if state.file == nil { state.file = openFile() }
        guard let file = state.file else { return nil }
        let size = max(byteCount, ScratchMemory.fileExtentByteCount)
        // A mapped page without a block would be a signal when the disk is full.
        guard system_allocate(file, at: state.fileByteCount, size) == 0,
            let memory = mmap(
                nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, state.fileByteCount),
            memory != MAP_FAILED
        else { return nil }
        state.fileByteCount += size
        return Extent(memory: memory, byteCount: size, isFile: true)
    }

    private func openFile() -> Int32? {
        guard let directory = try? place.files?.openDirectory(StoreDirectory.index) else {
            return nil
        }
        let file = system_openUnnamed(in: directory.descriptor)
        return file < 0 ? nil : file
    }

    /// Gives the memory of the file back to the kernel, which keeps what it has room for.
    ///
    /// What is in it stays, and is read again when it is used. A system call for each 8 MiB.
    package func releasePages() {
        state.withLock { for extent in $0.extents { release(extent) } }
    }

    private func release(_ extent: Extent) {
        guard extent.isFile else { return }
        madvise(extent.memory, extent.byteCount, MADV_DONTNEED)
    }

    /// Bytes of the process's own memory, and of the file, that it has.
    package var byteCounts: (own: Int, file: Int) {
        state.withLock { ($0.ownByteCount, $0.fileByteCount) }
    }
}

/// Memory that was freed and that the allocator keeps.
package enum FreedMemory {
    /// Gives it back to the kernel: glibc keeps up to 64 MiB at the end of its heap, and all that
    /// is between allocations that live on (`mallopt(3)`, M_TRIM_THRESHOLD).
    ///
    /// Costs milliseconds. For use after work that took much more memory than what follows.
    package static func giveBack() { clinux_trim_memory() }
}
