/// Bytes that are not what the format says, found while reading one record.
///
/// Whoever knows the pack and the checkpoint adds them; here is only the place within the bytes.
package struct FormatError: Error, Hashable, Sendable {
    /// Byte offset within what was being decoded.
    package let offset: Int
    /// What is wrong, as the middle of a sentence: "the checksum is 0x1 and should be 0x2".
    package let reason: String

    package init(offset: Int, reason: String) {
        self.offset = offset
        self.reason = reason
    }
}
