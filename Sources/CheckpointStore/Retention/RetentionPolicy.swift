// Which checkpoints stay and which go. Pure: it reads nothing and forgets nothing.
//
// Each lineage is looked at by itself, newest first; the newest is the one published last. Calendar
// periods are those of UTC: a day is 86,400 seconds from midnight, a week begins on Monday, a month
// on its first day. The clock that times checkpoints may jump; a period keeps its newest checkpoint
// by publication, and `keepWithin` measures from the time of the newest in the lineage.

/// Which checkpoints of a lineage to keep.
///
/// A checkpoint stays if any rule keeps it; one with a label always stays. `keepHourly: 24` keeps
/// the newest checkpoint of each of the newest 24 hours that have one.
public struct RetentionPolicy: Hashable, Sendable {
    /// The newest so many.
    public var keepLast: Int
    /// All that are at most so much older than the lineage's newest.
    public var keepWithin: Duration?
    /// One for each of so many seconds.
    public var keepSecondly: Int
    /// One for each of so many minutes.
    public var keepMinutely: Int
    /// One for each of so many hours.
    public var keepHourly: Int
    /// One for each of so many days.
    public var keepDaily: Int
    /// One for each of so many weeks.
    public var keepWeekly: Int
    /// One for each of so many months.
    public var keepMonthly: Int

    /// Makes a policy; what is not named keeps nothing.
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

    /// True if it keeps nothing but what has a label.
    ///
    /// Never what anyone means: refuse it.
    public var isEmpty: Bool {
        keepWithin == nil
            && [
                keepLast, keepSecondly, keepMinutely, keepHourly, keepDaily, keepWeekly,
                keepMonthly,
            ].allSatisfy { $0 <= 0 }
    }

    /// Why a checkpoint stays.
    public enum Reason: Hashable, Sendable {
        /// It has a label.
        case label(String)
        /// It is one of the newest.
        case last
        /// It is young enough.
        case within
        /// It is the newest of its second, minute, hour, day, week or month.
        case period(Period)
    }

    /// A stretch of the calendar.
    public enum Period: String, Hashable, Sendable, CaseIterable {
        /// A second of UTC.
        case second
        /// A minute of UTC.
        case minute
        /// An hour of UTC.
        case hour
        /// A day of UTC.
        case day
        /// A week of UTC; it begins on Monday.
        case week
        /// A month of UTC.
        case month
    }

    /// What becomes of a checkpoint.
    public struct Decision: Sendable {
        /// The checkpoint.
        public let checkpoint: Checkpoint
        /// Why it stays; empty: it goes.
        public let reasons: [Reason]

        /// Makes a decision.
        public init(checkpoint: Checkpoint, reasons: [Reason]) {
            self.checkpoint = checkpoint
            self.reasons = reasons
        }

        /// True if it stays.
        public var isKept: Bool { !reasons.isEmpty }
    }

    /// Decides for each checkpoint.
    ///
    /// - Parameter checkpoints: in the order of publication, of one lineage or many.
    /// - Returns: a decision for each, in the same order.
    public func decide(_ checkpoints: [Checkpoint]) -> [Decision] {
        var rings: [String: Ring] = [:]
        let decisions = checkpoints.reversed().map { checkpoint in
            let fact = Fact(timeNanoseconds: checkpoint.timeNanoseconds, label: checkpoint.label)
            return Decision(
                checkpoint: checkpoint,
                reasons: rings[checkpoint.lineage, default: Ring(policy: self)].decide(fact))
        }
        return decisions.reversed()
    }

    /// What the rules look at.
    struct Fact {
        let timeNanoseconds: Int64
        let label: String?
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

    /// One lineage, from its newest checkpoint back.
    struct Ring {
        let policy: RetentionPolicy
        private var count = 0
        private var newestTime: Int64?
        private var seen: [Period: Set<Int64>] = [:]
        private var labels: Set<String> = []

        init(policy: RetentionPolicy) {
            self.policy = policy
        }

        /// Decides for the next older one.
        mutating func decide(_ fact: Fact) -> [Reason] {
            var reasons: [Reason] = []
            // A label is the newest one's that was given it.
            if let label = fact.label, labels.insert(label).inserted {
                reasons.append(.label(label))
            }
            count += 1
            if count <= policy.keepLast { reasons.append(.last) }
            let newest = newestTime ?? fact.timeNanoseconds
            newestTime = newest
            if let within = policy.keepWithin,
                .nanoseconds(newest) - .nanoseconds(fact.timeNanoseconds) <= within
            {
                reasons.append(.within)
            }
            for period in Period.allCases
            where seen[period, default: []].count < policy.limit(period) {
                if seen[period, default: []].insert(period.number(fact.timeNanoseconds)).inserted {
                    reasons.append(.period(period))
                }
            }
            return reasons
        }
    }
}

extension RetentionPolicy.Period {
    /// Which second, minute and so on a time falls into.
    func number(_ nanoseconds: Int64) -> Int64 {
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

    /// Months since the beginning of year 0, by the proleptic Gregorian calendar.
    ///
    /// H. Hinnant, chrono-Compatible Low-Level Date Algorithms: years that begin in March.
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
    /// A word or two.
    public var description: String {
        switch self {
        case .label(let label): "label \(label)"
        case .last: "last"
        case .within: "within"
        case .period(let period): "\(period.rawValue)"
        }
    }
}
