/// Bytes that violate the format, found while decoding one record.
///
/// Callers add the pack and the checkpoint; this has only the position within the bytes.
package struct FormatError: Error, Hashable, Sendable {
    /// Byte offset within the decoded bytes.
    package let offset: Int
    /// What is wrong, as a clause: "the checksum is 0x1 and should be 0x2".
    package let reason: String

    package init(offset: Int, reason: String) {
        self.offset = offset
        self.reason = reason
    }
}
