import Glibc

extension UnsafeMutableRawBufferPointer {
    /// True if both hold the same bytes.
    ///
    /// `memcmp`.
    func elementsEqualBytes(_ other: UnsafeRawBufferPointer) -> Bool {
        guard count == other.count, let mine = baseAddress, let theirs = other.baseAddress else {
            return count == other.count
        }
        return memcmp(mine, theirs, count) == 0
    }
}
