import CPageKernels
package import GuestModel

extension PageDigest {
    /// Computes the BLAKE3-256 digest of arbitrary bytes.
    package init(hashing bytes: UnsafeRawBufferPointer) {
        self = .none
        withUnsafeMutableBytes(of: &words) { digest in
            ckernels_blake3(
                bytes.baseAddress, bytes.count,
                digest.baseAddress?.assumingMemoryBound(to: UInt8.self))
        }
    }

    /// Computes the digests of many inputs of equal length: the fast way.
    ///
    /// - Parameters:
    ///   - inputs: the start of each input; the memory must stay valid during the call.
    ///   - byteCount: the length of each input.
    ///   - digests: space for one digest per input.
    package static func hash(
        _ inputs: UnsafeBufferPointer<UnsafeRawPointer?>, byteCount: Int,
        into digests: UnsafeMutableBufferPointer<PageDigest>
    ) {
        precondition(digests.count >= inputs.count, "the digests do not fit")
        guard let base = digests.baseAddress, !inputs.isEmpty else { return }
        ckernels_blake3_many(
            inputs.baseAddress, byteCount, inputs.count,
            UnsafeMutableRawPointer(base).assumingMemoryBound(to: UInt8.self))
    }
}
