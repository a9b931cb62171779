import Varve

/// Messages about lineages that are new or missing.
enum NewLineage {
    /// Reports on standard error that a checkpoint began a lineage although there are others: its
    /// name may be mistyped.
    static func say(_ checkpoint: Checkpoint, in repository: Repository, isJSON: Bool) {
        guard checkpoint.parent == nil, let lineages = try? repository.lineages(),
            lineages.count > 1
        else { return }
        let near = (try? repository.lineage(nearestTo: checkpoint.lineage.text)).flatMap { $0 }
        let others = counted(lineages.count - 1, "other")
        let rest =
            near.map { "did you mean '\($0)'? 'varve forget' removes \(checkpoint.id.short)" }
            ?? "the repository has \(others)"
        Failure.notice(
            "lineage '\(checkpoint.lineage)' was begun; \(rest)", code: "newLineage",
            isJSON: isJSON)
    }

    /// A lineage as the user wrote it; a name that none can have is missing like any other.
    static func named(
        _ text: String, in repository: Repository, at store: StoreArgument
    ) throws -> LineageName {
        do {
            return try LineageName(text)
        } catch {
            throw missing(text, in: repository, at: store)
        }
    }

    /// The error for a missing lineage.
    static func missing(_ name: String, in repository: Repository, at store: StoreArgument)
        -> ToolError
    {
        let near = (try? repository.lineage(nearestTo: name)).flatMap { $0 }
        let hint = near.map { "; did you mean '\($0)'?" } ?? ""
        return ToolError("there is no lineage '\(name)' in \(store)\(hint)")
    }
}
