public import GuestModel

/// What a cut of disks has created outside of the process that made it, as its journal says.
///
/// It may still be in use: the cut that stands for the next capture has an entry too.
public struct DiskLeftover: Hashable, Sendable {
    /// The cut's name, as in `DiskCut.name`; for a pool's metadata snapshot a name of its own.
    public let name: String
    /// True if a living process owns it: it is then not dropped.
    public let isOwned: Bool
    /// True if the cut was made and can be found again by `DiskGroup.standingCut`.
    public let isWhole: Bool
    /// What it may consist of, for a person to read: files, thin volumes, devices.
    public let parts: [String]
}

/// A group that notes what its cuts create, so that what a crash leaves is found.
public protocol JournaledDisks: DiskGroup {
    /// What cuts have created and not removed, including that of living processes.
    ///
    /// Blocks; reads the journal only.
    func leftovers() throws(GuestError) -> [DiskLeftover]

    /// Resumes disks that a dead process left suspended, and removes what no living process owns.
    ///
    /// Cuts that were made and kept are removed too: create the session first, which takes over the
    /// one that it continues from (`standingCut`). Blocks. After a failure it continues with the
    /// other entries, and throws the first error; the entry that failed stays.
    ///
    /// - Returns: what was removed.
    @discardableResult
    func dropLeftovers() throws(GuestError) -> [DiskLeftover]
}
