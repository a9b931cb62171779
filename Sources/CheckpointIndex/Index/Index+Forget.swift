package import CheckpointFormat
package import GuestModel
package import LMDBTables

// Changes of the index by forget and prune.

extension Index {
    /// Removes checkpoints from all lists and names: they no longer exist.
    ///
    /// If the newest of a lineage, or of those that share a label, is forgotten, the one before
    /// takes its place. IDs that are unknown or already forgotten are skipped.
    ///
    /// - Parameter pack: the pack of the forget record.
    package func forget(_ ids: [CheckpointID], in pack: UInt32) throws(IndexError) {
        try environment.write { (txn) throws(IndexError) in
            for id in ids {
                guard let entry = try entry(id, txn), !entry.isForgotten else { continue }
                try removeFromLists(entry, txn)
                try put(entry.forgotten(in: pack), txn)
                try tables.pending.put(.hasOwnedFrames, for: id, in: txn)
                if entry.labelPack > 0 { try addCandidate(entry.labelPack, txn) }
            }
        }
    }

    /// The packs that prune removed.
    package func pruned() throws(IndexError) -> PrunedRecord {
        try environment.read { (txn) throws(IndexError) in
            try tables.state.pruned.value(in: txn) ?? PrunedRecord()
        }
    }

    /// Records that packs were removed.
    package func setPruned(_ record: PrunedRecord) throws(IndexError) {
        try environment.write { (txn) throws(IndexError) in
            try tables.state.pruned.set(record, in: txn)
        }
    }
}
