import ArgumentParser
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
            space freed, while others are taken. Disks are not part of a checkpoint.
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

    @Option(help: "How long the guest may take to suspend itself; 60s by default.")
    var suspendTimeout: TimeSpan?

    @Flag(help: "Do not use the dirty log: compare every page each time.")
    var compareAll = false

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
            var options = XenDomain.Options.tool
            options.pauseMode = pauseMode.mode
            options.comparesAll = compareAll
            options.takesLogOver = takeOver
            if let suspendTimeout { options.suspendTimeout = suspendTimeout.duration }
            let name = lineage ?? (found.name.isEmpty ? "domain-\(found.domainID)" : found.name)
            let taker = try taker(found, options, repository, lineage: name)
            let report = CheckpointReport(repository, isJSON: json)
            var failure: (any Error)?
            do {
                try taker.takeAll(Schedule(every: every, count: count, time: time), report)
            } catch is Interruption.Requested {
                failure = nil
            } catch {
                failure = error
            }
            do { try taker.finish(report) } catch { failure = failure ?? error }
            report.summary()
            try repository.close()
            if let failure { throw failure }
            try report.check()
        }
    }

    private func taker(
        _ domain: XenHost.Domain, _ options: XenDomain.Options, _ repository: Repository,
        lineage: String
    ) throws -> any CheckpointTaker {
        guard domain.kind == .pv else {
            var capture = CaptureOptions()
            capture.retention = rules.retention
            capture.auditPageCount = audit
            capture.acceptsGuestChange = acceptGuestChange
            return try LiveTaker(
                try XenDomain(domain.domainID, options: options), repository, lineage: lineage,
                capture)
        }
        let guest = try XenPVDomain(domain.domainID, options: options)
        let isLive = try every != nil && !compareAll && guest.logsWrites()
        return try PVTaker(
            guest, repository, lineage: lineage, rules.retention, isLive: isLive,
            acceptsGuestChange: acceptGuestChange)
    }
}

/// When checkpoints are due.
struct Schedule {
    private let interval: Duration
    private let count: Int
    private let time: Duration?
    private let start = ContinuousClock.now
    private var due = ContinuousClock.now
    private var taken = 0

    init(every: TimeSpan?, count: Int?, time: TimeSpan?) {
        interval = every?.duration ?? .zero
        self.count = count ?? (every == nil ? 1 : .max)
        self.time = time?.duration
    }

    /// Waits until the next one is due; nil if there is none, `Interruption.Requested` on `^C`.
    ///
    /// - Returns: how late it is.
    mutating func next() throws -> Duration? {
        let now = ContinuousClock.now
        guard taken < count, time.map({ now - start < $0 }) ?? true else { return nil }
        try Interruption.sleep(for: max(.zero, due - now))
        taken += 1
        let lag = max(.zero, ContinuousClock.now - due)
        // A late checkpoint does not bring later ones closer together.
        due = max(due + interval, ContinuousClock.now)
        return lag
    }
}

/// Takes checkpoints of one kind of domain.
protocol CheckpointTaker {
    /// Takes checkpoints until no more are due.
    func takeAll(_ schedule: Schedule, _ report: CheckpointReport) throws
    /// Waits for captures in progress, and releases the domain; also after a failure.
    func finish(_ report: CheckpointReport) throws
}

/// PVH: the engine, with the hypervisor's log.
final class LiveTaker: CheckpointTaker {
    private struct Pending {
        let capture: PendingCapture
        let times: PauseTimes
        let lag: Duration
    }

    private let guest: XenDomain
    private let session: CaptureSession
    private var pending: Pending?

    init(
        _ guest: XenDomain, _ repository: Repository, lineage: String, _ options: CaptureOptions
    ) throws {
        self.guest = guest
        session = try CaptureSession(
            of: guest, in: repository, lineage: LineageName(lineage), options: options)
        if let reason = guest.comparesAllBecause {
            Output.standardError("varve: every page is compared each time: \(reason)")
        }
    }

    func takeAll(_ schedule: Schedule, _ report: CheckpointReport) throws {
        var schedule = schedule
        while let lag = try schedule.next() {
            // The guest runs again when `begin` returns; the previous one is made durable
            // meanwhile.
            let capture = try session.begin()
            let taken = Pending(capture: capture, times: guest.pauseTimes, lag: lag)
            try settle(report)
            pending = taken
        }
    }

    func finish(_ report: CheckpointReport) throws {
        defer {
            session.close()
            session.retentionReport?.show()
        }
        try settle(report)
    }

    /// nil if an audit found that the dirty log missed pages: nothing was published then, and the
    /// next capture compares every page.
    private func result(of capture: PendingCapture) throws -> CaptureResult? {
        do {
            return try capture.wait()
        } catch {
            guard error.audit != nil else { throw error }
            Output.standardError("varve: \(error.message)")
            return nil
        }
    }

    private func settle(_ report: CheckpointReport) throws {
        guard let settled = pending else { return }
        pending = nil
        guard let result = try result(of: settled.capture) else { return }
        report.show(
            result.checkpoint, dirty: result.dirtyPageCount, downtime: settled.times.downtime,
            request: settled.times.request, lag: settled.lag)
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
final class CheckpointReport {
    private let isJSON: Bool
    private var downtimes: [Duration] = []
    private var requests: [Duration] = []
    private var addedByteCount = 0
    private let start = ContinuousClock.now
    private let printout = Printout()
    private let repository: Repository

    init(_ repository: Repository, isJSON: Bool) {
        self.repository = repository
        self.isJSON = isJSON
    }

    /// Prints a line; checkpoints continue if that fails.
    func show(
        _ checkpoint: Checkpoint, dirty: Int, downtime: Duration, request: Duration, lag: Duration
    ) {
        if downtimes.isEmpty { NewLineage.say(checkpoint, in: repository, isJSON: isJSON) }
        downtimes.append(downtime)
        requests.append(request)
        addedByteCount += checkpoint.addedByteCount
        if isJSON {
            let more: [(String, JSON)] = [
                ("dirtyPages", .integer(dirty)),
                ("downtimeMicroseconds", .integer(downtime.microseconds)),
                ("suspendMicroseconds", .integer(request.microseconds)),
                ("lagMicroseconds", .integer(lag.microseconds)),
            ]
            print(JSON.object(checkpoint.fields + more).text)
        } else {
            print(
                "\(checkpoint.summaryLine); \(dirty) dirty, "
                    + "downtime \(Format.milliseconds(downtime)), "
                    + "suspend \(Format.milliseconds(request)), lag \(Format.milliseconds(lag))")
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
        try printout.check("\(counted(downtimes.count, "checkpoint")) stored")
    }

    /// One line on standard error.
    func summary() {
        guard !downtimes.isEmpty else { return }
        let seconds = Double((ContinuousClock.now - start).microseconds) / 1e6
        Output.standardError(
            "varve: \(counted(downtimes.count, "checkpoint")) in \(Format.decimal(seconds, 1)) s, "
                + "\(Format.bytes(addedByteCount)) added; downtime p50 \(middle(downtimes)), max "
                + "\(Format.milliseconds(downtimes.max() ?? .zero)); "
                + "suspend p50 \(middle(requests)), "
                + "max \(Format.milliseconds(requests.max() ?? .zero))")
    }

    private func middle(_ durations: [Duration]) -> String {
        Format.milliseconds(durations.sorted()[durations.count / 2])
    }
}
