import CPageKernels

/// CRC-32C (Castagnoli), as in iSCSI and ext4: detects every error burst of up to 32 bits.
///
/// It protects records against disk errors; pages are also protected by their digests.
package enum Checksum {
    /// The checksum of `bytes`, continued from `previous`.
    package static func crc32c(
        _ bytes: UnsafeRawBufferPointer, continuing previous: UInt32 = 0
    ) -> UInt32 {
        ckernels_crc32c(previous, bytes.baseAddress, bytes.count)
    }
}
