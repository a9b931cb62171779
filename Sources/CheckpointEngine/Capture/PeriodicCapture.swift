import CheckpointStore
import PackStore
import Synchronization

// Checkpoints at an interval, on a thread of their own:
//
//   due -> begin -> handler(.taken)        the guest runs again
//       -> wait for the one before -> handler(.published) or handler(.failed)
//       -> sleep until the next is due, or until asked to stop
//   asked to stop, or enough taken -> wait for the last one -> handler -> ended
//
// A checkpoint is made durable while the next interval passes, so the interval bounds the time from
// one pause to the next and not the time that a checkpoint takes.

/// Captures a guest again and again, on a thread of its own, until it is stopped.
///
/// One that is late does not make those after it come closer together: the next is due an interval
/// after it was begun. A capture that fails loses nothing: its pages are taken by the next one. The
/// session stays the embedder's, who may capture and revert by it meanwhile, and closes it
/// afterwards. Dropping the last reference stops it too, without waiting.
public final class PeriodicCapture: Sendable {
    /// What happens.
    public enum Event: Sendable {
        /// A capture was taken and the guest runs again; the checkpoint does not exist yet.
        case taken(PendingCapture, lateness: Duration)
        /// A checkpoint is durable.
        case published(CaptureResult, lateness: Duration)
        /// A capture failed, or what it took was not published.
        ///
        /// If the error has an `audit`, the dirty log missed pages: nothing was published, and the
        /// next capture compares every page.
        case failed(CaptureError)
    }

    /// What the handler wants next.
    public enum Decision: Sendable {
        /// The next capture comes when it is due.
        case goOn
        /// No further capture is begun; what is under way is waited for and reported.
        case stop
    }

    /// When captures are due.
    public struct Schedule: Sendable {
        /// From the beginning of one capture to that of the next; zero: one after the other.
        ///
        /// After one that failed the next comes a tenth of a second later at the earliest.
        public var interval: Duration
        /// Captures to begin at most; nil: no limit.
        public var countMax: Int?
        /// No capture is begun after this time; nil: no limit.
        public var timeMax: Duration?

        /// Captures at an interval, without an end.
        ///
        /// - Parameter interval: zero or more.
        public init(every interval: Duration) {
            self.interval = interval
        }

        fileprivate func check() throws(RepositoryError) {
            let times = Duration.zero...OptionCheck.longest
            try OptionCheck.check("interval", interval, in: times)
            if let countMax { try OptionCheck.check("countMax", countMax, in: 0...Int.max) }
            if let timeMax { try OptionCheck.check("timeMax", timeMax, in: times) }
        }
    }

    private let core: Core

    /// Begins: the first capture is due at once.
    ///
    /// Fails with `invalidOption` if a time or number of the schedule is negative.
    ///
    /// - Parameters:
    ///   - session: what captures. It is not closed at the end.
    ///   - schedule: when.
    ///   - handler: called on the thread that captures, one call at a time. While it runs no
    ///     capture is begun, so it must be quick; it must not call `stop` or `wait`, which wait for
    ///     it, and returns `.stop` instead.
    public init(
        of session: CaptureSession, _ schedule: Schedule,
        handler: @escaping @Sendable (Event) -> Decision
    ) throws(CaptureError) {
        do throws(RepositoryError) {
            try schedule.check()
        } catch {
            throw CaptureError(error)
        }
        core = Core(session, schedule, handler)
        core.start()
    }

    deinit { core.requestStop() }

    /// Begins no further capture, and returns when what was under way is durable or failed and the
    /// handler was told.
    ///
    /// Harmless when it has ended.
    public func stop() {
        core.requestStop()
        core.join()
    }

    /// Returns when it has ended: by its schedule, by its handler, or by `stop` of another thread.
    public func wait() { core.join() }

    /// True until it has ended.
    public var isRunning: Bool { core.isRunning }
}

/// What the thread holds, so that it does not keep the embedder's object.
private final class Core: Sendable {
    private struct State {
        var isStopping = false
        var hasEnded = false
    }

    private struct Pending {
        let capture: PendingCapture
        let lateness: Duration
    }

    /// What fails at once and always must not keep a processor busy.
    private static let restAfterFailure = Duration.milliseconds(100)

    private let session: CaptureSession
    private let schedule: PeriodicCapture.Schedule
    private let handler: @Sendable (PeriodicCapture.Event) -> PeriodicCapture.Decision
    private let state = Monitor(State())
    private let thread = Mutex<Threads.Thread?>(nil)

    init(
        _ session: CaptureSession, _ schedule: PeriodicCapture.Schedule,
        _ handler: @escaping @Sendable (PeriodicCapture.Event) -> PeriodicCapture.Decision
    ) {
        self.session = session
        self.schedule = schedule
        self.handler = handler
    }

    func start() {
        thread.withLock { $0 = Threads.Thread { self.run() } }
    }

    func requestStop() {
        state.change { $0.isStopping = true }
    }

    func join() {
        state.wait(wakes: false) { $0.hasEnded ? () : nil }
        let thread = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
    }

    var isRunning: Bool { state.read { !$0.hasEnded } }

    private func run() {
        let start = ContinuousClock.now
        var due = start
        var taken = 0
        var pending: Pending?
        while taken < schedule.countMax ?? .max, waits(until: due),
            schedule.timeMax.map({ ContinuousClock.now - start < $0 }) ?? true
        {
            let began = ContinuousClock.now
            taken += 1
            let next = begin(lateness: max(.zero, began - due))
            settle(&pending)
            pending = next
            let rest = next == nil ? Core.restAfterFailure : .zero
            due = max(due + schedule.interval, ContinuousClock.now + rest)
        }
        settle(&pending)
        state.change { $0.hasEnded = true }
    }

    /// False if it is asked to stop before then.
    private func waits(until due: ContinuousClock.Instant) -> Bool {
        let limit = due - ContinuousClock.now
        return state.wait(atMost: limit) { $0.isStopping ? () : nil } == nil
    }

    private func begin(lateness: Duration) -> Pending? {
        do throws(CaptureError) {
            let capture = try session.begin()
            tell(.taken(capture, lateness: lateness))
            return Pending(capture: capture, lateness: lateness)
        } catch {
            tell(.failed(error))
            // Nothing more can come of it.
            if error.code == .closed { requestStop() }
            return nil
        }
    }

    private func settle(_ pending: inout Pending?) {
        guard let settled = pending else { return }
        pending = nil
        do throws(CaptureError) {
            tell(.published(try settled.capture.wait(), lateness: settled.lateness))
        } catch {
            tell(.failed(error))
        }
    }

    private func tell(_ event: PeriodicCapture.Event) {
        if handler(event) == .stop { requestStop() }
    }
}
