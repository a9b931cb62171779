public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
public import XenGuest

/// Takes checkpoints of a running PVH or PV domain: one, or one after another on a schedule.
///
/// A PVH domain is captured with the hypervisor's dirty log. A PV domain is captured through the
/// stream that libxenguest writes: `run` takes all checkpoints from one live stream if the
/// hypervisor logs the domain's writes. Otherwise, and for each `capture`, all memory is written
/// while the domain is paused.
///
/// The domain runs again on every path, and with a guard (`XenDomain.Options.guardCommand`) also if
/// this process dies. Methods block and may be called from any thread; captures run one at a time.
/// Close the checkpointer when it is no longer needed. It holds the domain's lock until it is
/// released.
public final class XenCheckpointer: Sendable {
    /// How a domain is paused and captured.
    public struct Options: Sendable {
        /// How the domain is paused, its guard, and its lock.
        ///
        /// A PV domain can be paused only by suspension.
        public var domain = XenDomain.Options()
        /// How the domain is captured, and which checkpoints are kept (`CaptureOptions.retention`).
        ///
        /// For a PV domain `pauseBudget`, `precopyRoundsMax` and `auditPageCount` are ignored.
        public var capture = CaptureOptions()
        /// Which disks are in the checkpoints, and how they are cut.
        ///
        /// A PV domain that has disks is refused unless `selection` is `none`. A PVH domain with
        /// disks is refused unless it is paused by suspension, because after a restore a guest
        /// that was merely paused does not issue again the requests that were under way.
        public var disks = XenDiskOptions()

        /// Creates options with the defaults.
        public init() {}
    }

    /// A checkpoint that is durable.
    public struct Taken: Sendable {
        /// The checkpoint.
        public let checkpoint: Checkpoint
        /// The number of pages that the dirty log named, or of all pages if each was compared.
        ///
        /// For an epoch of a PV domain's live stream, the number of pages that changed.
        public let dirtyPageCount: Int
        /// How long the domain took to pause, and how long it was paused.
        public let pauseTimes: PauseTimes
        /// How much of the downtime was spent on the disks; zero if there are none.
        public var diskTimes = DiskCutTimes()
        /// How much later than it was due the capture began; zero for `capture`.
        public let lateness: Duration
    }

    /// What the handler of `run` is told.
    public enum Event: Sendable {
        /// A checkpoint is durable.
        case taken(Taken)
        /// An audit found that the dirty log had missed pages.
        ///
        /// This capture published nothing, and the next one compares every page. The error's
        /// `audit` has the counts.
        case auditMissed(CheckpointError)
    }

    /// The lineage that checkpoints go to.
    public let lineage: LineageName
    /// Why every checkpoint of a PVH domain compares every page; nil if the hypervisor's log is
    /// used, and for a PV domain.
    public let comparesAllBecause: String?
    /// What a guard has done to the domain after the death of a checkpointer before this one; nil
    /// if nothing, or if it was told already.
    public let guardNote: String?
    let taker: any DomainTaker

    /// Takes ownership of a domain, which runs unaffected until the first checkpoint.
    ///
    /// Blocks: it takes the domain's lock, starts threads, reads the lineage's newest checkpoint,
    /// and drops what cuts of dead processes have left of the domain's disks. Throws the guest's
    /// `busy` if another checkpointer, in this process or another, has the domain, and
    /// `unsupported` if the domain or one of its disks cannot be checkpointed, with the reason.
    ///
    /// - Parameters:
    ///   - domain: a running domain (`XenHost.domain(named:)`).
    ///   - repository: the destination; open for writing.
    ///   - lineage: the domain's history.
    ///   - options: pause, guards, disks, sizes, limits and retention.
    public convenience init(
        of domain: XenHost.Domain, in repository: Repository, lineage: LineageName,
        options: Options = Options()
    ) throws(CheckpointError) {
        try self.init(
            of: domain, in: repository, lineage: lineage, parent: nil, options: options)
    }

