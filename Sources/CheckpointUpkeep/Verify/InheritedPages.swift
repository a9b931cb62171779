import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

// A checkpoint's page map may build on the map of one that was forgotten. What that one's own map
// names is then named by no checkpoint that exists, though the later ones have pages from it.

extension Verification {
    /// Looks up the pages that a checkpoint has from the page maps of forgotten ones.
    ///
    /// Pages from the maps of checkpoints that exist were looked up with those.
    func checkInherited(
        by checkpoint: Checkpoint, _ map: PageMap, _ forgotten: Set<CheckpointID>
    ) throws(RepositoryError) {
        var last = checkpoint
        while let ancestor = last.mapAncestor, forgotten.contains(ancestor) {
            last = try repository.ancestor(ancestor)
            try MapReader.forEachPart(reader, last.manifest) { (part) throws(RepositoryError) in
                let held = (part.pages(.storedHere) + part.pages(.storedBefore)).filter {
                    map[$0.frame] == .present($0.digest)
                }
                _ = try find(held, for: checkpoint.id)
            }
        }
    }
}
