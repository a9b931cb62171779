/// Decides which part of the index's file to write back next, going round the file part by part.
///
/// LMDB leaves writeback to the kernel, which writes all that is 30 s old at once: 300 MB after a
/// minute of 100 checkpoints per second, and captures wait for the disk meanwhile.
///
/// It depends only on its arguments: it has no clock.
package struct WritebackPacing: Sendable {
    /// The time for one round over the file.
    ///
    /// A page that is modified again within it is written back once, so a shorter time means more
    /// writes.
    package static let roundDuration = Duration.seconds(8)
    /// Smaller parts are deferred: each costs a system call.
    package static let shareByteCountMin: UInt64 = 256 << 10

    private var position: UInt64 = 0
    private var waited = Duration.zero

    /// The part that is due; nil if it is not worth a call yet.
    ///
    /// - Parameters:
    ///   - elapsed: time since the last call.
    ///   - byteCount: size of the file in bytes.
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
        // A multiple of every architecture's page size; the last part includes the end of the file.
        let end = (start + count).roundedUp(to: 1 << 16)
        position = min(end, byteCount)
        return start..<position
    }
}

extension UInt64 {
    fileprivate func roundedUp(to unit: UInt64) -> UInt64 { (self + unit - 1) / unit * unit }
}
