package import GuestModel

/// Reads values in the format's encoding; lengths are validated before use.
///
/// The bytes must stay valid while the reader is used: create it inside `withUnsafeBytes`.
package struct ByteReader {
    private let bytes: UnsafeRawBufferPointer
    /// Offset of the next byte.
    package private(set) var position = 0

    package init(_ bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
    }

    /// Number of bytes left.
    package var remaining: Int { bytes.count - position }

    /// Reads a fixed-width little-endian integer.
    package mutating func read<T: FixedWidthInteger>(_ type: T.Type) throws(FormatError) -> T {
        let field = try read(raw: MemoryLayout<T>.size)
        return T(littleEndian: field.loadUnaligned(as: T.self))
    }

    /// Reads an unsigned LEB128 number, which must be in its shortest form.
    package mutating func readVarint() throws(FormatError) -> UInt64 {
        let start = position
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while true {
            let byte = try read(UInt8.self)
            if shift == 63 && byte > 1 {
                throw FormatError(offset: start, reason: "a number is longer than 64 bits")
            }
            value |= UInt64(byte & 0x7f) << shift
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    throw FormatError(offset: start, reason: "a number is not in its shortest form")
                }
                return value
            }
            shift += 7
        }
    }

    /// Reads an unsigned number that must be at most `limit`.
    package mutating func readVarint(limit: Int, _ what: String) throws(FormatError) -> Int {
        let start = position
        let value = try readVarint()
        guard value <= UInt64(limit) else {
            throw FormatError(offset: start, reason: "\(what) is \(value), over \(limit)")
        }
        return Int(value)
    }

    /// Reads a zigzag-encoded signed number.
    package mutating func readZigzag() throws(FormatError) -> Int64 {
        let folded = try readVarint()
        return Int64(bitPattern: folded >> 1) ^ -Int64(bitPattern: folded & 1)
    }

    /// Reads a digest.
    package mutating func readDigest() throws(FormatError) -> PageDigest {
        let first = try read(UInt64.self)
        let second = try read(UInt64.self)
        let third = try read(UInt64.self)
        return PageDigest(words: (first, second, third, try read(UInt64.self)))
    }

    /// Reads a string with a 16-bit length.
    package mutating func readText() throws(FormatError) -> String {
        let start = position
        let count = Int(try read(UInt16.self))
        let field = try read(raw: count)
        guard let text = String(validating: field, as: UTF8.self) else {
            throw FormatError(offset: start, reason: "a string is not UTF-8")
        }
        return text
    }

    /// Returns the next bytes without copying them.
    package mutating func read(raw count: Int) throws(FormatError) -> UnsafeRawBufferPointer {
        guard count >= 0, count <= remaining else {
            throw FormatError(
                offset: position, reason: "\(count) bytes are needed but \(remaining) are left")
        }
        let field = UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
        position += count
        return field
    }

    /// Skips bytes that must be zero: reserved fields and padding.
    package mutating func readZeros(_ count: Int, _ what: String) throws(FormatError) {
        let start = position
        guard try read(raw: count).allSatisfy({ $0 == 0 }) else {
            throw FormatError(offset: start, reason: "\(what) is not zero")
        }
    }

    /// Fails if any bytes are left.
    package func expectEnd() throws(FormatError) {
        guard remaining == 0 else {
            throw FormatError(offset: position, reason: "\(remaining) bytes follow the last field")
        }
    }
}

extension ByteReader {
    /// Runs a decoder over the bytes of an array.
    package static func decode<T>(
        _ bytes: [UInt8], _ body: (inout ByteReader) throws(FormatError) -> T
    ) throws(FormatError) -> T {
        try bytes.withUnsafeBufferPointer { (buffer) throws(FormatError) -> T in
            var reader = ByteReader(UnsafeRawBufferPointer(buffer))
            return try body(&reader)
        }
    }
}
