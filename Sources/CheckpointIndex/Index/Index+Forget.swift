package import CheckpointFormat
package import GuestModel
import LMDBTables

// Changes of the index by forget and prune.

extension Index {
    /// Removes checkpoints from all lists and names: they no longer exist.
    ///
    /// If the newest of a lineage, or of those that share a label, is forgotten, the one before
    /// takes its place. IDs that are unknown or already forgotten are skipped.
    ///
    /// - Parameter pack: the pack of the forget record.
    package func forget(_ ids: [CheckpointID], in pack: UInt32) throws {
        try environment.write { transaction in
            for id in ids {
                guard let entry = try entry(id, transaction), !entry.isForgotten else { continue }
                try removeFromLists(entry, transaction)
                try put(entry.forgotten(in: pack), transaction)
                try setPending(.hasOwnedFrames, id, transaction)
                if entry.labelPack > 0 { try addCandidate(entry.labelPack, transaction) }
            }
        }
    }

    /// The packs that prune removed.
    package func pruned() throws -> PrunedRecord {
        try environment.read { transaction in
            guard let bytes = try value(transaction, "pruned") else { return PrunedRecord() }
            return try PrunedRecord.decode(bytes)
        }
    }

    /// Records that packs were removed.
    package func setPruned(_ record: PrunedRecord) throws {
        try environment.write { try setValue($0, "pruned", record.encoded) }
    }
}
