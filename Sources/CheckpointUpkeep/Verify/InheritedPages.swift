import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

// A checkpoint's page map may be based on the map of a forgotten one. The contents of that map are
// then in the map of no existing checkpoint, although later ones have pages from it.

extension Verification {
    /// Looks up the pages that a checkpoint inherits from the page maps of forgotten ones.
    ///
    /// Pages from the maps of existing checkpoints were looked up with those.
    func checkInherited(
        by checkpoint: Checkpoint, _ map: PageMap, _ forgotten: Set<CheckpointID>
    ) throws(RepositoryError) {
        var last = checkpoint
        while let ancestor = last.mapAncestor, forgotten.contains(ancestor) {
            last = try repository.ancestor(ancestor)
            try MapReader.forEachPart(reader, last.manifest) { (part) throws(RepositoryError) in
                for content in [MapRun.Content.storedHere, .storedBefore] {
                    try part.forEachBatch(content) { (batch) throws(RepositoryError) in
                        let held = batch.filter { map[$0.frame] == .present($0.digest) }
                        _ = try find(held, for: checkpoint.id)
                    }
                }
            }
        }
    }
}
