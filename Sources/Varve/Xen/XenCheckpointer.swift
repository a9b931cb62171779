public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
public import XenGuest

/// Takes checkpoints of a running domain: one, or one after another on a schedule.
///
/// The same for every kind of domain. PVH domains are captured with the hypervisor's dirty log; PV
/// domains through the stream that libxenguest writes, which is one live stream where the
/// hypervisor logs their writes. The domain runs again on every path; with a guard
/// (`XenDomain.Options.guardCommand`) also if this process dies.
///
/// It owns the domain until it is closed. Methods block; captures run one at a time.
public final class XenCheckpointer: Sendable {
    /// How checkpoints are taken.
    public struct Options: Sendable {
        /// How the domain is handled: the kind of pause, the guard, the lock.
        public var domain = XenDomain.Options()
        /// How it is captured, and which checkpoints are kept (`CaptureOptions.retention`).
        ///
        /// For a PV domain the limits of the pause and the audit have no meaning.
        public var capture = CaptureOptions()

        /// The defaults.
        public init() {}
    }

    /// A checkpoint that is durable.
    public struct Taken: Sendable {
        /// The checkpoint.
        public let checkpoint: Checkpoint
        /// Pages that the dirty log named, or all pages if every page was compared; for an epoch of
        /// a PV domain's live stream, those that changed.
        public let dirtyPageCount: Int
        /// How long the domain took to pause, and how long it was paused.
        public let pauseTimes: PauseTimes
        /// How long after it was due the capture began.
        public let lateness: Duration
    }

    /// What happens while checkpoints are taken on a schedule.
    public enum Event: Sendable {
        /// A checkpoint is durable.
        case taken(Taken)
        /// An audit found that the dirty log had missed pages: this capture published nothing, and
        /// the next one compares every page. The error says how many.
        case auditMissed(CheckpointError)
    }

    /// The lineage that checkpoints go to.
    public let lineage: LineageName
    /// Why every checkpoint compares every page; nil if the hypervisor's log is used.
    public let comparesAllBecause: String?
    private let taker: any DomainTaker

