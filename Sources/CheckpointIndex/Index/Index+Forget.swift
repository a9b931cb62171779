package import CheckpointFormat
package import GuestModel
import LMDBTables

// What forgetting and pruning change in the index.

extension Index {
    /// Makes checkpoints cease to exist: they are in no list and have no name.
    ///
    /// The newest of a lineage, or of those that share a label, gives its place to the one before.
    /// Ids that are unknown or forgotten already are passed over.
    ///
    /// - Parameter pack: where the record lies that forgets them.
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

    /// The packs that were removed.
    package func pruned() throws -> PrunedRecord {
        try environment.read { transaction in
            guard let bytes = try value(transaction, "pruned") else { return PrunedRecord() }
            return try PrunedRecord.decode(bytes)
        }
    }

    /// Notes that packs were removed.
    package func setPruned(_ record: PrunedRecord) throws {
        try environment.write { try setValue($0, "pruned", record.encoded) }
    }
}
