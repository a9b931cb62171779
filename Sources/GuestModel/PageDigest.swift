/// A BLAKE3-256 digest: of a page, of a node of the page map, or of a manifest.
///
/// Stored as four words so that a digest needs no allocation; the words hold the digest's bytes in
/// order, the first byte in the lowest bits of the first word.
public struct PageDigest: Hashable, Sendable, BitwiseCopyable {
    /// Bytes in a digest.
    public static let byteCount = 32

    /// The digest's bytes as four little-endian words.
    public var words: (UInt64, UInt64, UInt64, UInt64)

    /// Makes a digest from its words.
    public init(words: (UInt64, UInt64, UInt64, UInt64)) {
        self.words = words
    }

    /// All bytes zero: stands for "no digest" and is never the digest of a page.
    public static let none = PageDigest(words: (0, 0, 0, 0))

    /// Reads a digest from its first 32 bytes.
    ///
    /// - Precondition: `bytes` holds at least 32 bytes.
    @inlinable
    public init(bytes: some Sequence<UInt8>) {
        let loaded = bytes.withContiguousStorageIfAvailable { bytes in
            precondition(bytes.count >= PageDigest.byteCount, "a digest has 32 bytes")
            return UnsafeRawBufferPointer(bytes)
                .loadUnaligned(as: (UInt64, UInt64, UInt64, UInt64).self)
        }
        if let loaded {
            self.words = (
                UInt64(littleEndian: loaded.0), UInt64(littleEndian: loaded.1),
                UInt64(littleEndian: loaded.2), UInt64(littleEndian: loaded.3)
            )
            return
        }
        var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        var position: UInt64 = 0
        for byte in bytes.prefix(PageDigest.byteCount) {
            let shifted = UInt64(byte) << (position % 8 * 8)
            switch position / 8 {
            case 0: words.0 |= shifted
            case 1: words.1 |= shifted
            case 2: words.2 |= shifted
            default: words.3 |= shifted
            }
            position += 1
        }
        precondition(position == 32, "a digest has 32 bytes")
        self.words = words
    }

    /// The digest's bytes in order.
    public var bytes: [UInt8] {
        withUnsafeBytes(of: words) { Array($0) }
    }

    /// Digests are equal if all bytes are.
    public static func == (left: PageDigest, right: PageDigest) -> Bool {
        left.words.0 == right.words.0 && left.words.1 == right.words.1
            && left.words.2 == right.words.2 && left.words.3 == right.words.3
    }

    /// Feeds one word: the digest is uniform already.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
    }
}

extension PageDigest: CustomStringConvertible {
    /// 64 hexadecimal digits, as `b3sum` prints them.
    public var description: String {
        bytes.reduce(into: "") { text, byte in
            text += byte < 16 ? "0" + String(byte, radix: 16) : String(byte, radix: 16)
        }
    }

    /// Reads 64 hexadecimal digits; nil if the text is anything else.
    public init?(hexadecimal text: some StringProtocol) {
        let digits = text.utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
        guard digits.count == 64, text.utf8.count == 64 else { return nil }
        self.init(
            bytes: stride(from: 0, to: 64, by: 2).map { UInt8(digits[$0] * 16 + digits[$0 + 1]) })
    }
}
