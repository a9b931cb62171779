/// The identity of a checkpoint: the digest of its manifest.
public struct CheckpointID: Hashable, Sendable {
    /// The digest.
    public let digest: PageDigest

    /// Wraps a digest.
    public init(_ digest: PageDigest) {
        self.digest = digest
    }

    /// The first 12 hexadecimal digits, for messages.
    public var short: String { String(description.prefix(12)) }
}

extension CheckpointID: CustomStringConvertible {
    /// 64 hexadecimal digits.
    public var description: String { digest.description }
}
