import ArgumentParser
import Varve

struct Show: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show",
        abstract: "Shows one checkpoint, and describes its guest.",
        discussion: "The guest is known from the state in a stream of Xen.")

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Flag(help: "Print the result as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Reading.open(store, isJSON: json)
            let found = try repository.checkpoint(named: checkpoint)
            let state = try repository.state(of: found)
            if json {
                let records = state.records.map { record in
                    JSON.object([
                        ("kind", .string(record.kind)), ("bytes", .integer(record.bytes.count)),
                    ])
                }
                let guest = GuestLines(state).map(\.json) ?? .null
                try Output.line(
                    JSON.object(
                        found.fields + [("guest", guest), ("state", .array(records))]
                    ).text)
                return
            }
            for line in Show.lines(found, state) { try Output.line(line) }
        }
    }

    private static func row(_ volume: Volume) -> [String] {
        let held =
            volume.isDisk
            ? "\(counted(volume.pageCount, "block")) not zero"
            : "\(counted(volume.pageCount, "page")), \(volume.zeroPageCount) zero"
        let requests = volume.requestsUnderWay.map { "\(counted($0, "request")) under way, " }
        return [
            volume.name,
            "\(Format.bytes(Int(volume.byteCount))), \(held), \(volume.changedPageCount) changed, "
                + (requests ?? "") + "root \(volume.root.description.prefix(12))",
        ]
    }

    private static func lines(_ checkpoint: Checkpoint, _ state: GuestState) -> [String] {
        var rows = [
            ["id", checkpoint.id.description],
            ["parent", checkpoint.parent?.description ?? "none"],
            ["lineage", checkpoint.lineage.text],
            ["label", checkpoint.label?.text ?? "none"],
            ["time", Format.time(checkpoint.timeNanoseconds)],
            ["root", checkpoint.root.description],
        ]
        rows += checkpoint.volumes.map { Show.row($0) }
        if checkpoint.omitsDisks {
            rows.append(["disks", "omitted: the memory must not run with others"])
        }
        rows += [
            [
                "changed",
                "\(counted(checkpoint.changedPageCount, "page")), "
                    + "\(checkpoint.storedPageCount) stored",
            ],
            [
                "added",
                "\(Format.bytes(checkpoint.addedByteCount)), "
                    + "\(Format.bytes(checkpoint.metadataByteCount)) of it metadata",
            ],
            ["page map", checkpoint.hasBaseMap ? "base" : "delta"],
            ["compared", checkpoint.comparedAll ? "every page" : "pages of the dirty log"],
            ["pause", "\(checkpoint.pause)"],
            ["precopy rounds", "\(checkpoint.precopyRounds)"],
        ]
        rows += GuestLines(state)?.rows ?? []
        for record in state.records {
            rows.append(["state", "\(record.kind), \(counted(record.bytes.count, "byte"))"])
        }
        return rows.map { row in
            row[0] + String(repeating: " ", count: max(1, 16 - row[0].count)) + row[1]
        }
    }
}
