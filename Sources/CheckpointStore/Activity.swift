import CheckpointFormat
import GuestModel

/// Activity of this process that prune must wait for or leave alone.
struct Activity: Sendable {
    /// Transactions in progress, until they are abandoned or indexed; with a position in the packs
    /// before everything that each appends.
    var transactions: [UInt64: RecordLocation] = [:]
    /// Checkpoints on which sessions and transactions are based, and the number of these.
    var sessionLeases: [CheckpointID: Int] = [:]
    /// True during a prune; there is one at a time.
    var isPruning = false
    /// Number of prunes begun: a plan is valid until the next one.
    var pruneCount = 0
    /// The open pack, and its approximate unused size, when a plan found that sealing it would free
    /// nothing.
    var uselessSeal: (pack: UInt32, unusedByteCount: Int)?
    /// Pages that prune is about to delete: transactions that begin now store them again.
    var condemned: Set<PageDigest> = []
}
