import CPageKernels
package import GuestModel

extension PageDigest {
    /// The BLAKE3-256 digest of any bytes.
    package init(hashing bytes: UnsafeRawBufferPointer) {
        self = .none
        withUnsafeMutableBytes(of: &words) { digest in
            ckernels_blake3(
                bytes.baseAddress, bytes.count,
                digest.baseAddress?.assumingMemoryBound(to: UInt8.self))
        }
    }

    /// The digests of inputs of equal length, many at a time: the fast way.
    ///
    /// - Parameters:
    ///   - inputs: where each input begins; the memory must stay valid during the call.
    ///   - byteCount: the length of each.
    ///   - digests: room for as many digests as there are inputs.
    package static func hash(
        _ inputs: UnsafeBufferPointer<UnsafeRawPointer?>, byteCount: Int,
        into digests: UnsafeMutableBufferPointer<PageDigest>
    ) {
        precondition(digests.count >= inputs.count, "room for every digest")
        guard let base = digests.baseAddress, !inputs.isEmpty else { return }
        ckernels_blake3_many(
            inputs.baseAddress, byteCount, inputs.count,
            UnsafeMutableRawPointer(base).assumingMemoryBound(to: UInt8.self))
    }
}
