// The first 64 bytes of every file of a repository that is not derived data.
//
//   offset size
//        0    8  magic: "VARVEREP" the repository file, "VARVEPAK" a pack, "VARVEHED" the head
//        8    4  format version
//       12    4  size of this envelope: 64
//       16   16  repository ID
//       32    8  the repository's creation time (nanoseconds since 1970); the pack's number; in the
//                head a pack number, times 2^32, plus an offset in that pack
//       40    4  features, one bit each; readers reject unknown bits
//                bit 0: digests are keyed; bit 1: payloads are encrypted (both reserved, 0)
//                bit 2, packs only: rewritten by prune; its records have addresses
//       44    8  key ID, for those features (reserved, 0)
//       52    8  zero
//       60    4  CRC-32C of bytes 0 to 59
//
// All integers are little-endian.

/// Identifies the kind of a file and the repository to which it belongs.
package struct Envelope: Hashable, Sendable {
    /// The kind of file.
    package enum Kind: Sendable {
        case repository
        case pack
        case head

        fileprivate var magic: [UInt8] {
            switch self {
            case .repository: Array("VARVEREP".utf8)
            case .pack: Array("VARVEPAK".utf8)
            case .head: Array("VARVEHED".utf8)
            }
        }
    }

    /// Size of an envelope in bytes.
    package static let byteCount = 64
    /// The version that this code writes, and the only one that it reads.
    package static let formatVersion: UInt32 = 2

    /// The kind of file.
    package let kind: Kind
    /// The repository.
    package let repository: RepositoryID
    /// A pack's number, a repository's creation time in nanoseconds since 1970, or the position
    /// recorded in a head.
    package let number: UInt64
    /// True for a pack that prune rewrote: its records have addresses.
    package let isRewritten: Bool

    private static let rewrittenFeature: UInt32 = 1 << 2

    package init(
        kind: Kind, repository: RepositoryID, number: UInt64, isRewritten: Bool = false
    ) {
        precondition(!isRewritten || kind == .pack, "only packs can be rewritten")
        self.kind = kind
        self.repository = repository
        self.number = number
        self.isRewritten = isRewritten
    }

    /// The encoded 64 bytes.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: Envelope.byteCount)
        writer.write(raw: kind.magic)
        writer.write(Envelope.formatVersion)
        writer.write(UInt32(Envelope.byteCount))
        writer.write(repository)
        writer.write(number)
        writer.write(isRewritten ? Envelope.rewrittenFeature : 0)
        writer.writeZeros(16)
        writer.write(writer.bytes.withUnsafeBytes { Checksum.crc32c($0) })
        return writer.bytes
    }

    /// Why an envelope was rejected.
    package enum Refusal: Error, Hashable, Sendable {
        /// Not a file of this kind.
        case foreign
        /// The file has a later or unknown format version.
        case version(UInt32)
        /// The file uses features that this code does not support.
        case features(UInt32)
        /// The file is of this kind, but damaged.
        case damaged(FormatError)
    }

    /// True for what a crash may leave of an envelope that was being written to a new file.
    package static func isTorn(_ bytes: [UInt8], kind: Kind) -> Bool {
        if bytes.allSatisfy({ $0 == 0 }) { return true }
        return bytes.count < byteCount && kind.magic.starts(with: bytes.prefix(8))
    }

    /// Decodes an envelope of a given kind.
    package static func decode(_ bytes: [UInt8], kind: Kind) throws(Refusal) -> Envelope {
        guard bytes.count >= byteCount, bytes.starts(with: kind.magic) else { throw .foreign }
        let decoded: Result<Envelope, Refusal>
        do throws(FormatError) {
            decoded = try ByteReader.decode(Array(bytes[..<byteCount])) {
                (reader) throws(FormatError) -> Result<Envelope, Refusal> in
                try decodeFields(&reader, kind: kind)
            }
        } catch {
            throw .damaged(error)
        }
        return try decoded.get()
    }

    private static func decodeFields(
        _ reader: inout ByteReader, kind: Kind
    ) throws(FormatError) -> Result<Envelope, Refusal> {
        var checked = reader
        let found = Checksum.crc32c(try checked.read(raw: byteCount - 4))
        let expected = try checked.read(UInt32.self)
        _ = try reader.read(UInt64.self)
        let version = try reader.read(UInt32.self)
        guard found == expected else {
            return .failure(
                .damaged(FormatError(offset: 60, reason: "the envelope's checksum is wrong")))
        }
        guard version == formatVersion else { return .failure(.version(version)) }
        guard try reader.read(UInt32.self) == UInt32(byteCount) else {
            throw FormatError(offset: 12, reason: "the envelope's length is not 64")
        }
        let repository = try reader.readRepositoryID()
        let number = try reader.read(UInt64.self)
        let features = try reader.read(UInt32.self)
        let known = kind == .pack ? rewrittenFeature : 0
        guard features & ~known == 0 else { return .failure(.features(features & ~known)) }
        try reader.readZeros(16, "a reserved field")
        return .success(
            Envelope(
                kind: kind, repository: repository, number: number, isRewritten: features != 0))
    }
}
