import CheckpointFormat
package import GuestModel

/// The transfer of one checkpoint's owned frames to its successors, as planned by a prune.
package struct OwnershipTransfer: Sendable {
    package let id: CheckpointID
    package let predecessor: CheckpointID?
    package let successors: Set<CheckpointID>
    /// Pages that lose a reference each; some may be listed several times.
    package var lost: [PageDigest] = []
    /// Pages that gain references: several successors inherit one that the checkpoint had.
    package var gained: [PageDigest: UInt32] = [:]

    package init(id: CheckpointID, predecessor: CheckpointID?, successors: Set<CheckpointID>) {
        self.id = id
        self.predecessor = predecessor
        self.successors = successors
    }
}
