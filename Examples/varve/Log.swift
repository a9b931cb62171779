import ArgumentParser
import Varve

struct Log: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "log",
        abstract: "Lists checkpoints, the newest first.",
        discussion: """
            --newest, --before and the times may be combined: 'log STORE -n 20 --before ID' is the \
            page after the one that ended with ID. A time has the form that 'log' prints, or is \
            the beginning of one (2026-05-10, 2026-05-10T12:30), in UTC; or a time ago: 30s, 10m, \
            2h, 7d, 4w.

            For a damaged repository it lists the readable checkpoints, names the damage, and ends \
            with exit code 3.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Option(help: "Only checkpoints of this lineage.")
    var lineage: String?

    @Option(name: [.customShort("n"), .long], help: "Only this many of the newest checkpoints.")
    var newest: Int?

    @Option(help: "Only checkpoints taken before this one.")
    var before: String?

    @Option(help: "Only checkpoints of this time or later.", transform: TimeOption.init)
    var since: TimeOption?

    @Option(help: "Only checkpoints of this time or earlier.", transform: TimeOption.init)
    var until: TimeOption?

    @Flag(help: "Print one JSON object per line.")
    var json = false

    func validate() throws {
        if let newest, newest < 1 { throw ValidationError("--newest must be at least 1") }
    }

    func run() throws {
        try reporting {
            let repository = try Reading.open(store, isJSON: json)
            var damage: [Corruption] = []
            let name = try lineage.map { try NewLineage.named($0, in: repository, at: store) }
            let selection = CheckpointSelection(
                lineage: name, newest: newest,
                before: try before.map { try repository.checkpoint(named: $0).id },
                since: since?.first, until: until?.last)
            let checkpoints = try repository.checkpoints(selection) { damage.append($0) }
            if let name, checkpoints.isEmpty, damage.isEmpty,
                try !repository.lineages().contains(where: { $0.name == name })
            {
                throw NewLineage.missing(name.text, in: repository, at: store)
            }
            guard let first = damage.first else { return try show(checkpoints, repository) }
            try Output.report(first.description, isDamaged: true) {
                try show(checkpoints, repository)
            }
            let more = damage.count == 1 ? "" : ", with \(counted(damage.count - 1, "more place"))"
            throw ToolError(
                "\(first.description)\(more); the listed ones can be read, and 'varve verify "
                    + "\(store)' names every damaged place and what needs it", isCorruption: true)
        }
    }

    private func show(_ checkpoints: [Checkpoint], _ repository: Repository) throws {
        if json {
            for checkpoint in checkpoints.reversed() {
                let label = try repository.currentLabel(of: checkpoint)
                let fields = checkpoint.fields.map {
                    $0.0 == "label" ? ("label", JSON(label?.text)) : $0
                }
                try Output.line(JSON.object(fields).text)
            }
            return
        }
        let rows = try checkpoints.reversed().map { checkpoint in
            [
                checkpoint.id.short, checkpoint.parent?.short ?? "-", checkpoint.lineage.text,
                try repository.currentLabel(of: checkpoint)?.text ?? "",
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