    /// The same from a checkpoint on that the first one follows, which begins a branch.
    ///
    /// - Parameter parent: of a PVH domain; nil: the lineage's newest.
    package convenience init(
        of domain: XenHost.Domain, in repository: Repository, lineage: LineageName,
        parent: Checkpoint?, options: Options
    ) throws(CheckpointError) {
        do {
            let finder = XenDiskFinder(host: try XenHost(), options: options.disks)
            var options = options
            let disks = try finder.choose(for: domain, &options)
            options.domain.disksGoBack = disks != nil
            if case .none = options.disks.selection,
                let newest = try parent ?? repository.newest(ofLineage: lineage)
            {
                // As its history has disks, a checkpoint without any says that they are omitted.
                let hadDisks = !newest.disks.isEmpty || newest.omitsDisks
                options.capture.omitsDisks = options.capture.omitsDisks || hadDisks
            }
            if domain.kind == .pv {
                try self.init(
                    of: try XenPVDomain(domain.domainID, options: options.domain), in: repository,
                    lineage: lineage, options: options)
            } else {
                try self.init(
                    of: try XenDomain(domain.domainID, options: options.domain), in: repository,
                    lineage: lineage, parent: parent, disks: disks, options: options)
            }
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// Takes checkpoints of a PVH domain that the caller has opened.
    ///
    /// Drops what cuts of dead processes left, but for the cut that it continues from.
    package convenience init(
        of domain: XenDomain, in repository: Repository, lineage: LineageName,
        parent: Checkpoint? = nil, disks: (any DiskGroup)? = nil, options: Options
    ) throws(CheckpointError) {
        let session = try CaptureSession(
            of: domain, in: repository, lineage: lineage, parent: parent, disks: disks,
            options: options.capture)
        do throws(GuestError) {
            // The session owns the cut that it continues from, so that one is left.
            if let disks { try XenDiskFinder.dropLeftovers(of: disks) }
        } catch {
            // What cannot be dropped now, as in a pool that is not active, stays noted.
            options.disks.thin.notice?(error.message)
        }
        self.init(
            lineage, domain.comparesAllBecause, domain.guardNote,
            LogTaker(domain, session, repository))
    }

    /// Takes checkpoints of a PV domain that the caller has opened.
    package convenience init(
        of domain: XenPVDomain, in repository: Repository, lineage: LineageName, options: Options
    ) throws(CheckpointError) {
        self.init(lineage, nil, nil, try StreamTaker(domain, repository, lineage, options))
    }

    private init(
        _ lineage: LineageName, _ comparesAllBecause: String?, _ guardNote: String?,
        _ taker: any DomainTaker
    ) {
        self.guardNote = guardNote
        self.lineage = lineage
        self.comparesAllBecause = comparesAllBecause
        self.taker = taker
    }

    /// Takes a checkpoint and returns when it is durable.
    ///
    /// Blocks. If an audit finds that the dirty log missed a page, the checkpoint is taken a second
    /// time, with every page compared. When this throws, also because it was cancelled, there is no
    /// checkpoint and the domain runs.
    ///
    /// - Parameters:
    ///   - label: a label for this checkpoint.
    ///   - cancellation: ends the capture with `cancelled`.
    ///   - progress: called as by `CaptureSession.capture`; for a PV domain as by
    ///     `Repository.importXenStream`.
    public func capture(
        label: Label? = nil, cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> Taken {
        try taker.capture(label, cancellation, progress)
    }

    /// Takes checkpoints on a schedule.
    ///
    /// Blocks until the schedule ends. A checkpoint is made durable while the domain runs, and
    /// reported then, or after the pause for the next one if that is due first. If a capture fails,
    /// this throws after the capture before it was reported.
    ///
    /// - Parameters:
    ///   - schedule: when checkpoints are due.
    ///   - cancellation: ends the schedule. The capture in progress is completed and reported, and
    ///     this returns without an error.
    ///   - handler: called with each event in order, one call at a time, on this thread or another.
    ///     No capture begins while it runs. If it throws, it is not called again, no further
    ///     capture begins, and this throws an error whose `cause` is what it threw.
    public func run(
        _ schedule: CheckpointSchedule, cancellation: Cancellation? = nil,
        handler: @escaping @Sendable (Event) throws -> Void
    ) throws(CheckpointError) {
        try schedule.check()
        let stop = Cancellation(linkedTo: cancellation.map { [$0] } ?? [])
        try taker.run(schedule, until: stop, handler)
    }

    /// What retention has done so far; nil without `CaptureOptions.retention`.
    public var retentionReport: RetentionReport? { taker.retentionReport }

    /// Waits for captures in progress, refuses later ones with `closed`, stops the domain's dirty
    /// log, and ends the threads.
    ///
    /// The domain runs. Blocks; retention thins the lineage once more. Calling it again has no
    /// effect. The domain's lock is held until this object is released.
    public func close() { taker.close() }

    /// The session of a PVH domain, by which captures are begun and awaited; nil for a PV domain.
    ///
    /// This object closes it.
    package var session: CaptureSession? { taker.captureSession }
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

    func revert(
        to checkpoint: Checkpoint, _ options: XenRevertOptions, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenRevertResult

    var retentionReport: RetentionReport? { get }
    var standsStill: Bool { get }
    /// Nil if it captures without one.
    var captureSession: CaptureSession? { get }
    func close()
}

/// Takes checkpoints of a PVH domain with a session, by the hypervisor's log.
private final class LogTaker: DomainTaker {
    private struct Pending {
        let capture: PendingCapture
        let lateness: Duration
    }

    private let domain: XenDomain
    private let session: CaptureSession
    private let repository: Repository

    init(_ domain: XenDomain, _ session: CaptureSession, _ repository: Repository) {
        self.domain = domain
        self.session = session
        self.repository = repository
    }

    var retentionReport: RetentionReport? { session.retentionReport }
    var standsStill: Bool { domain.standsStill }
    var captureSession: CaptureSession? { session }

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
        do throws(CheckpointError) {
            while let lateness = times.next(until: stop) {
                // The domain runs again when `begin` returns; the previous one is made durable
                // meanwhile.
                let next: Pending
                do throws(CheckpointError) {
                    next = Pending(capture: try session.begin(), lateness: lateness)
                } catch {
                    // If the previous one failed, that is the cause.
                    let previous = pending
                    pending = nil
                    try settle(previous, handler)
                    throw error
                }
                let previous = pending
                pending = next
                try settle(previous, handler)
                if next.capture.hasEnded(by: times.due, until: stop) {
                    pending = nil
                    try settle(next, handler)
                }
            }
        } catch {
            // After the handler has thrown, it is not called any more. A capture that began after
            // one that failed fails with it: the first failure is the cause.
            if error.code != .callerFailed { _ = try? settle(pending, handler) }
            throw error
        }
        try settle(pending, handler)
    }

    func revert(
        to checkpoint: Checkpoint, _ options: XenRevertOptions, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenRevertResult {
        try DomainRevert(
            repository: repository, checkpoint: checkpoint, options: options,
            domainID: domain.domainID, host: XenHost(of: domain)
        ).run(domain, session, cancellation, progress)
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
            pauseTimes: result.pauseTimes, diskTimes: result.diskTimes, lateness: lateness)
    }
}
