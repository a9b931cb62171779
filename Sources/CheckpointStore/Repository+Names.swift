import CheckpointFormat
public import CheckpointIndex
import GuestModel
public import PackStore

extension Repository {
    /// Fails unless a lineage, and a label if there is one, are valid for a new checkpoint.
    ///
    /// A name has one meaning: no label equals a lineage's name or vice versa, and all checkpoints
    /// that share a label are of one lineage; the label refers to the newest of them.
    package func checkNames(
        lineage: LineageName, label: Label?
    ) throws(RepositoryError) {
        let exists = try newest(ofLineage: lineage) != nil
        if !exists { try Names.checkNew(lineage.text, kind: "lineage") }
        if !exists, let id = try withCurrentIndex({ try $0.labelled(lineage.text) }) {
            throw RepositoryError(
                .invalidName,
                "'\(lineage)' is the label of checkpoint \(id.short), so no lineage can begin with "
                    + "this name; choose another")
        }
        guard let label else { return }
        let isLineage = try newest(ofLineage: LineageName(stored: label.text)) != nil
        if isLineage || NameForm.areSame(label.text, lineage.text) {
            throw RepositoryError(
                .invalidName,
                "'\(label)' is the name of a lineage, so it cannot be a label; choose another")
        }
        guard let id = try withCurrentIndex({ try $0.labelled(label.text) }) else {
            return try Names.checkNew(label.text, kind: "label")
        }
        let other = try checkpoint(id: id)
        guard other.lineage == lineage else {
            throw RepositoryError(
                .invalidName,
                "'\(label)' is the label of checkpoint \(id.short) of lineage '\(other.lineage)'; "
                    + "choose another")
        }
    }

    /// The lineage whose name is most similar to a given one, for suggestions; nil if none is.
    ///
    /// Considers at most 10,000 lineages.
    public func lineage(nearestTo name: String) throws(RepositoryError) -> LineageName? {
        let names = try lineages().prefix(Repository.nearNameCountMax).map(\.name.text)
        return Names.nearest(to: name, among: names).map { LineageName(stored: $0) }
    }

    /// The lineage or label whose name is most similar to a given one; nil if none is.
    func name(nearestTo name: String) throws(RepositoryError) -> String? {
        let names = try withCurrentIndex { index in
            try index.names(limit: Repository.nearNameCountMax)
        }
        return Names.nearest(to: name, among: names)
    }

    private static let nearNameCountMax = 10_000
}
