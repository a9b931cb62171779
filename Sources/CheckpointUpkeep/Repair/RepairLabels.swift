import CheckpointFormat
import CheckpointIndex
import GuestModel

/// The labels that checkpoints were given after they were published, as far as anything says them.
struct RepairLabels {
    private let mark: ReadMark?
    /// What records say; a later one replaces an earlier one.
    private var labels: [CheckpointID: String] = [:]
    /// Checkpoints that a record names which the index may not have read.
    private var isNewer: Set<CheckpointID> = []
    /// What only the index says.
    private(set) var byHint: [LabelsRecord.Change] = []

    /// - Parameter mark: how far the index read the packs; nil if there is no index.
    init(mark: ReadMark?) {
        self.mark = mark
    }

    /// Adds a record; to be called in the order of places.
    mutating func add(_ record: LabelsRecord, at location: RecordLocation) {
        for change in record.changes {
            let id = CheckpointID(change.id)
            labels[id] = change.label
            if let mark, (location.pack, location.offset) >= (mark.pack, mark.offset) {
                isNewer.insert(id)
            }
        }
    }

    /// Adds what the index says and no record does: the record was lost.
    mutating func add(_ entries: [CatalogEntry]) {
        for entry in entries
        where entry.labelPack != 0 && !entry.isForgotten && !isNewer.contains(entry.id)
            && labels[entry.id] != entry.label
        {
            labels[entry.id] = entry.label
            byHint.append(LabelsRecord.Change(id: entry.id.digest, label: entry.label))
        }
    }

    /// The checkpoint with the label that it has.
    func apply(to checkpoint: Checkpoint) -> Checkpoint {
        labels[checkpoint.id].map(checkpoint.labelled) ?? checkpoint
    }
}
