import CheckpointFormat
package import GuestModel

/// One checkpoint that gives its stakes to those that follow it, as a prune planned it.
package struct OwnershipTransfer: Sendable {
    package let id: CheckpointID
    package let forerunner: CheckpointID?
    package let followers: Set<CheckpointID>
    /// Pages of which a reference goes; some may be named several times.
    package var lost: [PageDigest] = []
    /// Pages that get references: several followers go on from one that it had.
    package var gained: [PageDigest: UInt32] = [:]

    package init(id: CheckpointID, forerunner: CheckpointID?, followers: Set<CheckpointID>) {
        self.id = id
        self.forerunner = forerunner
        self.followers = followers
    }
}
