import CheckpointFormat
public import GuestModel
public import PackStore

/// One damaged place, and what depends on it.
public struct VerifyFinding: Hashable, Sendable {
    /// The place: pack, offset, and what is wrong.
    public let corruption: Corruption
    /// Checkpoints that need what is damaged, in the order of publication.
    ///
    /// None if it is only a pack's index, or belongs to nothing that exists.
    public internal(set) var affectedCheckpoints: [CheckpointID] = []
}

/// What a verification found.
public struct VerifyReport: Sendable {
    /// How much was read.
    public let depth: VerifyDepth
    /// Checkpoints that were walked and are whole, as far as they were read.
    public var checkpointCount = 0
    /// Packs that were looked at.
    public var packCount = 0
    /// Bytes of the packs whose records were read and checked.
    public var byteCount = 0
    /// Pages that were decompressed and digested.
    public var pageCount = 0
    /// Bytes behind the newest publication, left by an abandoned transaction.
    ///
    /// They are no damage, and the next writer cuts them off.
    public var abandonedByteCount = 0
    /// Everything that is wrong, in the order in which it was found.
    public var findings: [VerifyFinding] = []
    /// Checkpoints that cannot be restored bit for bit.
    public var affectedCheckpoints: [CheckpointID] = []

    init(depth: VerifyDepth) {
        self.depth = depth
    }

    /// The damaged places.
    public var corruptions: [Corruption] { findings.map(\.corruption) }

    /// True if nothing is wrong.
    public var isClean: Bool { findings.isEmpty }
}
