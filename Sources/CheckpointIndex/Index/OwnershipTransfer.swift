import CheckpointFormat
package import GuestModel

/// One checkpoint that gives its owned frames to those that follow it, as a prune planned it.
package struct OwnershipTransfer: Sendable {
    package let id: CheckpointID
    package let predecessor: CheckpointID?
    package let successors: Set<CheckpointID>
    /// Pages of which a reference goes; some may be named several times.
    package var lost: [PageDigest] = []
    /// Pages that get references: several successors go on from one that it had.
    package var gained: [PageDigest: UInt32] = [:]

    package init(id: CheckpointID, predecessor: CheckpointID?, successors: Set<CheckpointID>) {
        self.id = id
        self.predecessor = predecessor
        self.successors = successors
    }
}
