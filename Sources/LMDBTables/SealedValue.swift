import CheckpointFormat

// Every value of the index ends with a CRC-32C of its key and itself, so that a corrupted byte of
// either is detected by any read of the value, and by `LMDBFileCheck`, which reads them all.

/// A value with its checksum.
enum SealedValue {
    private static let checksumByteCount = 4

    /// Size in bytes of a value with its checksum.
    static func byteCount(of count: Int) -> Int { count + checksumByteCount }

    /// Writes a value and its checksum.
    ///
    /// - Parameter start: a buffer of `byteCount(of: value.count)` bytes.
    static func seal(
        _ value: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer,
        into start: UnsafeMutableRawPointer
    ) {
        UnsafeMutableRawBufferPointer(start: start, count: value.count).copyMemory(from: value)
        (start + value.count).storeBytes(
            of: checksum(value, of: key).littleEndian, as: UInt32.self)
    }

    /// The value without its checksum; throws `damagedValue` if the checksum is wrong.
    static func open(
        _ stored: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer, isChecked: Bool = true
    ) throws(IndexError) -> UnsafeRawBufferPointer {
        let count = stored.count - checksumByteCount
        guard count >= 0 else { throw .damagedValue("a value without a checksum") }
        let value = UnsafeRawBufferPointer(rebasing: stored[..<count])
        guard isChecked else { return value }
        let stated = UInt32(
            littleEndian: stored.loadUnaligned(fromByteOffset: count, as: UInt32.self))
        guard stated == checksum(value, of: key) else {
            throw .damagedValue("a value with a wrong checksum")
        }
        return value
    }

    private static func checksum(
        _ value: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) -> UInt32 {
        Checksum.crc32c(value, continuing: Checksum.crc32c(key))
    }
}
