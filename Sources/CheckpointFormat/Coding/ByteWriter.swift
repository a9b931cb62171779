package import GuestModel

/// Appends values to a byte array in the format's encoding: little-endian, explicit widths.
package struct ByteWriter {
    /// The bytes written so far.
    package private(set) var bytes: [UInt8]

    package init(reserving byteCount: Int = 0) {
        bytes = []
        bytes.reserveCapacity(byteCount)
    }

    /// Number of bytes written.
    package var count: Int { bytes.count }

    /// Appends a fixed-width integer in little-endian order.
    package mutating func write<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// Appends an unsigned LEB128 number: 7 bits per byte, lowest first, at most 10 bytes.
    package mutating func writeVarint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    /// Appends a signed number, zigzag-encoded so that small magnitudes are short: 0, -1, 1, -2
    /// etc.
    package mutating func writeZigzag(_ value: Int64) {
        writeVarint(UInt64(bitPattern: (value << 1) ^ (value >> 63)))
    }

    /// Appends a digest's 32 bytes.
    package mutating func write(_ digest: PageDigest) {
        write(digest.words.0)
        write(digest.words.1)
        write(digest.words.2)
        write(digest.words.3)
    }

    /// Appends a string as a 16-bit length and its UTF-8 bytes.
    ///
    /// - Precondition: at most 65,535 bytes.
    package mutating func write(text: String) {
        let utf8 = Array(text.utf8)
        precondition(utf8.count <= Int(UInt16.max), "a string in a record has at most 65,535 bytes")
        write(UInt16(utf8.count))
        bytes.append(contentsOf: utf8)
    }

    /// Appends raw bytes.
    package mutating func write(raw: some Sequence<UInt8>) {
        bytes.append(contentsOf: raw)
    }

    /// Appends zero bytes.
    package mutating func writeZeros(_ count: Int) {
        bytes.append(contentsOf: repeatElement(0, count: count))
    }

    /// Overwrites a 32-bit field written earlier.
    package mutating func patch(_ value: UInt32, at offset: Int) {
        withUnsafeBytes(of: value.littleEndian) { field in
            for index in 0..<4 { bytes[offset + index] = field[index] }
        }
    }
}
