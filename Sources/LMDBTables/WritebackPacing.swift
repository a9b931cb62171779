/// Goes round the index's file, a share at a time: what is written back next.
///
/// LMDB leaves that to the kernel, which writes back at once whatever is 30 s old: 300 MB in a
/// minute of 100 checkpoints a second, and captures wait for the disk meanwhile.
///
/// A function of what it is told alone: it has no clock.
package struct WritebackPacing: Sendable {
    /// How long once round the file takes.
    ///
    /// A page that is written again within it is written back once, so the shorter the more is
    /// written.
    package static let roundDuration = Duration.seconds(8)
    /// Smaller shares wait: each is a call of the kernel.
    package static let shareByteCountMin: UInt64 = 256 << 10

    private var position: UInt64 = 0
    private var waited = Duration.zero

    /// The share whose turn it is; nil if it is not worth a call yet.
    ///
    /// - Parameters:
    ///   - elapsed: since the last call.
    ///   - byteCount: bytes in the file.
    mutating func share(after elapsed: Duration, of byteCount: UInt64) -> Range<UInt64>? {
        waited += elapsed
        let part = min(waited / WritebackPacing.roundDuration, 1)
        let count = UInt64(Double(byteCount) * part)
        guard count >= min(WritebackPacing.shareByteCountMin, byteCount), count > 0 else {
            return nil
        }
        waited = .zero
        if position >= byteCount { position = 0 }
        let start = position
        // Whole pages of any processor; the end goes with the last share.
        let end = (start + count).roundedUp(to: 1 << 16)
        position = min(end, byteCount)
        return start..<position
    }
}

extension UInt64 {
    fileprivate func roundedUp(to unit: UInt64) -> UInt64 { (self + unit - 1) / unit * unit }
}
