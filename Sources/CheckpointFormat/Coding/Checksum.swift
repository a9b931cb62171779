import CPageKernels

/// CRC-32C (Castagnoli), as in iSCSI and ext4: finds every burst of up to 32 bits.
///
/// It guards records against the disk; pages are guarded by their digests besides.
package enum Checksum {
    /// The checksum of `bytes`, going on from `previous`.
    package static func crc32c(
        _ bytes: UnsafeRawBufferPointer, continuing previous: UInt32 = 0
    ) -> UInt32 {
        ckernels_crc32c(previous, bytes.baseAddress, bytes.count)
    }
}
