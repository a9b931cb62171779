package import CheckpointFormat
package import GuestModel

/// The walk from a checkpoint back over the checkpoints on whose page maps its own is based, to the
/// base map.
///
/// There is no other. Each step is checked to lead to a checkpoint that was published earlier, so
/// the walk ends whatever the manifests state.
package struct MapAncestry {
    /// The checkpoint that was reached.
    package private(set) var current: Checkpoint

    package init(of checkpoint: Checkpoint) { current = checkpoint }

    /// Goes on to the next ancestor.
    ///
    /// - Parameters:
    ///   - find: returns the checkpoint with an ID.
    ///   - unfit: the error for a checkpoint whose page map cannot be based on the one found.
    /// - Returns: the ancestor; nil after the base map.
    package mutating func next<E: Error>(
        _ find: (CheckpointID) throws(E) -> Checkpoint,
        unfit: (Checkpoint, FormatError) -> E
    ) throws(E) -> Checkpoint? {
        guard let id = current.mapAncestor else { return nil }
        let ancestor = try find(id)
        do throws(FormatError) {
            try current.check(ancestor: ancestor)
        } catch {
            throw unfit(current, error)
        }
        current = ancestor
        return ancestor
    }
}
