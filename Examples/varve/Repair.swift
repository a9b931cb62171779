import ArgumentParser
import Varve

struct Repair: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "repair",
        abstract: "Makes a damaged repository whole again, without what cannot be saved.",
        discussion: """
            Without --execute it reads every byte, shows what is damaged, what would be done and \
            which checkpoints would be lost, and changes nothing: exit code 3 if there is anything \
            to repair, 0 if not. With --execute it does that, and then verifies every byte: exit \
            code 0 if the repository is whole then. It takes the writer's lock; where nothing can \
            be written it shows the plan without it.

            Checkpoints that cannot be restored bit for bit are forgotten; all others stay \
            unchanged. Packs with damaged places are rewritten without them. The original packs, \
            and files that are not packs, are moved to the folder 'damaged' of the repository, \
            which you may delete. Repair can be interrupted at any moment without loss.

            If you have a copy of a damaged or missing pack, put it in place first.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Flag(help: "Do what is shown.")
    var execute = false

    @Flag(help: "With --execute: keep no original packs. Files that are not packs are kept.")
    var noKeep = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print one JSON object for each damaged place, and a last one with the totals.")
    var json = false

    func validate() throws {
        if noKeep && !execute { throw ValidationError("--no-keep requires --execute") }
    }

    func run() throws {
        try reporting {
            try StoreFiles.refuseStandardOutput(in: store)
            let progress = ProgressLine("read", isJSON: json)
            let plan = try lock.taking { waiting in
                try Repository.planRepair(
                    at: store.path, waiting: waiting, cancellation: Interruption.cancellation,
                    progress: progress.handler())
            }
            progress.finish()
            let printout = Printout()
            printout.print { for finding in plan.findings { try show(finding) } }
            let outcome = try execute ? done(plan) : nil
            printout.print {
                if json {
                    try Output.line(JSON.object(fields(plan, outcome)).text)
                } else {
                    for line in lines(plan, outcome) { try Output.line(line) }
                }
            }
            try end(plan, outcome)
            try printout.check(
                outcome == nil ? "nothing is damaged in \(store)" : "\(store) is repaired")
        }
    }

    private func done(_ plan: RepairPlan) throws -> RepairOutcome {
        let progress = ProgressLine("packs repaired", isJSON: json)
        let outcome = try plan.execute(
            keepsOriginals: !noKeep, progress: progress.handler())
        progress.finish()
        return outcome
    }

    private func end(_ plan: RepairPlan, _ outcome: RepairOutcome?) throws {
        if let outcome {
            guard !outcome.report.isClean else { return }
            throw ToolError(
                "\(store) is not whole yet: \(outcome.report.findings[0].corruption); run "
                    + "'varve verify \(store)'", isCorruption: true)
        }
        guard !plan.isEmpty else { return }
        throw ToolError(
            "damage in \(counted(plan.findings.count, "place")) of \(store); "
                + "\(counted(plan.losses.count, "checkpoint")) would be lost and "
                + "\(plan.wholeCheckpoints.count) stay; put copies of the named packs in place "
                + "if you have them, or run it again with --execute", isCorruption: true)
    }

    // MARK: - Sentences

    private func show(_ finding: RepairPlan.Finding) throws {
        if json {
            try Output.line(JSON.object(fields(finding)).text)
            return
        }
        try Output.line(finding.corruption.description)
        try Output.line("  " + sentence(finding.remedy))
        for id in finding.affectedCheckpoints { try Output.line("  loses checkpoint \(id)") }
    }

    private func sentence(_ remedy: RepairPlan.Remedy) -> String {
        switch remedy {
        case .rewritten: "the pack is rewritten without it"
        case .removed: "the pack is removed: it has nothing else"
        case .moved: "the file is moved to the folder 'damaged'"
        case .renamed: "the file gets the right name"
        case .named: "the pack is no longer missed"
        case .rebuilt: "it is rebuilt"
        case .forgotten: "the checkpoint is forgotten, and a copy of the pack is kept"
        }
    }

    private func lines(_ plan: RepairPlan, _ outcome: RepairOutcome?) -> [String] {
        var lines = plan.losses.map { loss in
            let what = loss.checkpoint.map {
                " of '\($0.lineage)', \(Format.time($0.timeNanoseconds).prefix(23))"
            }
            return "lost        \(loss.id.short)\(what ?? ""): \(reason(loss))"
        }
        if plan.isEmpty {
            let whole = counted(plan.wholeCheckpoints.count, "checkpoint")
            lines.append("nothing is damaged: \(whole) whole")
        } else {
            lines += [
                "checkpoints  \(plan.wholeCheckpoints.count) stay, \(plan.losses.count) are lost",
                "packs        \(plan.rewrittenPacks.count) rewritten, "
                    + "\(plan.removedPacks.count) removed, "
                    + "\(plan.missingPacks.reduce(0) { $0 + $1.count }) missing",
                "pages        \(plan.savedPageCount) stored again from damaged page groups",
                "written      \(Format.bytes(plan.copiedByteCount))",
                "kept         \(Format.bytes(outcome?.keptByteCount ?? plan.keptByteCount)) in "
                    + "the folder 'damaged'\(execute ? "" : ", less with --no-keep")",
            ]
        }
        if let outcome {
            lines.append(
                outcome.report.isClean
                    ? "repaired: the repository is whole"
                    : "damaged: \(counted(outcome.report.findings.count, "place"))")
        }
        return lines
    }

    private func reason(_ loss: RepairPlan.Loss) -> String {
        let parts = loss.volumes.map { volume in
            let count = volume.frames.reduce(0) { $0 + $1.count }
            let first = volume.frames.first?.first ?? PageFrameNumber(0)
            let more = volume.frames.count > 1 ? " on" : ""
            return volume.disk.map {
                "\(counted(count, "block")) of disk \($0), from \(first.rawValue)\(more)"
            } ?? "\(counted(count, "frame")), from \(first)\(more)"
        }
        guard !parts.isEmpty else {
            return "\(loss.reason.object) in \(loss.reason.file) at offset \(loss.reason.offset)"
        }
        return parts.joined(separator: ", ")
    }

    // MARK: - JSON

    private func fields(_ finding: RepairPlan.Finding) -> [(String, JSON)] {
        let corruption = finding.corruption
        return [
            ("file", .string(corruption.file)),
            ("offset", .integer(Int(corruption.offset))),
            ("end", finding.end.map { .integer(Int($0)) } ?? .null),
            ("object", .string(corruption.object)),
            ("reason", .string(corruption.reason)),
            ("remedy", .string(finding.remedy.rawValue)),
            (
                "affectedCheckpoints",
                .array(finding.affectedCheckpoints.map { .string($0.description) })
            ),
        ]
    }

    private func fields(_ plan: RepairPlan, _ outcome: RepairOutcome?) -> [(String, JSON)] {
        func packs(_ numbers: [UInt32]) -> JSON { .array(numbers.map { .integer(Int($0)) }) }
        return [
            ("executed", .bool(outcome != nil)),
            ("clean", .bool(outcome.map { $0.report.isClean } ?? plan.isEmpty)),
            ("findings", .integer(plan.findings.count)),
            ("checkpointsWhole", .integer(plan.wholeCheckpoints.count)),
            ("checkpointsLost", .array(plan.losses.map { JSON.object(fields($0)) })),
            ("packsRewritten", packs(plan.rewrittenPacks)),
            ("packsRemoved", packs(plan.removedPacks)),
            ("packsMissing", missing(plan.missingPacks)),
            ("filesMoved", .array(plan.movedFiles.map { .string($0) })),
            ("pagesSaved", .integer(plan.savedPageCount)),
            ("bytesCopied", .integer(plan.copiedByteCount)),
            ("bytesKept", .integer(outcome?.keptByteCount ?? plan.keptByteCount)),
        ]
    }

    /// Numbers of packs; a wide gap as its first and last.
    private func missing(_ packs: [ClosedRange<UInt32>]) -> JSON {
        .array(
            packs.flatMap { gap -> [JSON] in
                gap.count == 1
                    ? [.integer(Int(gap.lowerBound))]
                    : [
                        .array([
                            .integer(Int(gap.lowerBound)), .integer(Int(gap.upperBound)),
                        ])
                    ]
            })
    }

    private func fields(_ loss: RepairPlan.Loss) -> [(String, JSON)] {
        func runs(_ frames: [PageRange]) -> JSON {
            .array(
                frames.map { run in
                    JSON.array([.integer(Int(run.first.rawValue)), .integer(run.count)])
                })
        }
        let memory = loss.volumes.first { $0.disk == nil }?.frames ?? []
        let disks = loss.volumes.compactMap { volume in
            volume.disk.map {
                JSON.object([("name", .string($0)), ("blocks", runs(volume.frames))])
            }
        }
        return [
            ("id", .string(loss.id.description)),
            ("lineage", JSON(loss.checkpoint?.lineage.text)),
            ("label", JSON(loss.checkpoint?.label?.text)),
            ("file", .string(loss.reason.file)),
            ("offset", .integer(Int(loss.reason.offset))),
            ("object", .string(loss.reason.object)),
            ("reason", .string(loss.reason.reason)),
            ("frames", runs(memory)),
            ("disks", .array(disks)),
        ]
    }
}
