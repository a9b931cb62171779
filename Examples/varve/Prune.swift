import ArgumentParser
import Varve

struct Prune: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "prune",
        abstract: "Frees the space of forgotten checkpoints and abandoned transactions.",
        discussion: """
            Packs of which nothing is needed are removed. The sparsest of the others are rewritten \
            until at most --max-unused percent of the repository's bytes are unused; a pack is \
            kept if rewriting would free less than 4 KiB. The open pack, to which writers append, \
            is left alone unless much of it is unused. What a reader of a forgotten checkpoint \
            needs is kept (held). Prune can be interrupted at any moment without loss.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Flag(help: "Show what would be done, and do nothing.")
    var dryRun = false

    @Option(
        help: ArgumentHelp(
            """
            Unused bytes that may remain, in percent of the repository's bytes: 5 or 5%. With 0, \
            less than 4 KiB may remain in each pack.
            """,
            valueName: "0 to 100"))
    var maxUnused = Allowance(percent: 5)

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print the result as a JSON object.")
    var json = false

    func run() throws {
        try reporting {
            let repository =
                try dryRun ? Reading.open(store, isJSON: json) : lock.open(store)
            var plan = try repository.planPrune(PruneOptions(unusedPercentMax: maxUnused.percent))
            if !dryRun {
                let progress = ProgressLine("packs pruned", isJSON: json)
                plan = try plan.execute(progress: progress.handler())
                progress.finish()
                try LockOptions.close(
                    repository, after: "\(Format.bytes(plan.freedByteCount)) were freed")
            }
            if dryRun { return try print(plan) }
            try Output.report("\(Format.bytes(plan.freedByteCount)) were freed") { try print(plan) }
        }
    }

    private func print(_ plan: PrunePlan) throws {
        if json { return try Output.line(JSON.object(fields(plan)).text) }
        for line in lines(plan) { try Output.line(line) }
    }

    private func count(_ plan: PrunePlan, _ fate: PrunePlan.Fate) -> Int {
        plan.packs.count { $0.fate == fate }
    }

    private func unusedAfter(_ plan: PrunePlan) -> Int {
        plan.unusedByteCount + plan.leasedByteCount - plan.freedByteCount
    }

    private func fields(_ plan: PrunePlan) -> [(String, JSON)] {
        [
            ("dryRun", .bool(dryRun)),
            ("packsRemoved", .integer(count(plan, .removed))),
            ("packsRewritten", .integer(count(plan, .rewritten))),
            ("packsKept", .integer(count(plan, .kept))),
            ("bytes", .integer(plan.byteCount)),
            ("bytesFreed", .integer(plan.freedByteCount)),
            ("bytesCopied", .integer(plan.copiedByteCount)),
            ("bytesUnusedBefore", .integer(plan.unusedByteCount + plan.leasedByteCount)),
            ("bytesUnusedAfter", .integer(unusedAfter(plan))),
            ("bytesLeased", .integer(plan.leasedByteCount)),
            ("pagesDropped", .integer(plan.deadPageCount)),
        ]
    }

    private func lines(_ plan: PrunePlan) -> [String] {
        let held = plan.leasedByteCount
        let reason = held == 0 ? "" : ", \(Format.bytes(held)) of them held by readers"
        return [
            "\(dryRun ? "would remove" : "removed") \(counted(count(plan, .removed), "pack")), "
                + "\(dryRun ? "rewrite" : "rewrote") \(count(plan, .rewritten)) and "
                + "\(dryRun ? "keep" : "kept") \(count(plan, .kept))",
            "freed   \(Format.bytes(plan.freedByteCount)) of \(Format.bytes(plan.byteCount)), "
                + counted(plan.deadPageCount, "page"),
            "copied  \(Format.bytes(plan.copiedByteCount))",
            "unused  \(Format.bytes(unusedAfter(plan))) left in sealed packs\(reason)",
        ]
    }
}

/// A share that may be zero: `5`, `5%`, `0`.
struct Allowance: ExpressibleByArgument, CustomStringConvertible {
    let percent: Double

    init(percent: Double) {
        self.percent = percent
    }

    init?(argument: String) {
        guard let value = Percentage.number(argument), value >= 0, value <= 100 else { return nil }
        percent = value
    }

    var description: String { "\(percent)" }
}
