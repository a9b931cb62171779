import CheckpointStore
package import GuestModel
import PackStore

/// When checkpoints are due.
///
/// A late checkpoint does not bring later ones closer together: the next is due one interval after
/// the start of the late one.
public struct CheckpointSchedule: Sendable {
    /// From the start of one capture to the start of the next; zero: back to back.
    public var interval: Duration
    /// The most captures to begin; nil: no limit.
    public var countMax: Int?
    /// No capture is begun after this time; nil: no limit.
    public var timeMax: Duration?

    /// Captures at an interval, without end.
    ///
    /// - Parameter interval: zero or more.
    public init(every interval: Duration) {
        self.interval = interval
    }

    /// Throws `invalidOption` if a time or count is negative.
    package func check() throws(CheckpointError) {
        let times = Duration.zero...OptionCheck.longest
        do throws(RepositoryError) {
            try OptionCheck.check("interval", interval, in: times)
            if let countMax { try OptionCheck.check("countMax", countMax, in: 0...Int.max) }
            if let timeMax { try OptionCheck.check("timeMax", timeMax, in: times) }
        } catch {
            throw CheckpointError(error)
        }
    }
}

/// A schedule being kept; the first checkpoint is due immediately.
package struct DueTimes: Sendable {
    private let schedule: CheckpointSchedule
    private let start = ContinuousClock.now
    private var due = ContinuousClock.now
    private var taken = 0

    package init(_ schedule: CheckpointSchedule) { self.schedule = schedule }

    /// Waits until the next checkpoint is due.
    ///
    /// - Returns: how late it is; nil if none is due any more, or the wait is cancelled.
    package mutating func next(until cancellation: Cancellation) -> Duration? {
        guard taken < schedule.countMax ?? .max, cancellation.sleep(until: due) else { return nil }
        let now = ContinuousClock.now
        if let timeMax = schedule.timeMax, now - start >= timeMax { return nil }
        let lateness = max(.zero, now - due)
        taken += 1
        due = max(due + schedule.interval, now)
        return lateness
    }

    /// Has the next one wait for some time from now at least.
    package mutating func rest(_ duration: Duration) {
        due = max(due, ContinuousClock.now + duration)
    }
}
