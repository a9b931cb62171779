import Synchronization
import Varve

/// The beats of a service for the watchdog of the service manager.
///
/// A beat says that the schedule goes on, not that a thread exists: with each progress the service
/// promises when there will be more, and beats stop when that time has passed. An interval may be
/// longer than the watchdog's time, so the beats in between are sent by another thread. A capture
/// may take long for good reasons, such as a comparison of all memory and of whole disks; as its
/// length cannot be known, an overdue schedule counts as alive as long as the process computes.
final class ServiceHeartbeat: Sendable {
    /// The part of the time in which a process that works uses a processor.
    ///
    /// A thread that only polls uses a tenth of this.
    static let workingPart = 0.01

    private struct State {
        var deadline: ContinuousClock.Instant
        var beatAt: ContinuousClock.Instant?
        var processorTime = Duration.zero
    }

    /// The time between two beats; nil if the manager wants none.
    let interval: Duration?
    private let beat: @Sendable () -> Void
    private let state: Mutex<State>

    /// - Parameters:
    ///   - watchdog: the time within which the manager wants to hear one; nil for never.
    ///   - beat: tells the manager.
    init(
        watchdog: Duration?, now: ContinuousClock.Instant = .now,
        beat: @escaping @Sendable () -> Void
    ) {
        // A third, so that a beat may come late.
        interval = watchdog.map { $0 / 3 }
        self.beat = beat
        state = Mutex(State(deadline: now + .seconds(60)))
    }

    /// There was progress, and there will be more within a time.
    func promise(_ time: Duration, now: ContinuousClock.Instant = .now) {
        state.withLock { $0.deadline = now + time }
    }

    /// Sends a beat if one is due, and the schedule deserves it; called often.
    ///
    /// - Parameter processorTime: what the process has used so far.
    /// - Returns: false if a beat was due and not deserved.
    @discardableResult
    func tick(
        now: ContinuousClock.Instant = .now, processorTime: Duration = Threads.processorTime
    ) -> Bool {
        guard let interval else { return true }
        let isAlive = state.withLock { state -> Bool? in
            guard let before = state.beatAt else {
                (state.beatAt, state.processorTime) = (now, processorTime)
                return true
            }
            guard now - before >= interval else { return nil }
            let used = (processorTime - state.processorTime) / (now - before)
            guard now < state.deadline || used >= ServiceHeartbeat.workingPart else { return false }
            (state.beatAt, state.processorTime) = (now, processorTime)
            return true
        }
        if isAlive == true { beat() }
        return isAlive ?? true
    }
}
