package import CheckpointFormat
package import GuestModel
import LMDBTables

// Labels that were set after publication.

extension Index {
    /// Changes the labels of checkpoints, in one txn.
    ///
    /// Checkpoints that are unknown or forgotten are skipped. Repeating it changes nothing.
    ///
    /// - Parameter pack: the pack of the labels record.
    package func setLabels(_ changes: [LabelsRecord.Change], in pack: UInt32) throws {
        try environment.write { transaction in
            for change in changes {
                guard let entry = try entry(CheckpointID(change.id), transaction),
                    !entry.isForgotten
                else { continue }
                try removeFromLists(entry, transaction)
                if entry.labelPack > 0 { try addCandidate(entry.labelPack, transaction) }
                let changed = entry.labelled(change.label, in: pack)
                try put(changed, transaction)
                try addToLists(changed, transaction)
            }
        }
    }

    /// True if an existing checkpoint has the label that a change gave it.
    package func hasLabel(_ change: LabelsRecord.Change) throws -> Bool {
        guard let entry = try entry(CheckpointID(change.id)), !entry.isForgotten else {
            return false
        }
        return entry.labelPack > 0 && NameForm.areSame(entry.label, change.label)
    }

    /// The checkpoints with a label that were published after a given one, newest first, at most
    /// `limit`.
    package func labelled(_ label: String, after entry: CatalogEntry, limit: Int) throws
        -> [CheckpointID]
    {
        guard let end = NameKey.end(of: label) else { return [] }
        return try environment.read { transaction in
            var found: [CheckpointID] = []
            try transaction.scanBackwards(table(.labels), before: end) {
                (key, value) throws(LMDBError) in
                guard NameKey.isKey(key, of: label),
                    try Index.order(in: key.suffix(8)) > entry.order
                else { return false }
                found.append(try CheckpointID(indexed: value))
                return found.count < limit
            }
            return found
        }
    }
}
