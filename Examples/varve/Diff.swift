import ArgumentParser
import Varve

struct Diff: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diff",
        abstract: "Lists the pages in which two checkpoints differ.",
        discussion: """
            The pages of a disk are its blocks of 4 KiB. If the volume has another size, or a \
            volume is in one of the two only, that is said at the end.

            With --json, one object {"firstPage", "pages", "offset", "length"} for each range, \
            and a last object {"pagesDiffering", "ranges", "bytes", "onlyInFirst", \
            "onlyInSecond"}. "offset" and "length" are the range in bytes, as backup software \
            takes it: up to the end of the larger volume. "bytes" has the two sizes of the volume.
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
            let pair = try [first, second].map { try repository.checkpoint(named: $0) }
            let ranges = try repository.difference(from: pair[0], to: pair[1], volume: volume)
            let sizes = try pair.map { try $0.volume(named: volume).byteCount }
            let only = zip(pair, pair.reversed()).map { one, other in
                one.volumes.map(\.name)
                    .filter { (try? other.volume(named: $0)) == nil }
            }
            let byteEnd = Int(sizes.max() ?? 0)
            let total = ranges.reduce(0) { $0 + $1.count }
            for range in ranges {
                let start = Int(range.first.rawValue)
                if json {
                    let offset = start * Page.byteCount
                    let end = min((start + range.count) * Page.byteCount, byteEnd)
                    try Output.line(
                        JSON.object([
                            ("firstPage", .integer(start)), ("pages", .integer(range.count)),
                            ("offset", .integer(offset)), ("length", .integer(end - offset)),
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
                        ("bytes", .array(sizes.map { .integer(Int($0)) })),
                        ("onlyInFirst", .array(only[0].map { .string($0) })),
                        ("onlyInSecond", .array(only[1].map { .string($0) })),
                    ]).text)
            } else {
                let place = "in \(counted(ranges.count, "range"))"
                try Output.line(
                    "\(counted(total, "page")) \(total == 1 ? "differs" : "differ"), \(place)")
                if sizes[0] != sizes[1] {
                    try Output.line("\(volume) has \(sizes[0]) bytes, and then \(sizes[1])")
                }
                for (checkpoint, names) in zip(pair, only) where !names.isEmpty {
                    try Output.line(
                        "only in \(checkpoint.id.short): \(names.joined(separator: ", "))")
                }
            }
        }
    }
}
