import CheckpointFormat
public import GuestModel
public import PackStore

/// A damaged place, and what depends on it.
public struct VerifyFinding: Hashable, Sendable {
    /// The place: pack, offset, and what is wrong.
    public internal(set) var corruption: Corruption
    /// Checkpoints that need what is damaged, in order of publication.
    ///
    /// Empty if it is only a pack index, or belongs to nothing that exists.
    public internal(set) var affectedCheckpoints: [CheckpointID] = []
}

/// The result of a verification.
public struct VerifyReport: Sendable {
    /// How much was verified.
    public let depth: VerifyDepth
    /// Number of checkpoints that are whole, as far as they were read.
    public var checkpointCount = 0
    /// Number of packs examined.
    public var packCount = 0
    /// Size in bytes of the packs whose records were read and checked.
    public var byteCount = 0
    /// Number of pages that were decompressed and hashed.
    public var pageCount = 0
    /// Bytes after the newest publication, left by an abandoned transaction.
    ///
    /// They are not damage, and the next writer truncates them.
    public var abandonedByteCount = 0
    /// All damage, in the order in which it was found.
    public var findings: [VerifyFinding] = []
    /// Checkpoints that cannot be restored bit for bit.
    public var affectedCheckpoints: [CheckpointID] = []

    init(depth: VerifyDepth) {
        self.depth = depth
    }

    /// The damaged places.
    public var corruptions: [Corruption] { findings.map(\.corruption) }

    /// True if nothing is damaged.
    public var isClean: Bool { findings.isEmpty }
}
