import ArgumentParser
import Varve

struct Stats: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stats",
        abstract: "Shows what a repository contains and how much space it takes.")

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Flag(help: "Print the result as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Reading.open(store, isJSON: json)
            let statistics = try repository.statistics()
            let plan = try repository.planPrune()
            let held = plan.leasedByteCount
            let open = plan.openUnusedByteCount
            let unused = plan.unusedByteCount + held + open
            if json {
                let fields =
                    Stats.fields(statistics) + [
                        ("unusedBytes", .integer(unused)), ("leasedBytes", .integer(held)),
                        ("openUnusedBytes", .integer(open)),
                    ]
                try Output.line(JSON.object(fields).text)
                return
            }
            for line in Stats.lines(statistics) { try Output.line(line) }
            let reason = held == 0 ? "" : "; \(held) of them as soon as their readers have ended"
            try Output.line(
                "unused bytes    \(unused - open) in sealed packs, of which 'varve prune' can "
                    + "leave less than 4 KiB in each\(reason)")
            if open > 0 {
                try Output.line("unused bytes    about \(open) in the pack to which writers append")
            }
        }
    }

    private static func fields(_ statistics: RepositoryStatistics) -> [(String, JSON)] {
        [
            ("checkpoints", .integer(statistics.checkpointCount)),
            ("pages", .integer(statistics.pageCount)),
            ("unique", .integer(statistics.uniquePageCount)),
            ("zero", .integer(statistics.zeroPageCount)),
            ("changed", .integer(statistics.changedPageCount)),
            ("ratio", .number(statistics.ratio)),
            ("bytes", .integer(statistics.byteCount)),
            ("metadataBytes", .integer(statistics.metadataByteCount)),
            ("metadataBytesPerChangedPage", .number(statistics.metadataBytesPerChangedPage)),
            ("logicalBytes", .integer(statistics.logicalByteCount)),
            ("abandonedBytes", .integer(statistics.abandonedByteCount)),
        ]
    }

    private static func lines(_ statistics: RepositoryStatistics) -> [String] {
        let perPage = Format.decimal(statistics.metadataBytesPerChangedPage, 1)
        return [
            "checkpoints     \(statistics.checkpointCount)",
            "pages           \(statistics.pageCount) in all checkpoints, "
                + "\(Format.bytes(statistics.logicalByteCount)) as full copies",
            "zero            \(statistics.zeroPageCount)",
            "changed         \(statistics.changedPageCount)",
            "unique          \(statistics.uniquePageCount) stored",
            "bytes           \(statistics.byteCount) (\(Format.bytes(statistics.byteCount)))",
            "metadata bytes  \(statistics.metadataByteCount), \(perPage) per changed page",
            "abandoned bytes \(statistics.abandonedByteCount)",
            "ratio           \(Format.decimal(statistics.ratio, 2))",
        ]
    }
}
