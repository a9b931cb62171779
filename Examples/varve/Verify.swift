import ArgumentParser
import Varve

struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Reads every byte of a repository and checks it.",
        discussion: """
            Names each damaged place and the checkpoints that cannot be restored. Exit code 3 if \
            anything is damaged. With --json, one object for each damaged place and a last one \
            with the totals.

            --quick reads everything but the page groups of sealed packs. --sample also reads the \
            pages of a random share of all blocks, and shows the probability of finding damage; \
            other samples find the rest.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Flag(help: "Check only the structure, not the contents of pages.")
    var quick = false

    @Option(
        help: ArgumentHelp(
            "Check the pages of a random share of blocks: 5%.", valueName: "0% to 100%"))
    var sample: Percentage?

    @Option(help: "The seed of the sample; the same seed chooses the same blocks.")
    var seed: UInt64?

    @Flag(help: "Print one JSON object per line.")
    var json = false

    func validate() throws {
        if quick && sample != nil {
            throw ValidationError("--quick and --sample are mutually exclusive")
        }
        if seed != nil && sample == nil { throw ValidationError("--seed requires --sample") }
    }

    private var depth: VerifyDepth {
        if quick { return .structure }
        guard let sample else { return .full }
        return .sample(
            share: sample.percent / 100, seed: seed ?? UInt64.random(in: 1...999_999_999))
    }

    func run() throws {
        try reporting {
            let progress = ProgressLine("verified", isJSON: json)
            let report = try look(progress)
            progress.finish()
            let count = report.findings.count
            let result =
                count == 0 ? "nothing is damaged" : "\(counted(count, "place")) damaged"
            try Output.report("\(store) was verified: \(result)", isDamaged: count > 0) {
                if json { try printJSON(report) } else { try printText(report, progress.seconds) }
            }
            if !report.isClean {
                let places = counted(report.findings.count, "place")
                let checkpoints = counted(report.affectedCheckpoints.count, "checkpoint")
                // A sample of the pages does not show which checkpoints need them.
                let cost =
                    report.depth == .full
                    ? "and \(checkpoints) that cannot be restored whole"
                    : "and a full 'varve verify' tells which checkpoints it affects"
                throw ToolError(
                    "damage in \(places) of \(store), \(cost); put copies of the named files in "
                        + "place if you have them, or see what 'varve repair' can save",
                    isCorruption: true)
            }
        }
    }

    /// Verifies; a second time if only the index was damaged, which is then rebuilt.
    private func look(
        _ progress: ProgressLine, isSecond: Bool = false
    ) throws -> VerifyReport {
        do {
            let repository = try Reading.open(store, isJSON: json)
            return try repository.verify(depth, progress: progress.handler())
        } catch let error as RepositoryError where error.code == .indexDamaged && !isSecond {
            return try look(progress, isSecond: true)
        }
    }

    private func printText(_ report: VerifyReport, _ seconds: Double) throws {
        for finding in report.findings {
            try Output.line(finding.corruption.description)
            for id in finding.affectedCheckpoints {
                try Output.line("  needed by checkpoint \(id)")
            }
        }
        for id in report.affectedCheckpoints { try Output.line("affected: checkpoint \(id)") }
        if report.abandonedByteCount > 0 {
            try Output.line(
                "after the last checkpoint: \(counted(report.abandonedByteCount, "byte")) of an "
                    + "abandoned transaction, which the next writer removes")
        }
        switch report.depth {
        case .full: break
        case .structure: try Output.line("structure only: no page was read")
        case .sample(let share, let seed):
            try Output.line(
                "sample of \(Format.decimal(share * 100, 2)) % of the blocks, seed \(seed): one "
                    + "damaged block is found with a probability of \(chance(report, 1)), one of "
                    + "ten with \(chance(report, 10)), one of a hundred with \(chance(report, 100))"
            )
        }
        let speed = Format.bytes(Int(Double(report.byteCount) / max(seconds, 0.001)))
        let whole = report.checkpointCount
        let all = whole + report.affectedCheckpoints.count
        let checkpoints =
            report.affectedCheckpoints.isEmpty
            ? counted(whole, "checkpoint") : "\(whole) of \(counted(all, "checkpoint")) whole"
        let packs = counted(report.packCount, "pack")
        let pages = counted(report.pageCount, "page")
        try Output.line(
            "\(report.isClean ? "clean" : "damaged"): \(checkpoints), \(packs), "
                + "\(Format.bytes(report.byteCount)), \(pages) in "
                + "\(Format.decimal(seconds, 2)) s (\(speed)/s)")
    }

    private func chance(_ report: VerifyReport, _ blocks: Int) -> String {
        let probability = report.depth.probabilityOfFinding(damagedBlocks: blocks)
        return "\(Format.decimal(probability * 100, 1)) %"
    }

    private func printJSON(_ report: VerifyReport) throws {
        for finding in report.findings {
            let corruption = finding.corruption
            try Output.line(
                JSON.object([
                    ("file", .string(corruption.file)),
                    ("offset", .integer(Int(corruption.offset))),
                    ("object", .string(corruption.object)),
                    ("reason", .string(corruption.reason)),
                    ("checkpoint", JSON(corruption.checkpoint?.description)),
                    ("frame", corruption.frame.map { .integer(Int($0.rawValue)) } ?? .null),
                    ("affectedCheckpoints", ids(finding.affectedCheckpoints)),
                ]).text)
        }
        var fields: [(String, JSON)] = [
            ("clean", .bool(report.isClean)),
            ("checkpoints", .integer(report.checkpointCount)),
            ("packs", .integer(report.packCount)),
            ("bytes", .integer(report.byteCount)),
            ("pages", .integer(report.pageCount)),
            ("abandonedBytes", .integer(report.abandonedByteCount)),
            ("corruptions", .integer(report.findings.count)),
            ("affectedCheckpoints", ids(report.affectedCheckpoints)),
        ]
        switch report.depth {
        case .full: fields.append(("depth", .string("full")))
        case .structure: fields.append(("depth", .string("structure")))
        case .sample(let share, let seed):
            fields += [
                ("depth", .string("sample")), ("share", .number(share)),
                ("seed", .integer(Int(truncatingIfNeeded: seed))),
                (
                    "probabilityOfOneBlock",
                    .number(report.depth.probabilityOfFinding(damagedBlocks: 1))
                ),
            ]
        }
        try Output.line(JSON.object(fields).text)
    }

    private func ids(_ checkpoints: [CheckpointID]) -> JSON {
        .array(checkpoints.map { .string($0.description) })
    }
}

/// A share as people write it: `5%`, `5`, `0.5%`.
struct Percentage: ExpressibleByArgument {
    let percent: Double

    init?(argument: String) {
        guard let value = Percentage.number(argument), value > 0, value <= 100 else { return nil }
        percent = value
    }

    /// The number before a percent sign, which is optional.
    static func number(_ argument: String) -> Double? {
        Double(argument.hasSuffix("%") ? String(argument.dropLast()) : argument)
    }
}
