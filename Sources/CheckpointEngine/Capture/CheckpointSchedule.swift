import CheckpointStore
package import GuestModel
import PackStore

/// When checkpoints are due.
///
/// The first is due immediately, and each later one an interval after the one before it was due. A
/// checkpoint that begins late does not delay the next one. One that begins later than an interval
/// after it was due is followed by one that is due immediately; those in between are left out.
public struct CheckpointSchedule: Sendable {
    /// The time from when one checkpoint is due until the next is due; zero for one after another
    /// without a break.
    public var interval: Duration
    /// The maximum number of captures to begin; nil for no limit.
    public var countMax: Int?
    /// The time, from the start of the schedule, after which no capture is begun; nil for no limit.
    public var timeMax: Duration?

    /// Creates a schedule without end.
    ///
    /// - Parameter interval: zero to 2^40 seconds.
    public init(every interval: Duration) {
        self.interval = interval
    }

    /// Throws `invalidOption` if a time or count is out of range.
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

/// The times at which a schedule's checkpoints are due, as they are reached.
package struct DueTimes: Sendable {
    private let schedule: CheckpointSchedule
    private let start = ContinuousClock.now
    /// When the next one is due.
    package private(set) var due = ContinuousClock.now
    private var taken = 0

    package init(_ schedule: CheckpointSchedule) { self.schedule = schedule }

    /// Waits until the next checkpoint is due.
    ///
    /// - Returns: how late it is; nil if the schedule has ended or the wait is cancelled.
    package mutating func next(until cancellation: Cancellation) -> Duration? {
        guard taken < schedule.countMax ?? .max, cancellation.sleep(until: due) else { return nil }
        let now = ContinuousClock.now
        if let timeMax = schedule.timeMax, now - start >= timeMax { return nil }
        let lateness = max(.zero, now - due)
        taken += 1
        due = max(due + schedule.interval, now)
        return lateness
    }

    /// Delays the next checkpoint until at least `duration` from now.
    package mutating func rest(_ duration: Duration) {
        due = max(due, ContinuousClock.now + duration)
    }
}
