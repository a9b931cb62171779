import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// Takes checkpoints at an interval, on a thread of its own:
//
//   due -> begin -> handler(.taken)        the guest runs again
//       -> wait for the previous one -> handler(.published) or handler(.failed)
//       -> sleep until the next is due, or until asked to stop
//   asked to stop, or enough taken -> wait for the last one -> handler -> ended
//
// A checkpoint is made durable during the next interval, so the interval bounds the time from one
// pause to the next and not the time that a checkpoint takes.

/// Captures a guest repeatedly, on a thread of its own, until it is stopped.
///
/// A failed capture loses nothing: the next one takes its pages. The
/// embedder keeps the session, may use it to capture and revert meanwhile, and closes it
/// afterwards. Dropping the last reference also stops it, without waiting.
public final class PeriodicCapture: Sendable {
    /// What happened.
    public enum Event: Sendable {
        /// A capture was taken and the guest runs again; the checkpoint does not exist yet.
        case taken(PendingCapture, lateness: Duration)
        /// A checkpoint is durable.
        case published(CaptureResult, lateness: Duration)
        /// A capture failed, or what it took was not published.
        ///
        /// If the error has an `audit`, the dirty log missed pages: nothing was published, and the
        /// next capture compares every page.
        case failed(CheckpointError)
    }

    /// What the handler wants next.
    public enum Decision: Sendable {
        /// Take the next capture when it is due.
        case goOn
        /// Begin no further capture; what is in progress is waited for and reported.
        case stop
    }

    private let core: Core

    /// Starts: the first capture is due immediately.
    ///
    /// Fails with `invalidOption` if a time or count of the schedule is negative, and with the
    /// repository's `callFailed` if no thread can be started.
    ///
    /// - Parameters:
    ///   - session: the session that captures. It is not closed at the end.
    ///   - schedule: when.
    ///   - handler: called on the capturing thread, one call at a time. While it runs no capture is
    ///     begun, so it must be fast; it must not call `stop` or `wait`, which wait for it, and
    ///     returns `.stop` instead.
    public init(
        of session: CaptureSession, _ schedule: CheckpointSchedule,
        handler: @escaping @Sendable (Event) -> Decision
    ) throws(CheckpointError) {
        core = Core(session, schedule, handler)
        try schedule.check()
        do throws(RepositoryError) {
            try core.start()
        } catch {
            throw CheckpointError(error)
        }
    }

    deinit { core.requestStop() }

    /// Begins no further capture, and returns when the one in progress is durable or has failed and
    /// the handler was told.
    ///
    /// Harmless after it has ended.
    public func stop() {
        core.requestStop()
        core.join()
    }

    /// Returns when it has ended: by its schedule, its handler, or `stop` on another thread.
    public func wait() { core.join() }

    /// True until it has ended.
    public var isRunning: Bool { core.isRunning }
}

/// What the thread references, so that it does not keep the embedder's object alive.
private final class Core: Sendable {
    private struct Pending {
        let capture: PendingCapture
        let lateness: Duration
    }

    /// A capture that always fails immediately must not keep a processor busy.
    private static let restAfterFailure = Duration.milliseconds(100)

    private let session: CaptureSession
    private let schedule: CheckpointSchedule
    private let handler: @Sendable (PeriodicCapture.Event) -> PeriodicCapture.Decision
    private let stopping = Cancellation()
    private let hasEnded = Monitor(false)
    private let thread = Mutex<Threads.Thread?>(nil)

    init(
        _ session: CaptureSession, _ schedule: CheckpointSchedule,
        _ handler: @escaping @Sendable (PeriodicCapture.Event) -> PeriodicCapture.Decision
    ) {
        self.session = session
        self.schedule = schedule
        self.handler = handler
    }

    func start() throws(RepositoryError) {
        let started = try Threads.Thread { self.run() }
        thread.withLock { $0 = started }
    }

    func requestStop() {
        stopping.cancel()
    }

    func join() {
        hasEnded.wait { $0 ? () : nil }
        let thread = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
    }

    var isRunning: Bool { hasEnded.read { !$0 } }

    private func run() {
        var times = DueTimes(schedule)
        var pending: Pending?
        while let lateness = times.next(until: stopping) {
            let next = begin(lateness: lateness)
            settle(&pending)
            pending = next
            if next == nil { times.rest(Core.restAfterFailure) }
        }
        settle(&pending)
        hasEnded.change { $0 = true }
    }

    private func begin(lateness: Duration) -> Pending? {
        do throws(CheckpointError) {
            let capture = try session.begin()
            tell(.taken(capture, lateness: lateness))
            return Pending(capture: capture, lateness: lateness)
        } catch {
            tell(.failed(error))
            // No later capture can succeed.
            if error.code == .closed { requestStop() }
            return nil
        }
    }

    private func settle(_ pending: inout Pending?) {
        guard let settled = pending else { return }
        pending = nil
        do throws(CheckpointError) {
            tell(.published(try settled.capture.wait(), lateness: settled.lateness))
        } catch {
            tell(.failed(error))
        }
    }

    private func tell(_ event: PeriodicCapture.Event) {
        if handler(event) == .stop { requestStop() }
    }
}
