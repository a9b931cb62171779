/// Bytes of a file that may be guests' pages, as they are or packed.
///
/// What may be is in `PageMemory`, so that it is in no core dump; slices share it, and it goes back
/// with the last of them.
package struct PageBytes: RandomAccessCollection, @unchecked Sendable {
    // Unchecked: it is filled before anybody else has it, and never changed.
    private let memory: Memory
    package let startIndex: Int
    package let endIndex: Int

    /// Makes bytes of what `fill` puts in.
    ///
    /// - Parameters:
    ///   - byteCount: room.
    ///   - isHidden: true if they may be pages; false for what nobody hides, which costs less.
    ///   - fill: is given the room, and returns how much of it is filled.
    package init<E: Error>(
        byteCount: Int, isHidden: Bool = true,
        _ fill: (UnsafeMutableRawBufferPointer) throws(E) -> Int
    ) throws(E) {
        memory = Memory(byteCount: byteCount, isHidden: isHidden)
        startIndex = 0
        endIndex = try fill(memory.bytes)
    }

    private init(_ memory: Memory, _ range: Range<Int>) {
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

    /// Runs `body` with the bytes, which are there as long as it runs.
    package func withUnsafeBytes<T, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        defer { withExtendedLifetime(memory) {} }
        return try body(UnsafeRawBufferPointer(rebasing: memory.bytes[startIndex..<endIndex]))
    }

    private final class Memory {
        let bytes: UnsafeMutableRawBufferPointer
        private let isHidden: Bool

        init(byteCount: Int, isHidden: Bool) {
            self.isHidden = isHidden
            bytes =
                isHidden
                ? PageMemory.allocate(byteCount: byteCount)
                : UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
        }

        deinit {
            if isHidden { PageMemory.deallocate(bytes) } else { bytes.deallocate() }
        }
    }
}