    /// Takes ownership of a domain, which runs unaffected until the first checkpoint.
    ///
    /// Fails with a sentence and the remedy if it cannot be checkpointed.
    ///
    /// - Parameters:
    ///   - domain: a running domain (`XenHost.domain(named:)`).
    ///   - repository: opened for writing.
    ///   - lineage: the domain's history.
    ///   - options: sizes, limits, retention and guard.
    public convenience init(
        of domain: XenHost.Domain, in repository: Repository, lineage: LineageName,
        options: Options = Options()
    ) throws(CheckpointError) {
        do {
            if domain.kind == .pv {
                self.init(
                    lineage, nil,
                    try StreamTaker(
                        try XenPVDomain(domain.domainID, options: options.domain), repository,
                        lineage, options))
            } else {
                try self.init(
                    of: try XenDomain(domain.domainID, options: options.domain), in: repository,
                    lineage: lineage, options: options)
            }
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// The same for a PVH domain that the caller has opened.
    package convenience init(
        of domain: XenDomain, in repository: Repository, lineage: LineageName, options: Options
    ) throws(CheckpointError) {
        self.init(
            lineage, domain.comparesAllBecause,
            LogTaker(
                try CaptureSession(
                    of: domain, in: repository, lineage: lineage, options: options.capture)))
    }

    /// The same for a PV domain that the caller has opened.
    package convenience init(
        of domain: XenPVDomain, in repository: Repository, lineage: LineageName, options: Options
    ) throws(CheckpointError) {
        self.init(lineage, nil, try StreamTaker(domain, repository, lineage, options))
    }

    private init(
        _ lineage: LineageName, _ comparesAllBecause: String?, _ taker: any DomainTaker
    ) {
        self.lineage = lineage
        self.comparesAllBecause = comparesAllBecause
        self.taker = taker
    }

    /// Takes a checkpoint and returns when it is durable.
    ///
    /// Blocks. If an audit finds that the log cannot be relied on, it takes the checkpoint again
    /// and compares every page. When it throws, also because it was cancelled, there is no
    /// checkpoint and the domain runs.
    ///
    /// - Parameters:
    ///   - label: a name for this one checkpoint.
    ///   - cancellation: ends it with `cancelled`.
    ///   - progress: as for `CaptureSession.capture`, or `Repository.importXenStream` for a PV
    ///     domain.
    public func capture(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> Taken {
        try taker.capture(label, cancellation, progress)
    }

    /// Takes checkpoints as they are due.
    ///
    /// Blocks until the schedule ends. A checkpoint is made durable while the domain runs and the
    /// next one becomes due. If a capture fails this throws, after the one before it was reported.
    ///
    /// - Parameters:
    ///   - schedule: when.
    ///   - cancellation: begins no further capture; what is in progress is completed and reported,
    ///     and this returns.
    ///   - handler: called with each event, in order, never twice at once; on this thread or
    ///     another. While it runs no capture is begun. If it throws, no further capture is begun,
    ///     and this throws that as the error's `cause`.
    public func run(
        _ schedule: CheckpointSchedule, cancellation: Cancellation? = nil,
        handler: @escaping @Sendable (Event) throws -> Void
    ) throws(CheckpointError) {
        try schedule.check()
        let stop = Cancellation(linkedTo: cancellation.map { [$0] } ?? [])
        try taker.run(schedule, until: stop, handler)
    }

    /// What `CaptureOptions.retention` has done so far; nil without one.
    public var retentionReport: RetentionReport? { taker.retentionReport }

    /// Waits for captures in progress, and releases the domain, which runs.
    ///
    /// Blocks. Harmless when called again.
    public func close() { taker.close() }
}

extension XenCheckpointer {
    /// `capture` without blocking a thread of the cooperative pool.
    public func capture(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> Taken {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.capture(label: label, cancellation: cancellation, progress: progress)
        }
    }

    /// `run` without blocking a thread of the cooperative pool; the handler is called on another
    /// thread.
    ///
    /// Cancelling the task does what `cancellation` does.
    public func run(
        _ schedule: CheckpointSchedule, cancellation: Cancellation? = nil,
        handler: @escaping @Sendable (Event) throws -> Void
    ) async throws(CheckpointError) {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.run(schedule, cancellation: cancellation, handler: handler)
        }
    }
}

extension Repository {
    /// `startDomain` without blocking a thread of the cooperative pool.
    public func startDomain(
        from checkpoint: Checkpoint, options: XenStartOptions = XenStartOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> XenHost.Domain {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.startDomain(
                from: checkpoint, options: options, cancellation: cancellation,
                progress: progress)
        }
    }
}

/// Takes checkpoints of one kind of domain.
protocol DomainTaker: Sendable {
    func capture(
        _ label: Label?, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenCheckpointer.Taken

    func run(
        _ schedule: CheckpointSchedule, until stop: Cancellation,
        _ handler: @escaping @Sendable (XenCheckpointer.Event) throws -> Void
    ) throws(CheckpointError)

    var retentionReport: RetentionReport? { get }
    func close()
}

/// PVH: the engine, with the hypervisor's log.
private final class LogTaker: DomainTaker {
    private struct Pending {
        let capture: PendingCapture
        let lateness: Duration
    }

    private let session: CaptureSession

    init(_ session: CaptureSession) { self.session = session }

    var retentionReport: RetentionReport? { session.retentionReport }

    func close() { session.close() }

    func capture(
        _ label: Label?, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenCheckpointer.Taken {
        taken(
            try session.capture(label: label, cancellation: cancellation, progress: progress),
            .zero)
    }

    func run(
        _ schedule: CheckpointSchedule, until stop: Cancellation,
        _ handler: @escaping @Sendable (XenCheckpointer.Event) throws -> Void
    ) throws(CheckpointError) {
        var times = DueTimes(schedule)
        var pending: Pending?
        var failure: CheckpointError?
        while failure == nil, let lateness = times.next(until: stop) {
            do throws(CheckpointError) {
                // The domain runs again when `begin` returns; the previous one is made durable
                // meanwhile.
                let next = Pending(capture: try session.begin(), lateness: lateness)
                let previous = pending
                pending = next
                try settle(previous, handler)
            } catch {
                failure = error
            }
        }
        do throws(CheckpointError) {
            try settle(pending, handler)
        } catch {
            failure = failure ?? error
        }
        if let failure { throw failure }
    }

    private func settle(
        _ pending: Pending?, _ handler: (XenCheckpointer.Event) throws -> Void
    ) throws(CheckpointError) {
        guard let pending else { return }
        let event: XenCheckpointer.Event
        do throws(CheckpointError) {
            event = .taken(taken(try pending.capture.wait(), pending.lateness))
        } catch {
            guard error.audit != nil else { throw error }
            event = .auditMissed(error)
        }
        do {
            try handler(event)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    private func taken(_ result: CaptureResult, _ lateness: Duration) -> XenCheckpointer.Taken {
        XenCheckpointer.Taken(
            checkpoint: result.checkpoint, dirtyPageCount: result.dirtyPageCount,
            pauseTimes: result.pauseTimes, lateness: lateness)
    }
}
