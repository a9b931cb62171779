/// The random ID of a repository, stored in every pack: packs of two repositories cannot mix.
public struct RepositoryID: Hashable, Sendable {
    /// Size of an ID in bytes.
    package static let byteCount = 16

    package let words: (UInt64, UInt64)

    package init(words: (UInt64, UInt64)) {
        self.words = words
    }

    /// Creates a new ID from the system's random numbers.
    package static func random() -> RepositoryID {
        RepositoryID(words: (.random(in: 1 ... .max), .random(in: 1 ... .max)))
    }

    /// IDs are equal if all bytes are.
    public static func == (left: RepositoryID, right: RepositoryID) -> Bool {
        left.words.0 == right.words.0 && left.words.1 == right.words.1
    }

    /// Hashes both words.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
    }
}

extension RepositoryID: CustomStringConvertible {
    /// 32 hexadecimal digits, in the order of the bytes on disk.
    public var description: String {
        withUnsafeBytes(of: (words.0.littleEndian, words.1.littleEndian)) { bytes in
            bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        }
    }
}

extension ByteWriter {
    package mutating func write(_ id: RepositoryID) {
        write(id.words.0)
        write(id.words.1)
    }
}

extension ByteReader {
    package mutating func readRepositoryID() throws(FormatError) -> RepositoryID {
        let first = try read(UInt64.self)
        return RepositoryID(words: (first, try read(UInt64.self)))
    }
}
