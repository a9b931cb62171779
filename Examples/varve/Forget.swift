import ArgumentParser
import Varve

struct Forget: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "forget",
        abstract: "Forgets checkpoints; 'varve prune' frees their space.",
        discussion: """
            Either names checkpoints, or says which to keep of each lineage: a checkpoint is \
            forgotten if no --keep rule keeps it and it has no label. --keep-hourly 24 keeps the \
            newest one of each of the newest 24 hours that have one. Hours, days, weeks (from \
            Monday) and months are those of UTC. A checkpoint whose time is in doubt, because a \
            clock was wrong, stays as long as it could have stayed with a correct clock, and is \
            reported; naming it forgets it. Either all these checkpoints are forgotten or none; \
            all others stay unchanged. Labels of forgotten checkpoints are removed: a label that \
            an earlier one has too refers to that one again. 'forget STORE LABEL' forgets the \
            checkpoint with the label; 'varve label --remove' removes only a label.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoints.")
    var checkpoints: [String] = []

    @OptionGroup var rules: RetentionRules

    @Option(help: "With --keep rules: only this lineage.")
    var lineage: String?

    @Flag(help: "Show what would be forgotten and why the others stay, and do nothing.")
    var dryRun = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print one JSON object for each.")
    var json = false

    func validate() throws {
        if checkpoints.isEmpty == rules.policy.isEmpty {
            throw ValidationError("name checkpoints, or choose with --keep rules which to keep")
        }
        if lineage != nil && rules.policy.isEmpty {
            throw ValidationError("--lineage requires --keep rules")
        }
    }

    func run() throws {
        try reporting {
            let repository =
                try dryRun ? Reading.open(store, isJSON: json) : lock.open(store)
            let decisions = try decide(repository)
            if !dryRun {
                let ids = decisions.filter { !$0.isKept }.map(\.checkpoint.id)
                try repository.forget(ids)
                try LockOptions.close(
                    repository, after: "\(counted(ids.count, "checkpoint")) forgotten")
            }
            if dryRun { return try print(decisions) }
            let count = decisions.count { !$0.isKept }
            try Output.report("\(counted(count, "checkpoint")) forgotten") {
                try print(decisions)
            }
        }
    }

    private func print(_ decisions: [RetentionPolicy.Decision]) throws {
        for decision in decisions { try print(decision) }
        if !json && !rules.policy.isEmpty {
            let kept = decisions.count { $0.isKept }
            try Output.line(
                "\(decisions.count - kept) \(dryRun ? "would go" : "forgotten"), \(kept) stay")
            for line in clockLines(decisions) { try Output.line(line) }
        }
    }

    private func decide(_ repository: Repository) throws -> [RetentionPolicy.Decision] {
        guard rules.policy.isEmpty else {
            let name = try lineage.map { try NewLineage.named($0, in: repository, at: store) }
            let found = try repository.checkpoints(lineage: name)
            if let name, found.isEmpty {
                throw NewLineage.missing(name.text, in: repository, at: store)
            }
            return rules.policy.decide(found)
        }
        // All names are resolved before anything is forgotten: 'web' and 'web~1' are two
        // checkpoints.
        let found = try checkpoints.map { try repository.checkpoint(named: $0) }
        var seen: Set<CheckpointID> = []
        return found.filter { seen.insert($0.id).inserted }.map {
            RetentionPolicy.Decision(checkpoint: $0, reasons: [])
        }
    }

    /// The effects of a wrong clock.
    private func clockLines(_ decisions: [RetentionPolicy.Decision]) -> [String] {
        let doubtful = decisions.filter { $0.timeDoubt != nil }
        var lines: [String] = []
        if let first = doubtful.first {
            lines.append(
                "\(counted(doubtful.count, "checkpoint")) kept because the time is in doubt: a "
                    + "clock was wrong; 'varve forget STORE \(first.checkpoint.id.short)' forgets "
                    + "one regardless of its time")
        }
        let apart = decisions.count { $0.isBeforeClockJump && $0.isKept }
        if apart > 0 {
            lines.append(
                "\(counted(apart, "checkpoint")) kept by rules that count what came before a jump "
                    + "of the clock by more than a year separately")
        }
        return lines
    }

    private func print(_ decision: RetentionPolicy.Decision) throws {
        let checkpoint = decision.checkpoint
        if json {
            let reasons = decision.reasons.map { JSON.string("\($0)") }
            try Output.line(
                JSON.object(
                    [
                        ("forgotten", .bool(!decision.isKept)), ("reasons", .array(reasons)),
                        ("timeInDoubt", JSON(decision.timeDoubt?.rawValue)),
                        ("beforeClockJump", .bool(decision.isBeforeClockJump)),
                    ] + checkpoint.fields
                ).text)
            return
        }
        let time = Format.time(checkpoint.timeNanoseconds).prefix(23)
        let what = "\(checkpoint.id.short) of '\(checkpoint.lineage)', \(time)"
        if decision.isKept {
            let reasons = decision.reasons.map { "\($0)" }.joined(separator: ", ")
            try Output.line("stays       \(what): \(reasons)")
        } else {
            try Output.line("\(dryRun ? "would go   " : "forgotten  ") \(what)")
        }
    }
}

/// The retention rules, as options.
struct RetentionRules: ParsableArguments {
    @Option(help: "Keep this many of the newest checkpoints.")
    var keepLast = 0

    @Option(
        help: "Keep checkpoints at most this much older than the newest: 30s, 10m, 2h, 7d, 4w.",
        transform: RetentionRules.duration)
    var keepWithin: Duration?

    @Option(help: "Keep the newest checkpoint of each second, for this many seconds.")
    var keepSecondly = 0

    @Option(help: "Keep the newest checkpoint of each minute, for this many minutes.")
    var keepMinutely = 0

    @Option(help: "Keep the newest checkpoint of each hour, for this many hours.")
    var keepHourly = 0

    @Option(help: "Keep the newest checkpoint of each day, for this many days.")
    var keepDaily = 0

    @Option(help: "Keep the newest checkpoint of each week, for this many weeks.")
    var keepWeekly = 0

    @Option(help: "Keep the newest checkpoint of each month, for this many months.")
    var keepMonthly = 0

    var policy: RetentionPolicy {
        RetentionPolicy(
            keepLast: keepLast, keepWithin: keepWithin, keepSecondly: keepSecondly,
            keepMinutely: keepMinutely, keepHourly: keepHourly, keepDaily: keepDaily,
            keepWeekly: keepWeekly, keepMonthly: keepMonthly)
    }

    func validate() throws {
        let counts = [
            keepLast, keepSecondly, keepMinutely, keepHourly, keepDaily, keepWeekly, keepMonthly,
        ]
        guard counts.allSatisfy({ $0 >= 0 }) else {
            throw ValidationError("a --keep rule must not be negative")
        }
    }

    private static func duration(_ text: String) throws -> Duration {
        guard let span = span(text) else {
            throw ValidationError("'\(text)' is not a time; give a number and one of s, m, h, d, w")
        }
        return span
    }

    /// A number and one of s, m, h, d, w; nil if it is something else.
    static func span(_ text: String) -> Duration? {
        let units: [Character: Int] = ["s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800]
        guard let unit = text.last.flatMap({ units[$0] }), let count = Int(text.dropLast()),
            count >= 0, count <= 1_000_000
        else { return nil }
        return .seconds(count * unit)
    }
}
