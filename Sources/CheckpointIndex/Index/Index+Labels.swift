package import CheckpointFormat
package import GuestModel
package import LMDBTables

// Labels that were set after publication.

extension Index {
    /// Changes the labels of checkpoints, in one txn.
    ///
    /// Checkpoints that are unknown or forgotten are skipped. Repeating it changes nothing.
    ///
    /// - Parameter pack: the pack of the labels record.
    package func setLabels(_ changes: [LabelsRecord.Change], in pack: UInt32) throws(IndexError) {
        try environment.write { (txn) throws(IndexError) in
            for change in changes {
                guard let entry = try entry(CheckpointID(change.id), txn),
                    !entry.isForgotten
                else { continue }
                try removeFromLists(entry, txn)
                if entry.labelPack > 0 { try addCandidate(entry.labelPack, txn) }
                let changed = entry.labelled(change.label, in: pack)
                try put(changed, txn)
                try addToLists(changed, txn)
            }
        }
    }

    /// True if an existing checkpoint has the label that a change gave it.
    package func hasLabel(_ change: LabelsRecord.Change) throws(IndexError) -> Bool {
        guard let entry = try entry(CheckpointID(change.id)), !entry.isForgotten else {
            return false
        }
        return entry.labelPack > 0 && NameForm.areSame(entry.label, change.label)
    }

    /// The checkpoints with a label that were published after a given one, newest first, at most
    /// `limit`.
    package func labelled(_ label: String, after entry: CatalogEntry, limit: Int)
        throws(IndexError) -> [CheckpointID]
    {
        guard let end = NameKey.end(of: label) else { return [] }
        return try environment.read { (txn) throws(IndexError) in
            var found: [CheckpointID] = []
            var entries = try tables.labels.entriesBackwards(before: end, in: txn)
            while found.count < limit, let (key, id) = try entries.next(), key.isKey(of: label),
                key.order > entry.order
            {
                found.append(id)
            }
            return found
        }
    }
}
