public import CheckpointIndex
import CheckpointStore
package import PackStore

// Decides which checkpoints to keep. Pure: it reads nothing and forgets nothing.
//
// Each lineage is considered by itself, newest first; the newest is the one published last.
// Calendar periods are in UTC: a day is 86,400 seconds from midnight, a week begins on Monday, a
// month on its first day. The clock that times checkpoints may be wrong or be set;
// `CheckpointTimes` decides how far a time can be trusted, and no checkpoint is dropped because of
// a time that may be wrong.

/// Which checkpoints of a lineage to keep.
///
/// A checkpoint is kept if any rule keeps it; one with a label is always kept. `keepHourly: 24`
/// keeps the newest checkpoint of each of the newest 24 hours that have one.
///
/// Rules that use the time trust it only as far as the order of publication and the present time
/// allow: see `TimeDoubt`. A checkpoint whose time is in doubt is kept as long as it might be kept
/// with the correct time.
public struct RetentionPolicy: Hashable, Sendable {
    /// Number of newest checkpoints to keep.
    public var keepLast: Int
    /// Keeps all that are at most this much older than the lineage's newest with a certain time.
    public var keepWithin: Duration?
    /// Number of seconds to keep one checkpoint for.
    public var keepSecondly: Int
    /// Number of minutes to keep one checkpoint for.
    public var keepMinutely: Int
    /// Number of hours to keep one checkpoint for.
    public var keepHourly: Int
    /// Number of days to keep one checkpoint for.
    public var keepDaily: Int
    /// Number of weeks to keep one checkpoint for.
    public var keepWeekly: Int
    /// Number of months to keep one checkpoint for.
    public var keepMonthly: Int

    /// Creates a policy; rules not given keep nothing.
    public init(
        keepLast: Int = 0, keepWithin: Duration? = nil, keepSecondly: Int = 0,
        keepMinutely: Int = 0, keepHourly: Int = 0, keepDaily: Int = 0, keepWeekly: Int = 0,
        keepMonthly: Int = 0
    ) {
        self.keepLast = keepLast
        self.keepWithin = keepWithin
        self.keepSecondly = keepSecondly
        self.keepMinutely = keepMinutely
        self.keepHourly = keepHourly
        self.keepDaily = keepDaily
        self.keepWeekly = keepWeekly
        self.keepMonthly = keepMonthly
    }

    /// True if it keeps only labelled checkpoints.
    ///
    /// Never intended: reject it.
    public var isEmpty: Bool {
        keepWithin == nil
            && [
                keepLast, keepSecondly, keepMinutely, keepHourly, keepDaily, keepWeekly,
                keepMonthly,
            ].allSatisfy { $0 <= 0 }
    }

    /// Why a checkpoint is kept.
    public enum Reason: Hashable, Sendable {
        /// It has a label.
        case label(Label)
        /// It is one of the newest checkpoints (`keepLast`).
        case last
        /// It is recent enough (`keepWithin`).
        case within
        /// It is the newest of its second, minute, hour, day, week or month.
        case period(Period)
        /// Its time is in doubt, and it might be kept with the correct time.
        case timeInDoubt(TimeDoubt)
    }

    /// A calendar period.
    public enum Period: String, Hashable, Sendable, CaseIterable {
        /// A second in UTC.
        case second
        /// A minute in UTC.
        case minute
        /// An hour in UTC.
        case hour
        /// A day in UTC.
        case day
        /// A week in UTC; it begins on Monday.
        case week
        /// A month in UTC.
        case month
    }

    /// The decision on a checkpoint.
    public struct Decision: Sendable {
        /// The checkpoint.
        public let checkpoint: Checkpoint
        /// Why it is kept; empty: it is not kept.
        public let reasons: [Reason]
        /// True if the clock jumped forward by more than a year after it was taken.
        ///
        /// The rules that use the time treat checkpoints before such a jump separately, as if
        /// nothing had come after it.
        public let isBeforeClockJump: Bool

