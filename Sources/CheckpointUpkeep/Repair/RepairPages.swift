import CheckpointFormat
import GuestModel
import PackStore
import Synchronization

/// The location of a block of pages, damaged or not.
struct BlockPlace: Hashable, Sendable {
    /// The index of the file in the survey.
    let file: Int
    /// The offset in the file, not the address.
    let offset: UInt64
    let byteCount: UInt32
    let pageCount: UInt8
}

/// A page of a block.
struct PagePlace: Hashable, Sendable {
    let block: BlockPlace
    let slot: UInt8
}

/// Decompresses and hashes blocks, on all processors.
struct RepairPages: Sendable {
    private static let sliceCountMin = 32

    let files: RepairFiles
    /// The paths of the survey's files.
    let paths: [String]

    /// The digests of the pages of blocks, in order; nil for a block that cannot be decompressed.
    func digests(of blocks: [BlockPlace]) throws(RepositoryError) -> [[PageDigest]?] {
        let threadCount = min(
            Threads.processorCount, 1 + blocks.count / RepairPages.sliceCountMin)
        let parts = Mutex<[Int: Result<[[PageDigest]?], RepositoryError>]>([:])
        Threads.concurrently(threadCount) { thread in
            let start = blocks.count * thread / threadCount
            let end = blocks.count * (thread + 1) / threadCount
            let part = Result { () throws(RepositoryError) in
                try self.digests(of: blocks[start..<end])
            }
            parts.withLock { $0[thread] = part }
        }
        let found = parts.withLock { $0 }
        var digests: [[PageDigest]?] = []
        for thread in 0..<threadCount { digests += try found[thread]?.get() ?? [] }
        return digests
    }

    private func digests(
        of blocks: ArraySlice<BlockPlace>
    ) throws(RepositoryError) -> [[PageDigest]?] {
        let unpacker = try BlockUnpacker()
        var digests: [[PageDigest]?] = []
        do throws(FileError) {
            for block in blocks {
                digests.append(try pages(block, unpacker) { unpacker.digests($0) })
            }
        } catch {
            throw RepositoryError(error)
        }
        return digests
    }

    /// Calls `body` with the pages of a block; nil if it cannot be decompressed.
    func pages<T>(
        _ block: BlockPlace, _ unpacker: borrowing BlockUnpacker,
        _ body: (UnsafeRawBufferPointer) -> T
    ) throws(FileError) -> T? {
        let file = try files.open(paths[block.file])
        guard let pages = try unpacker.unpack(block, file) else { return nil }
        return body(pages)
    }
}

/// Buffers for decompressing one block at a time; each thread has its own.
struct BlockUnpacker: ~Copyable {
    private static let byteCountMax = PageGroupTable.pageLimit * Page.byteCount

    /// `stored`, then `unpacked`.
    private let memory: UnsafeMutableRawBufferPointer
    private let stored: UnsafeMutableRawBufferPointer
    private let unpacked: UnsafeMutableRawBufferPointer
    private let decompressor: Decompressor

    /// Fails if there is no memory.
    init() throws(RepositoryError) {
        let decompressor = try Decompressor.allocate()
        let memory = try PageMemory.reserve(byteCount: 2 * BlockUnpacker.byteCountMax)
        self.decompressor = decompressor
        self.memory = memory
        stored = UnsafeMutableRawBufferPointer(rebasing: memory[..<BlockUnpacker.byteCountMax])
        unpacked = UnsafeMutableRawBufferPointer(rebasing: memory[BlockUnpacker.byteCountMax...])
    }

    deinit { PageMemory.deallocate(memory) }

    /// The pages of a block, valid until the next call; nil if it is damaged.
    func unpack(
        _ block: BlockPlace, _ file: any RepositoryFile
    ) throws(FileError) -> UnsafeRawBufferPointer? {
        let byteCount = Int(block.pageCount) * Page.byteCount
        guard byteCount <= BlockUnpacker.byteCountMax, Int(block.byteCount) <= byteCount else {
            return nil
        }
        let source = UnsafeMutableRawBufferPointer(rebasing: stored[..<Int(block.byteCount)])
        // What a truncated file lacks reads as zeros: whole pages before that point are recovered.
        let count = try file.read(into: source, at: block.offset)
        for position in count..<source.count { source[position] = 0 }
        let pages = UnsafeMutableRawBufferPointer(rebasing: unpacked[..<byteCount])
        do throws(FormatError) {
            try PageBlock.decode(
                UnsafeRawBufferPointer(source), decompressor: decompressor, into: pages)
        } catch {
            return nil
        }
        return UnsafeRawBufferPointer(pages)
    }

    /// The digests of pages.
    func digests(_ pages: UnsafeRawBufferPointer) -> [PageDigest] {
        let count = pages.count / Page.byteCount
        let inputs = (0..<count).map { position in
            pages.baseAddress.map { $0 + position * Page.byteCount }
        }
        var digests = [PageDigest](repeating: .none, count: count)
        digests.withUnsafeMutableBufferPointer { digests in
            inputs.withUnsafeBufferPointer {
                PageDigest.hash($0, byteCount: Page.byteCount, into: digests)
            }
        }
        return digests
    }
}
