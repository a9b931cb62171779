import ArgumentParser
import Synchronization
import Varve

/// A duration as people write it: `200ms`, `5s`, `10m`, `2h`.
struct TimeSpan: ExpressibleByArgument {
    let duration: Duration

    init?(argument: String) {
        let units: [(String, Double)] = [("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]
        guard let unit = units.first(where: { argument.hasSuffix($0.0) }),
            let value = Double(argument.dropLast(unit.0.count)), value >= 0,
            value * unit.1 < 1e9
        else { return nil }
        duration = .seconds(value * unit.1)
    }
}

/// `--suspend` or `--pause`.
enum PauseFlag: String, EnumerableFlag {
    case suspend
    case pause

    var mode: XenPauseMode { self == .suspend ? .suspend : .pause }

    static func help(for value: PauseFlag) -> ArgumentHelp? {
        switch value {
        case .suspend: "The guest suspends itself: restorable as a new domain."
        case .pause: "The hypervisor pauses it: any guest; for revert in place and introspection."
        }
    }
}

struct XenCheckpoint: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint",
        abstract: "Takes checkpoints of a running domain.",
        discussion: """
            One, or with --every one after another. The first stores all memory, later ones what \
            changed. A line for each shows how many pages were dirty, the downtime of the domain, \
            how long the guest took to suspend, what was added to the repository, and how late \
            the checkpoint was. '^C' ends it cleanly; the domain keeps running.

            With --keep rules, the checkpoints that they do not keep are forgotten, and their \
            space freed, while others are taken.

            A checkpoint contains the disks that the domain can write to, cut while it is \
            suspended: thin volumes of device-mapper, raw or LVM's, and raw files on XFS or \
            btrfs, and what --disk-command cuts. A domain with other disks is refused, unless \
            --no-disks takes only its memory; that is recorded.
            """)

    @Argument(help: "The domain's ID or name.")
    var domain: String

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Option(help: "The lineage to add to; by default the domain's name.")
    var lineage: String?

    @Option(help: "Time from one checkpoint to the next: 200ms, 5s, 10m.")
    var every: TimeSpan?

    @Option(help: "End after this many checkpoints.")
    var count: Int?

    @Option(name: .customLong("for"), help: "End after this time: 10m.")
    var time: TimeSpan?

    @Flag var pauseMode = PauseFlag.suspend

    @Flag(help: "With --pause: take a domain that has devices, only to be read.")
    var introspection = false

    @Option(help: "How long the guest may take to suspend itself; 60s by default.")
    var suspendTimeout: TimeSpan?

    @Flag(help: "Do not use the dirty log: compare every page each time.")
    var compareAll = false

    @Flag(help: "Take only the memory of a domain that has disks.")
    var noDisks = false

    @Option(help: "How long to wait, while suspended, until no request to a disk is under way.")
    var settle: TimeSpan?

    @OptionGroup var command: DiskCommandOption

    @Option(help: "The directory that notes what cuts of disks leave behind after a crash.")
    var diskState: PathArgument?

    @Flag(help: "Keep the last cut: the next run then need not compare whole disks.")
    var keepCut = false

    @Flag(help: "Take over a dirty log that a dead process has left on.")
    var takeOver = false

    @Option(
        help: "Each time, check this many random pages that the dirty log calls unwritten.")
    var audit = 0

    @OptionGroup var rules: RetentionRules

    @Flag(help: "Continue even if the lineage's newest checkpoint is of another guest.")
    var acceptGuestChange = false

    @OptionGroup var lock: LockOptions

    @Flag(help: "Print each checkpoint as a JSON object.")
    var json = false

    func validate() throws {
        if every == nil && (count ?? 1) != 1 { throw ValidationError("--count requires --every") }
        if every == nil && time != nil { throw ValidationError("--for requires --every") }
        if let count, count < 1 { throw ValidationError("--count must be at least 1") }
        if audit < 0 { throw ValidationError("--audit must not be negative") }
    }

    func run() throws {
        try reporting {
            try Interruption.arm()
            let found = try XenHost().domain(named: domain)
            let repository = try lock.open(store)
            let name = lineage ?? (found.name.isEmpty ? "domain-\(found.domainID)" : found.name)
            let checkpointer = try XenCheckpointer(
                of: found, in: repository, lineage: try LineageName(name), options: options)
            if let note = checkpointer.guardNote { Output.standardError("varve: \(note)") }
            if let reason = checkpointer.comparesAllBecause {
                Output.standardError("varve: every page is compared each time: \(reason)")
            }
            let report = CheckpointReport(repository, isJSON: json)
            var failure: (any Error)?
            do {
                try checkpointer.run(schedule, cancellation: Interruption.cancellation) {
                    report.note($0)
                }
            } catch {
                failure = error
            }
            checkpointer.close()
            checkpointer.retentionReport?.show()
            report.summary()
            try repository.close()
            if let failure { throw failure }
            try report.check()
        }
    }

