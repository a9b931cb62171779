extension FixedWidthInteger {
    /// The number's bytes, highest first.
    var bigEndianBytes: [UInt8] { withUnsafeBytes(of: bigEndian) { Array($0) } }

    /// The number's bytes, lowest first.
    var littleEndianBytes: [UInt8] { withUnsafeBytes(of: littleEndian) { Array($0) } }

    /// The number rounded up to a multiple of 8.
    var paddedTo8: Self { (self + 7) & ~7 }
}

extension UnsafeRawBufferPointer {
    /// Reads a number, lowest byte first, at an offset within the buffer.
    func little<T: FixedWidthInteger & BitwiseCopyable>(
        _ offset: Int, as type: T.Type = T.self
    ) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count, "within the buffer")
        return T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// Reads a number, highest byte first, at an offset within the buffer.
    func big<T: FixedWidthInteger & BitwiseCopyable>(
        _ offset: Int, as type: T.Type = T.self
    ) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count, "within the buffer")
        return T(bigEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

extension Array where Element == UInt8 {
    /// Sets bytes to zero; true if one of them was not zero.
    mutating func clear(_ range: Range<Int>) -> Bool {
        guard self[range].contains(where: { $0 != 0 }) else { return false }
        for index in range { self[index] = 0 }
        return true
    }

    /// Reads a number, lowest byte first, at an offset within the bytes.
    func little<T: FixedWidthInteger & BitwiseCopyable>(
        _ offset: Int, as type: T.Type = T.self
    ) -> T {
        withUnsafeBytes { $0.little(offset) }
    }
}