        /// Creates a decision.
        public init(checkpoint: Checkpoint, reasons: [Reason], isBeforeClockJump: Bool = false) {
            self.checkpoint = checkpoint
            self.reasons = reasons
            self.isBeforeClockJump = isBeforeClockJump
        }

        /// Why its time is in doubt, if it is kept because of that; otherwise nil.
        public var timeDoubt: TimeDoubt? {
            for case .timeInDoubt(let doubt) in reasons { return doubt }
            return nil
        }

        /// True if it is kept.
        public var isKept: Bool { !reasons.isEmpty }
    }

    /// Decides on each checkpoint; times later than the system's clock are in doubt.
    ///
    /// - Parameter checkpoints: in order of publication, of one lineage or many.
    /// - Returns: a decision for each, in the same order.
    public func decide(_ checkpoints: [Checkpoint]) -> [Decision] {
        decide(checkpoints, nowNanoseconds: Int64(clamping: WallClock.nanoseconds))
    }

    /// Decides on each checkpoint as of a given time.
    ///
    /// - Parameters:
    ///   - checkpoints: in order of publication, of one lineage or many.
    ///   - nowNanoseconds: the present time, in nanoseconds since 1970; later times are in doubt.
    /// - Returns: a decision for each, in the same order.
    public func decide(_ checkpoints: [Checkpoint], nowNanoseconds: Int64) -> [Decision] {
        var lineages: [LineageName: [Int]] = [:]
        for (index, checkpoint) in checkpoints.enumerated() {
            lineages[checkpoint.lineage, default: []].append(index)
        }
        var decisions: [Int: Decision] = [:]
        for members in lineages.values {
            let facts = members.map {
                Fact(timeNanoseconds: checkpoints[$0].timeNanoseconds, label: checkpoints[$0].label)
            }
            for (index, verdict) in zip(members, decide(facts, now: nowNanoseconds)) {
                decisions[index] = Decision(
                    checkpoint: checkpoints[index], reasons: verdict.reasons,
                    isBeforeClockJump: verdict.isBeforeClockJump)
            }
        }
        return checkpoints.indices.compactMap { decisions[$0] }
    }

    /// What the rules consider.
    package struct Fact {
        package let timeNanoseconds: Int64
        let label: Label?
    }

    /// The verdict on a fact.
    struct Verdict {
        let reasons: [Reason]
        let isBeforeClockJump: Bool
    }

    /// Decides on one lineage, oldest first.
    func decide(_ facts: [Fact], now: Int64) -> [Verdict] {
        let times = CheckpointTimes(facts.map(\.timeNanoseconds), now: now)
        var ring = Ring(policy: self)
        return zip(facts, times.findings).reversed().map { ring.decide($0, $1) }.reversed()
    }

    /// True if a rule uses the time.
    private var usesTime: Bool {
        keepWithin != nil || Period.allCases.contains { limit($0) > 0 }
    }

    fileprivate func limit(_ period: Period) -> Int {
        switch period {
        case .second: keepSecondly
        case .minute: keepMinutely
        case .hour: keepHourly
        case .day: keepDaily
        case .week: keepWeekly
        case .month: keepMonthly
        }
    }

    /// The evaluation of one lineage, from its newest checkpoint back.
    private struct Ring {
        let policy: RetentionPolicy
        private var count = 0
        private var labels: Set<Label> = []
        /// The newest certain time of the stretch, from which ages are measured.
        private var newestTime: Int64?
        /// The certain time considered last: older checkpoints were taken before it.
        private var lastTime: Int64?
        private var seen: [Period: Set<Int64>] = [:]
        private var hasJumped = false

        init(policy: RetentionPolicy) {
            self.policy = policy
        }