    private var options: XenCheckpointer.Options {
        var options = XenCheckpointer.Options()
        options.domain = .tool
        options.domain.pauseMode = pauseMode.mode
        options.domain.comparesAll = compareAll
        options.domain.takesLogOver = takeOver
        options.domain.isForIntrospection = introspection
        if let suspendTimeout { options.domain.suspendTimeout = suspendTimeout.duration }
        options.capture.retention = rules.retention
        options.capture.auditPageCount = audit
        options.capture.acceptsGuestChange = acceptGuestChange
        options.capture.keepsDiskCut = keepCut
        options.disks = .tool
        if noDisks { options.disks.selection = .none }
        options.disks.command = command.words
        options.disks.thin.notice = { [json] in Failure.notice($0, code: "disks", isJSON: json) }
        if let settle { options.disks.settleTime = settle.duration }
        if let diskState { options.disks.stateDirectory = diskState.path }
        return options
    }

    private var schedule: CheckpointSchedule {
        var schedule = CheckpointSchedule(every: every?.duration ?? .zero)
        schedule.countMax = count ?? (every == nil ? 1 : nil)
        schedule.timeMax = time?.duration
        return schedule
    }
}

extension RetentionReport {
    /// One line on standard error.
    func show() {
        Output.standardError(
            "varve: \(counted(forgottenCount, "checkpoint")) forgotten by --keep rules, "
                + "\(Format.bytes(freedByteCount)) freed by \(counted(pruneCount, "prune"))")
        if let first = inDoubt.first {
            Output.standardError(
                "varve: \(counted(inDoubt.count, "checkpoint")) kept because the time is in doubt: "
                    + "a clock was wrong; 'varve forget STORE \(first.short)' forgets one "
                    + "regardless of its time")
        }
        if let lastFailure {
            Output.standardError(
                "varve: \(counted(failureCount, "thinning")) failed, the last one with: "
                    + lastFailure.message)
        }
    }
}

extension RetentionRules {
    /// For a session; nil if there are no rules.
    var retention: Retention? { policy.isEmpty ? nil : Retention(policy) }
}

/// Lines for checkpoints, and their summary.
final class CheckpointReport: Sendable {
    private struct State {
        var downtimes: [Duration] = []
        var requests: [Duration] = []
        var addedByteCount = 0
    }

    private let isJSON: Bool
    private let start = ContinuousClock.now
    private let state = Mutex(State())
    private let printout = Printout()
    private let repository: Repository

    init(_ repository: Repository, isJSON: Bool) {
        self.repository = repository
        self.isJSON = isJSON
    }

    func note(_ event: XenCheckpointer.Event) {
        switch event {
        case .taken(let taken): show(taken)
        case .auditMissed(let error): Output.standardError("varve: \(error.message)")
        }
    }

    /// Prints a line; checkpoints continue if that fails.
    private func show(_ taken: XenCheckpointer.Taken) {
        let (checkpoint, times) = (taken.checkpoint, taken.pauseTimes)
        let isFirst = state.withLock { state in
            state.downtimes.append(times.downtime)
            state.requests.append(times.request)
            state.addedByteCount += checkpoint.addedByteCount
            return state.downtimes.count == 1
        }
        if isFirst { NewLineage.say(checkpoint, in: repository, isJSON: isJSON) }
        if isJSON {
            let more: [(String, JSON)] = [
                ("dirtyPages", .integer(taken.dirtyPageCount)),
                ("downtimeMicroseconds", .integer(times.downtime.microseconds)),
                ("suspendMicroseconds", .integer(times.request.microseconds)),
                ("lagMicroseconds", .integer(taken.lateness.microseconds)),
            ]
            print(JSON.object(checkpoint.fields + more).text)
        } else {
            print(
                "\(checkpoint.summaryLine); \(taken.dirtyPageCount) dirty, "
                    + "downtime \(Format.milliseconds(times.downtime)), "
                    + "suspend \(Format.milliseconds(times.request)), "
                    + (checkpoint.disks.isEmpty
                        ? ""
                        : "drain \(Format.milliseconds(taken.diskTimes.drain)), "
                            + "cut \(Format.milliseconds(taken.diskTimes.cut)), ")
                    + "lag \(Format.milliseconds(taken.lateness))")
        }
    }

    private func print(_ line: String) {
        printout.print {
            do {
                try Output.line(line)
            } catch {
                // The guest is still checkpointed if no process reads the output.
                Failure.notice(
                    "\(ToolError(error).message); checkpoints continue without their lines",
                    code: "unreported", isJSON: isJSON)
                throw error
            }
        }
    }

    /// Throws, with exit code 4, if lines could not be printed.
    func check() throws {
        let count = state.withLock { $0.downtimes.count }
        try printout.check("\(counted(count, "checkpoint")) stored")
    }

    /// One line on standard error.
    func summary() {
        let state = state.withLock { $0 }
        guard !state.downtimes.isEmpty else { return }
        let seconds = Double((ContinuousClock.now - start).microseconds) / 1e6
        Output.standardError(
            "varve: \(counted(state.downtimes.count, "checkpoint")) in "
                + "\(Format.decimal(seconds, 1)) s, \(Format.bytes(state.addedByteCount)) added; "
                + "downtime p50 \(middle(state.downtimes)), max "
                + "\(Format.milliseconds(state.downtimes.max() ?? .zero)); "
                + "suspend p50 \(middle(state.requests)), "
                + "max \(Format.milliseconds(state.requests.max() ?? .zero))")
    }

    private func middle(_ durations: [Duration]) -> String {
        Format.milliseconds(durations.sorted()[durations.count / 2])
    }
}
