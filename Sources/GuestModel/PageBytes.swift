import Synchronization

/// Bytes of a file that may be guests' pages, raw or compressed.
///
/// If they may be, they are in `PageMemory`, and so in no core dump; slices share the memory, which
/// is freed with the last of them.
package struct PageBytes: RandomAccessCollection, @unchecked Sendable {
    // Unchecked: it is filled before anyone else can access it, and never changed.
    private let memory: PageBuffer
    package let startIndex: Int
    package let endIndex: Int

    /// Makes bytes from what `fill` writes.
    ///
    /// - Parameters:
    ///   - byteCount: the room that `fill` gets.
    ///   - isHidden: true if they may be pages; false for bytes that need no hiding, which costs
    ///     less.
    ///   - fill: is given the room, and returns how many bytes it filled.
    package init<E: Error>(
        byteCount: Int, isHidden: Bool = true,
        _ fill: (UnsafeMutableRawBufferPointer) throws(E) -> Int
    ) throws(E) {
        memory = PageBuffer(byteCount: byteCount, isHidden: isHidden)
        startIndex = 0
        endIndex = try fill(memory.bytes)
    }

    private init(_ memory: PageBuffer, _ range: Range<Int>) {
        self.memory = memory
        (startIndex, endIndex) = (range.lowerBound, range.upperBound)
    }

    package subscript(position: Int) -> UInt8 {
        precondition((startIndex..<endIndex).contains(position), "within the bytes")
        return memory.bytes[position]
    }

    package subscript(range: Range<Int>) -> PageBytes {
        precondition(startIndex <= range.lowerBound && range.upperBound <= endIndex, "within them")
        return PageBytes(memory, range)
    }

    /// Runs `body` with the bytes, which are valid only during the call.
    package func withUnsafeBytes<T, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        defer { withExtendedLifetime(memory) {} }
        return try body(UnsafeRawBufferPointer(rebasing: memory.bytes[startIndex..<endIndex]))
    }
}

/// Memory for bytes with one owner, freed with the last reference to it.
package final class PageBuffer: @unchecked Sendable {
    // Unchecked: its one owner fills it, and shares it only when it no longer changes.
    package let bytes: UnsafeMutableRawBufferPointer
    /// True if it is in no core dump.
    package let isHidden: Bool

    /// Makes an uninitialized buffer.
    ///
    /// - Parameter isHidden: true if it may hold guests' pages; false costs less.
    package init(byteCount: Int, isHidden: Bool) {
        self.isHidden = isHidden
        bytes =
            isHidden
            ? SparePageMemory.take(byteCount: byteCount)
            : UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
    }

    deinit {
        if isHidden { SparePageMemory.give(bytes) } else { bytes.deallocate() }
    }
}

/// Freed `PageMemory`, kept for reuse: in a new mapping each page costs a fault, which takes longer
/// than reading the page.
///
/// At most 16 buffers of each power of two from 16 KiB to 1 MiB are kept, 32 MiB in all.
private enum SparePageMemory {
    private static let sizes = (1 << 14)...(1 << 20)
    private static let countMax = 16
    /// Addresses by size.
    private static let spare = Mutex<[Int: [UInt]]>([:])

    /// The size that is reserved for this byte count.
    private static func size(for byteCount: Int) -> Int {
        guard byteCount > sizes.lowerBound else { return sizes.lowerBound }
        return 1 << (Int.bitWidth - (byteCount - 1).leadingZeroBitCount)
    }

    /// Returns uninitialized memory.
    static func take(byteCount: Int) -> UnsafeMutableRawBufferPointer {
        guard byteCount <= sizes.upperBound else {
            return PageMemory.allocate(byteCount: byteCount)
        }
        let size = size(for: byteCount)
        let address = spare.withLock { $0[size]?.popLast() }
        guard let start = address.flatMap({ UnsafeMutableRawPointer(bitPattern: $0) }) else {
            let memory = PageMemory.allocate(byteCount: size)
            return UnsafeMutableRawBufferPointer(rebasing: memory[..<byteCount])
        }
        return UnsafeMutableRawBufferPointer(start: start, count: byteCount)
    }

    /// - Parameter memory: what `take` returned.
    static func give(_ memory: UnsafeMutableRawBufferPointer) {
        guard memory.count <= sizes.upperBound else { return PageMemory.deallocate(memory) }
        let size = size(for: memory.count)
        let isKept = spare.withLock { spare in
            guard spare[size, default: []].count < countMax else { return false }
            spare[size, default: []].append(UInt(bitPattern: memory.baseAddress))
            return true
        }
        guard !isKept else { return }
        PageMemory.deallocate(
            UnsafeMutableRawBufferPointer(start: memory.baseAddress, count: size))
    }
}
