import CheckpointFormat
public import CheckpointIndex
public import GuestModel
public import PackStore

extension Repository {
    /// Gives a checkpoint another label, or none: it has it durably when this returns, and its old
    /// one if this throws.
    ///
    /// The label refers to this checkpoint from then on: those of the lineage that were published
    /// later lose it, and those before keep it, for when this one is forgotten. The checkpoint's
    /// id stays what it is. One record and one sync; waits for the disk. Values of `Checkpoint`
    /// that were looked up before keep the label that they had.
    ///
    /// Fails with `invalidName` if the text cannot be a label, is the name of a lineage, or is the
    /// label of another lineage's checkpoint, with `unknownName` if the checkpoint does not exist,
    /// and with `readOnly` if the repository is not open for writing.
    ///
    /// - Parameters:
    ///   - label: 1 to 255 bytes of letters, digits and `. _ - : @ +`; nil to remove the label.
    ///   - id: a checkpoint that exists.
    /// - Returns: the checkpoint with its label.
    @discardableResult
    public func setLabel(
        _ label: String?, of id: CheckpointID
    ) throws(RepositoryError) -> Checkpoint {
        let writer = try openWriter()
        let checkpoint = try checkpoint(id: id)
        let isCurrent = try currentLabel(of: checkpoint) == checkpoint.label
        if NameForm.areSame(label, checkpoint.label), isCurrent { return checkpoint }
        if let label { try checkNames(lineage: checkpoint.lineage, label: label) }
        var changes = [LabelsRecord.Change(id: id.digest, label: label ?? "")]
        for other in try later(than: id, with: label) {
            changes.append(LabelsRecord.Change(id: other.digest, label: ""))
        }
        let record = LabelsRecord(
            timeNanoseconds: Int64(WallClock.nanoseconds), changes: changes)
        // The read mark stays before the record until the index has it.
        let number = nextTransaction(of: writer)
        defer { didEnd(transaction: number) }
        let location = try writer.appendAlone(.labels, payload: record.encoded)
        didLabel(changes, in: location.pack)
        return checkpoint.labelled(label ?? "")
    }

    /// The checkpoints that have a label and were published after one.
    private func later(
        than id: CheckpointID, with label: String?
    ) throws(RepositoryError) -> [CheckpointID] {
        guard let label else { return [] }
        let limit = LabelsRecord.changeCountMax
        let found = try withCurrentIndex { index in
            guard let entry = try index.entry(id) else { return [CheckpointID]() }
            return try index.labelled(label, after: entry, limit: limit)
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
