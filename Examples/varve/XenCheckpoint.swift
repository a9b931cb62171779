import ArgumentParser
import SystemPackage
import Varve

/// A time as people write it: `200ms`, `5s`, `10m`, `2h`.
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
enum HoldFlag: String, EnumerableFlag {
    case suspend
    case pause

    var hold: XenHold { self == .suspend ? .suspend : .pause }

    static func help(for value: HoldFlag) -> ArgumentHelp? {
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
            One, or with --every one after the other. The first stores all memory, later ones what \
            changed. A line for each says how many pages were dirty, how long the domain stood \
            still, how long the guest took to suspend, what was added to the repository, and how \
            far it is behind its time. '^C' ends it cleanly; the domain runs on.

            Disks are not part of a checkpoint.
            """)

    @Argument(help: "The domain's number or name.")
    var domain: String

    @Argument(help: "The repository.")
    var store: String

    @Option(help: "The guest's history that they go to; the domain's name without it.")
    var lineage: String?

    @Option(help: "Time from one checkpoint to the next: 200ms, 5s, 10m.")
    var every: TimeSpan?

    @Option(help: "End after so many checkpoints.")
    var count: Int?

    @Option(name: .customLong("for"), help: "End after this time: 10m.")
    var time: TimeSpan?

    @Flag var hold = HoldFlag.suspend

    @Option(help: "How long the guest may take to suspend itself: 60s without it.")
    var suspendTimeout: TimeSpan?

    @Flag(help: "Do without the dirty log: compare every page each time.")
    var compareAll = false

    @Flag(help: "Take over a dirty log that somebody dead has left on.")
    var takeOver = false

    @Flag(help: "Print each checkpoint as a JSON object.")
    var json = false

    func validate() throws {
        if every == nil && (count ?? 1) != 1 { throw ValidationError("--count goes with --every") }
        if every == nil && time != nil { throw ValidationError("--for goes with --every") }
        if let count, count < 1 { throw ValidationError("--count is 1 or more") }
    }

    func run() throws {
        try reporting {
            Interruption.arm()
            let found = try XenHost().domain(named: domain)
            let repository = try Repository.open(at: FilePath(store), .writing)
            var options = XenDomain.Options.tool
            options.hold = hold.hold
            options.comparesAll = compareAll
            options.takesLogOver = takeOver
            if let suspendTimeout { options.suspendTimeout = suspendTimeout.duration }
            let name = lineage ?? (found.name.isEmpty ? "domain-\(found.number)" : found.name)
            let taker: any CheckpointTaker =
                found.kind == .pv
                ? PVTaker(
                    try XenPVDomain(found.number, options: options), repository, lineage: name)
                : try LiveTaker(
                    try XenDomain(found.number, options: options), repository, lineage: name)
            let report = CheckpointReport(isJSON: json)
            var failure: (any Error)?
            do {
                try takeAll(taker, report)
            } catch is Interruption.Requested {
                failure = nil
            } catch {
                failure = error
            }
            do { try taker.finish(report) } catch { failure = failure ?? error }
            report.summary()
            try repository.close()
            if let failure { throw failure }
        }
    }

    private func takeAll(_ taker: any CheckpointTaker, _ report: CheckpointReport) throws {
        let start = ContinuousClock.now
        var due = start
        var taken = 0
        while taken < count ?? (every == nil ? 1 : .max) {
            let now = ContinuousClock.now
            if let time, now - start >= time.duration { return }
            if now < due { try Interruption.sleep(for: due - now) }
            try Interruption.sleep(for: .zero)
            try taker.take(lag: max(.zero, ContinuousClock.now - due), report)
            taken += 1
            // A checkpoint that came late does not make those after it come closer together.
            due = max(due + (every?.duration ?? .zero), ContinuousClock.now)
        }
    }
}

/// Takes checkpoints of one kind of domain.
protocol CheckpointTaker {
    func take(lag: Duration, _ report: CheckpointReport) throws
    /// Waits for what is under way, and lets go of the domain.
    func finish(_ report: CheckpointReport) throws
}

/// PVH: the engine, with the log of the hypervisor.
final class LiveTaker: CheckpointTaker {
    private struct Pending {
        let capture: PendingCapture
        let times: HoldTimes
        let lag: Duration
    }

    private let guest: XenDomain
    private let session: CaptureSession
    private var pending: Pending?

    init(_ guest: XenDomain, _ repository: Repository, lineage: String) throws {
        self.guest = guest
        session = try CaptureSession(of: guest, in: repository, lineage: lineage)
        if let reason = guest.comparesAllBecause {
            Output.standardError("varve: every page is compared each time: \(reason)")
        }
    }

    func take(lag: Duration, _ report: CheckpointReport) throws {
        // The guest runs again when `begin` returns; the one before is made durable meanwhile.
        let capture = try session.begin()
        let taken = Pending(capture: capture, times: guest.holdTimes, lag: lag)
        try settle(report)
        pending = taken
    }

    func finish(_ report: CheckpointReport) throws {
        defer { session.close() }
        try settle(report)
    }

    private func settle(_ report: CheckpointReport) throws {
        guard let settled = pending else { return }
        pending = nil
        let result = try settled.capture.wait()
        try report.show(
            result.checkpoint, dirty: result.dirtyPageCount, still: settled.times.still,
            request: settled.times.request, lag: settled.lag)
    }
}

/// PV: one stream of libxenguest for each checkpoint.
final class PVTaker: CheckpointTaker {
    private let guest: XenPVDomain
    private let repository: Repository
    private let lineage: String

    init(_ guest: XenPVDomain, _ repository: Repository, lineage: String) {
        self.guest = guest
        self.repository = repository
        self.lineage = lineage
    }

    func take(lag: Duration, _ report: CheckpointReport) throws {
        var checkpoint: Checkpoint?
        let pauses = try guest.save(.plain) { source in
            let result = try XenImport.run(
                .libxc, into: repository, lineage: lineage, configuration: guest.configuration,
                source: source)
            checkpoint = result.checkpoints.last
        }
        guard let checkpoint else { return }
        try report.show(
            checkpoint, dirty: checkpoint.pageCount, still: pauses.last ?? .zero, request: .zero,
            lag: lag)
    }

    func finish(_ report: CheckpointReport) {}
}

/// Lines for checkpoints, and their summary.
final class CheckpointReport {
    private let isJSON: Bool
    private var stills: [Duration] = []
    private var requests: [Duration] = []
    private var addedByteCount = 0
    private let start = ContinuousClock.now

    init(isJSON: Bool) { self.isJSON = isJSON }

    func show(
        _ checkpoint: Checkpoint, dirty: Int, still: Duration, request: Duration, lag: Duration
    ) throws {
        stills.append(still)
        requests.append(request)
        addedByteCount += checkpoint.addedByteCount
        if isJSON {
            let more: [(String, JSON)] = [
                ("dirtyPages", .integer(dirty)),
                ("stillMicroseconds", .integer(still.microseconds)),
                ("suspendMicroseconds", .integer(request.microseconds)),
                ("lagMicroseconds", .integer(lag.microseconds)),
            ]
            try Output.line(JSON.object(checkpoint.fields + more).text)
        } else {
            try Output.line(
                "\(checkpoint.summaryLine); \(dirty) dirty, still \(Format.milliseconds(still)), "
                    + "suspend \(Format.milliseconds(request)), lag \(Format.milliseconds(lag))")
        }
    }

    /// One line on standard error.
    func summary() {
        guard !stills.isEmpty else { return }
        let seconds = Double((ContinuousClock.now - start).microseconds) / 1e6
        Output.standardError(
            "varve: \(stills.count) checkpoints in \(Format.decimal(seconds, 1)) s, "
                + "\(Format.bytes(addedByteCount)) added; still p50 \(middle(stills)), max "
                + "\(Format.milliseconds(stills.max() ?? .zero)); suspend p50 \(middle(requests)), "
                + "max \(Format.milliseconds(requests.max() ?? .zero))")
    }

    private func middle(_ durations: [Duration]) -> String {
        Format.milliseconds(durations.sorted()[durations.count / 2])
    }
}
