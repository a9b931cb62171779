import CheckpointIndex
import GuestModel

/// Contents of a checkpoint's blocks, verified, in memory.
final class BlockContents: PageTarget {
    /// Where each block is, in blocks; consecutive blocks are contiguous.
    private let places: [UInt64: Int]
    // Each block is filled by one thread, then read; freed with this.
    private nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer

    /// - Parameter blocks: ascending, each once.
    init(_ blocks: [UInt64]) {
        places = Dictionary(uniqueKeysWithValues: zip(blocks, 0...))
        bytes = PageMemory.allocate(byteCount: blocks.count * Page.byteCount)
    }

    deinit { PageMemory.deallocate(bytes) }

    /// The content of a block; nil if it is not one of these.
    subscript(block: UInt64) -> UnsafeRawBufferPointer? {
        places[block].map {
            let start = $0 * Page.byteCount
            return UnsafeRawBufferPointer(rebasing: bytes[start..<start + Page.byteCount])
        }
    }

    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? {
        guard let place = places[range.first.rawValue] else { return nil }
        let start = place * Page.byteCount
        return UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + range.byteCount])
    }

    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) {
        if isPlaced { return }
        place(range)?.copyMemory(from: bytes)
    }
}
