import CPageKernels

/// Copies scattered pieces, up to 32 at a time: past the caches, which are the guest's, and with
/// the next piece prefetched.
package struct PieceCopy {
    private var target: UnsafeMutableRawPointer
    private var pieces = InlineArray<32, ckernels_piece>(repeating: ckernels_piece())
    private var count = 0
    private var byteCount = 0

    /// Copies to a buffer, which has room for all pieces.
    package init(to bytes: UnsafeMutableRawBufferPointer) {
        // If `bytes` is empty, nothing is added.
        target = bytes.baseAddress ?? UnsafeMutableRawPointer(bitPattern: 1).unsafelyUnwrapped
    }

    /// Appends a piece.
    package mutating func add(_ bytes: UnsafeMutableRawBufferPointer) {
        if count == pieces.count { flush() }
        pieces[count] = ckernels_piece(from: bytes.baseAddress, length: bytes.count)
        count += 1
        byteCount += bytes.count
    }

    /// Copies what was added and not copied yet.
    package mutating func flush() {
        let span = pieces.span
        span.withUnsafeBufferPointer {
            ckernels_stream_copy_pieces(target, $0.baseAddress, count)
        }
        target += byteCount
        count = 0
        byteCount = 0
    }
}