        /// Decides on the next older checkpoint.
        mutating func decide(_ fact: Fact, _ finding: CheckpointTimes.Finding) -> Verdict {
            var reasons: [Reason] = []
            // A label refers to the newest checkpoint that has it.
            if let label = fact.label, labels.insert(label).inserted {
                reasons.append(.label(label))
            }
            count += 1
            if count <= policy.keepLast { reasons.append(.last) }
            guard policy.usesTime else {
                return Verdict(reasons: reasons, isBeforeClockJump: false)
            }
            if let doubt = finding.doubt {
                if finding.isBesideJump || couldStay { reasons.append(.timeInDoubt(doubt)) }
            } else {
                if finding.isBeforeJump {
                    newestTime = nil
                    seen.removeAll()
                    hasJumped = true
                }
                reasons += decide(fact.timeNanoseconds)
            }
            return Verdict(reasons: reasons, isBeforeClockJump: hasJumped)
        }

        private mutating func decide(_ time: Int64) -> [Reason] {
            var reasons: [Reason] = []
            lastTime = time
            let newest = newestTime ?? time
            newestTime = newest
            if let within = policy.keepWithin,
                .nanoseconds(newest) - .nanoseconds(time) <= within
            {
                reasons.append(.within)
            }
            for period in Period.allCases
            where seen[period, default: []].count < policy.limit(period) {
                if seen[period, default: []].insert(period.number(time)).inserted {
                    reasons.append(.period(period))
                }
            }
            return reasons
        }

        /// True if some time before `lastTime` would keep a checkpoint.
        private var couldStay: Bool {
            guard let newestTime, let lastTime else { return true }
            if let within = policy.keepWithin,
                .nanoseconds(newestTime) - .nanoseconds(lastTime) <= within
            {
                return true
            }
            return Period.allCases.contains { seen[$0, default: []].count < policy.limit($0) }
        }
    }
}

extension RetentionPolicy.Period {
    /// The number of the period, such as the hour, that contains a time.
    package func number(_ nanoseconds: Int64) -> Int64 {
        func floor(_ value: Int64, _ unit: Int64) -> Int64 {
            value >= 0 ? value / unit : (value + 1) / unit - 1
        }
        let second = floor(nanoseconds, 1_000_000_000)
        let day = floor(second, 86_400)
        switch self {
        case .second: return second
        case .minute: return floor(second, 60)
        case .hour: return floor(second, 3_600)
        case .day: return day
        // 1970 began on a Thursday.
        case .week: return floor(day + 3, 7)
        case .month: return RetentionPolicy.Period.month(ofDay: day)
        }
    }

    /// Months since the beginning of year 0 of the proleptic Gregorian calendar.
    ///
    /// H. Hinnant, chrono-Compatible Low-Level Date Algorithms: years begin in March.
    private static func month(ofDay day: Int64) -> Int64 {
        let shifted = day + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra =
            (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let march = (5 * dayOfYear + 2) / 153
        return (era * 400 + yearOfEra) * 12 + march + 2
    }
}

extension RetentionPolicy.Reason: CustomStringConvertible {
    /// A short description.
    public var description: String {
        switch self {
        case .label(let label): "label \(label)"
        case .last: "last"
        case .within: "within"
        case .period(let period): "\(period.rawValue)"
        case .timeInDoubt(let doubt): "time in doubt (\(doubt))"
        }
    }
}

extension RetentionPolicy {
    /// Fails with `invalidOption` if a number is negative, or if the policy keeps nothing.
    package func check() throws(RepositoryError) {
        let counts = [
            ("keepLast", keepLast), ("keepSecondly", keepSecondly), ("keepMinutely", keepMinutely),
            ("keepHourly", keepHourly), ("keepDaily", keepDaily), ("keepWeekly", keepWeekly),
            ("keepMonthly", keepMonthly),
        ]
        for (name, count) in counts { try OptionCheck.check(name, count, in: 0...Int.max) }
        if let keepWithin {
            try OptionCheck.check("keepWithin", keepWithin, in: .zero...OptionCheck.longest)
        }
        guard !isEmpty else {
            throw RepositoryError(
                .invalidOption,
                "a retention policy that keeps nothing is a mistake; give keepLast or another rule")
        }
    }
}
