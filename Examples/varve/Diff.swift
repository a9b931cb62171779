import ArgumentParser
import Varve

struct Diff: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Lists the pages in which two checkpoints differ.",
        discussion: """
            The pages of a disk are its blocks of 4 KiB.

            With --json, one object {"firstPage", "pages"} for each range, and a last object \
            {"pagesDiffering", "ranges"}.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "One checkpoint.")
    var first: String

    @Argument(help: "Another checkpoint.")
    var second: String

    @Option(help: "The volume to compare: 'memory', or a disk's name.")
    var volume = "memory"

    @Flag(help: "Print one JSON object per line.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Reading.open(store, isJSON: json)
            let ranges = try repository.difference(
                from: try repository.checkpoint(named: first),
                to: try repository.checkpoint(named: second), volume: volume)
            let total = ranges.reduce(0) { $0 + $1.count }
            for range in ranges {
                let start = Int(range.first.rawValue)
                if json {
                    try Output.line(
                        JSON.object([
                            ("firstPage", .integer(start)), ("pages", .integer(range.count)),
                        ]).text)
                } else {
                    let end = start + range.count - 1
                    try Output.line(range.count == 1 ? "\(start)" : "\(start)-\(end)")
                }
            }
            if json {
                try Output.line(
                    JSON.object([
                        ("pagesDiffering", .integer(total)), ("ranges", .integer(ranges.count)),
                    ]).text)
            } else {
                let place = "in \(counted(ranges.count, "range"))"
                try Output.line(
                    "\(counted(total, "page")) \(total == 1 ? "differs" : "differ"), \(place)")
            }
        }
    }
}
