import ArgumentParser
import SystemPackage
import Varve

struct Log: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Lists checkpoints, the newest first.",
        discussion: """
            Of a damaged repository it lists those that can be read, names the damage, and ends \
            with exit code 3.
            """)

    @Argument(help: "The repository.")
    var store: String

    @Option(help: "Only those of one lineage.")
    var lineage: String?

    @Flag(help: "Print one JSON object a line.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Repository.open(at: FilePath(store), .reading)
            var damage: [Corruption] = []
            let checkpoints = try repository.checkpoints(lineage: lineage) { damage.append($0) }
            if let lineage, checkpoints.isEmpty, damage.isEmpty {
                throw NewLineage.missing(lineage, in: repository, at: store)
            }
            guard let first = damage.first else { return try show(checkpoints) }
            try Output.report(first.description, isDamaged: true) { try show(checkpoints) }
            let more = damage.count == 1 ? "" : ", with \(counted(damage.count - 1, "more place"))"
            throw ToolError(
                "\(first.description)\(more); those listed can be read, and 'varve verify "
                    + "\(store)' names every damaged place and what needs it", isCorruption: true)
        }
    }

    private func show(_ checkpoints: [Checkpoint]) throws {
        // A label is the newest one's that was given it.
        var labels: Set<String> = []
        let named = checkpoints.reversed().map { checkpoint in
            (checkpoint, checkpoint.label.flatMap { labels.insert($0).inserted ? $0 : nil })
        }
        if json {
            for (checkpoint, label) in named {
                let fields = checkpoint.fields.map { $0.0 == "label" ? ("label", JSON(label)) : $0 }
                try Output.line(JSON.object(fields).text)
            }
            return
        }
        let rows = named.map { checkpoint, label in
            [
                checkpoint.id.short, checkpoint.parent?.short ?? "-", checkpoint.lineage,
                label ?? "",
                String(Format.time(checkpoint.timeNanoseconds).prefix(23)),
                String(checkpoint.root.description.prefix(12)),
                String(checkpoint.changedPageCount), String(checkpoint.addedByteCount),
            ]
        }
        let header = [
            "id", "parent", "lineage", "label", "time (UTC)", "root", "pages changed",
            "bytes added",
        ]
        for line in Format.table(header, rows, right: [6, 7]) { try Output.line(line) }
    }
}
