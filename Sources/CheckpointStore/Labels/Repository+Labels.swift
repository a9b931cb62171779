import CheckpointFormat
public import CheckpointIndex
public import GuestModel
public import PackStore

extension Repository {
    /// Changes or removes a checkpoint's label: the change is durable when this returns; if it
    /// throws, the old label remains.
    ///
    /// From then on the label refers to this checkpoint: later ones of the lineage lose it, and
    /// earlier ones keep it, in case this one is forgotten. The checkpoint's ID does not change.
    /// Costs one record and one sync; blocks on the disk. `Checkpoint` values that were looked up
    /// before keep their label.
    ///
    /// Fails with `invalidName` if the label is the name of a lineage, or the label of a checkpoint
    /// of another lineage; with `unknownName` if the checkpoint does not
    /// exist; and with `readOnly` if the repository is not open for writing.
    ///
    /// - Parameters:
    ///   - label: the new label; nil to remove the label.
    ///   - id: an existing checkpoint.
    /// - Returns: the checkpoint with its new label.
    @discardableResult
    public func setLabel(
        _ label: Label?, of id: CheckpointID
    ) throws(RepositoryError) -> Checkpoint {
        let writer = try openWriter()
        let checkpoint = try checkpoint(id: id)
        let isCurrent = try currentLabel(of: checkpoint) == checkpoint.label
        if label == checkpoint.label, isCurrent { return checkpoint }
        if let label { try checkNames(lineage: checkpoint.lineage, label: label) }
        var changes = [LabelsRecord.Change(id: id.digest, label: label?.text ?? "")]
        for other in try later(than: id, with: label) {
            changes.append(LabelsRecord.Change(id: other.digest, label: ""))
        }
        let record = LabelsRecord(
            timeNanoseconds: Int64(WallClock.nanoseconds), changes: changes)
        // The read mark stays before the record until it is indexed.
        let number = nextTransaction(of: writer)
        defer { didEnd(transaction: number) }
        let location = try writer.appendAlone(.labels, payload: record.encoded)
        didLabel(changes, in: location.pack)
        return checkpoint.labelled(label?.text ?? "")
    }

    /// The checkpoints that have a label and were published after a given one.
    private func later(
        than id: CheckpointID, with label: Label?
    ) throws(RepositoryError) -> [CheckpointID] {
        guard let label else { return [] }
        let limit = LabelsRecord.changeCountMax
        let found = try withCurrentIndex { index in
            guard let entry = try index.entry(id) else { return [CheckpointID]() }
            return try index.labelled(label.text, after: entry, limit: limit)
        }
        guard found.count < limit else {
            throw RepositoryError(
                .invalidName,
                "more than \(limit - 1) later checkpoints have the label '\(label)'; choose another"
            )
        }
        return found
    }
}
