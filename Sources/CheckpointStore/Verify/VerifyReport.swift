/// What a verification found.
public struct VerifyReport: Sendable {
    /// Checkpoints that were walked.
    public var checkpointCount = 0
    /// Packs that were read.
    public var packCount = 0
    /// Bytes that were read and checked.
    public var byteCount = 0
    /// Pages that were decompressed and digested.
    public var pageCount = 0
    /// Bytes behind the newest publication, left by an abandoned transaction.
    ///
    /// They are no damage, and the next writer cuts them off.
    public var abandonedByteCount = 0
    /// Everything that is wrong, in the order in which it was found.
    public var corruptions: [Corruption] = []
    /// Checkpoints that cannot be restored bit for bit.
    public var affectedCheckpoints: [CheckpointID] = []

    /// True if nothing is wrong.
    public var isClean: Bool { corruptions.isEmpty }
}
