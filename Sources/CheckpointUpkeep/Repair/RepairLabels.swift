import CheckpointFormat
import CheckpointIndex
import GuestModel

/// The labels that were set after publication, as far as they are known.
struct RepairLabels {
    private let mark: ReadMark?
    /// Labels from records; a later record replaces an earlier one.
    private var labels: [CheckpointID: String] = [:]
    /// Checkpoints in a record that the index may not have read.
    private var isNewer: Set<CheckpointID> = []
    /// Labels that only the index has.
    private(set) var byHint: [LabelsRecord.Change] = []

    /// - Parameter mark: how far the index has read the packs; nil if there is no index.
    init(mark: ReadMark?) {
        self.mark = mark
    }

    /// Adds a record; must be called in order of location.
    mutating func add(_ record: LabelsRecord, at location: RecordLocation) {
        for change in record.changes {
            let id = CheckpointID(change.id)
            labels[id] = change.label
            if let mark, (location.pack, location.offset) >= (mark.pack, mark.offset) {
                isNewer.insert(id)
            }
        }
    }

    /// Adds labels that are in the index but in no record: the record was lost.
    mutating func add(_ entries: [CatalogEntry]) {
        for entry in entries
        where entry.labelPack != 0 && !entry.isForgotten && !isNewer.contains(entry.id)
            && labels[entry.id] != entry.label
        {
            labels[entry.id] = entry.label
            byHint.append(LabelsRecord.Change(id: entry.id.digest, label: entry.label))
        }
    }

    /// The checkpoint with its current label.
    func apply(to checkpoint: Checkpoint) -> Checkpoint {
        labels[checkpoint.id].map(checkpoint.labelled) ?? checkpoint
    }
}
