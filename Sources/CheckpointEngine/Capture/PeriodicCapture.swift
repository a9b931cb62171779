import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// Takes checkpoints on a schedule, on a thread of its own:
//
//   due -> begin -> handler(.taken)        the guest runs again
//       -> wait for the previous one -> handler(.published) or handler(.failed)
//       -> the same for this one, if it ends before the next is due
//       -> sleep until the next is due, or until asked to stop
//   asked to stop, or enough taken -> wait for the last one -> handler -> ended
//
// A checkpoint is made durable during the next interval, so the interval bounds the time from one
// pause to the next and not the time that a checkpoint takes.

/// Captures a guest on a schedule, on a thread of its own.
///
/// A failed capture loses nothing: the next one takes its pages, after a rest of 100 ms. The caller
/// keeps the session, may capture and revert with it meanwhile, and closes it afterwards. Releasing
/// the last reference stops the captures without waiting for the one in progress.
public final class PeriodicCapture: Sendable {
    /// What the handler is told.
    public enum Event: Sendable {
        /// The guest runs again after its pause; the checkpoint does not exist yet.
        ///
        /// `lateness` is how long after it was due the capture began.
        case taken(PendingCapture, lateness: Duration)
        /// A checkpoint is durable.
        case published(CaptureResult, lateness: Duration)
        /// A capture failed: nothing was published, and the next capture takes its pages.
        ///
        /// If the error has an `audit`, the dirty log missed pages, and the next capture compares
        /// every page.
        case failed(CheckpointError)
    }

    /// What the handler decides.
    public enum Decision: Sendable {
        /// The next capture begins when it is due.
        case goOn
        /// No further capture begins. The one in progress is completed and reported.
        case stop
    }

    private let core: Core

    /// Starts a thread that captures; the first capture is due immediately.
    ///
    /// Throws `invalidOption` if a time or count of the schedule is out of range, and the
    /// repository's `callFailed` if no thread can be started.
    ///
    /// - Parameters:
    ///   - session: the session that captures. It is not closed at the end.
    ///   - schedule: when checkpoints are due.
    ///   - handler: called on the capturing thread, one call at a time. No capture begins while it
    ///     runs, so it should return soon. It must not call `stop` or `wait`, which wait for it; it
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

    /// Begins no further capture, and waits until the one in progress is durable or has failed and
    /// the handler was told.
    ///
    /// Blocks. The capture in progress is not cancelled. Calling it again has no effect.
    public func stop() {
        core.requestStop()
        core.join()
    }

    /// Blocks until the captures have ended: by the schedule, the handler, or `stop` on another
    /// thread.
    public func wait() { core.join() }

    /// True until the captures have ended.
    public var isRunning: Bool { core.isRunning }
}

/// What the thread references, so that it does not keep the caller's object alive.
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
            // Reported before the next one is due, if it ends before.
            if next?.capture.hasEnded(by: times.due, until: stopping) == true { settle(&pending) }
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
