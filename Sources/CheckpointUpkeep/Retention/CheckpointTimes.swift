// What the times of a lineage's checkpoints are worth.
//
// The order of publication is certain; times come from a clock that may be wrong and may be set.
// In the order of publication right times never fall and are never later than the present. So
//
//   later than the present         .future       a clock that was ahead, or is behind now
//   before this format existed     .impossible   a clock that began at 1970, say
//   later than one that came after, or earlier than one that came before
//                                  .outOfOrder   one of the two is wrong, nobody knows which
//
// and all others are certain: they never fall. The first two kinds are left out before the third is
// looked for, so that a single wrong clock puts no other checkpoint in doubt. Of what is in doubt
// it is known that it was taken before the next certain one.
//
// A clock that jumps forward by years leaves times that never fall. Nothing shows that they are
// wrong while the clock stays there, so what lies before such a step is a stretch by itself.

/// Why the time of a checkpoint is in doubt.
public enum TimeDoubt: String, Hashable, Sendable {
    /// It is later than the present.
    case future
    /// It is before 2025, when no checkpoint could be taken: a clock that had not been set.
    case impossible
    /// It is later than that of a checkpoint that came after, or earlier than that of one before.
    case outOfOrder
}

extension TimeDoubt: CustomStringConvertible {
    /// A few words.
    public var description: String {
        switch self {
        case .future: "later than the present"
        case .impossible: "before 2025"
        case .outOfOrder: "out of order"
        }
    }
}

/// What is known of the times of one lineage, oldest first.
package struct CheckpointTimes {
    /// What is known of one time.
    package struct Finding: Equatable {
        /// Why it is in doubt; nil: it is certain.
        package var doubt: TimeDoubt?
        /// True if the next certain time is more than a year later.
        var isBeforeJump = false
        /// True for one in doubt that lies between two certain times with a jump between them.
        var isBesideJump = false
    }

    /// 1 January 2025, in nanoseconds since 1970.
    static let earliest: Int64 = 1_735_689_600_000_000_000
    /// From one checkpoint to the next at most, unless the clock jumped: 365 days.
    static let stepMax: Int64 = 365 * 86_400 * 1_000_000_000

    package private(set) var findings: [Finding]

    /// Judges times in the order of publication.
    ///
    /// Cost: a few comparisons for each.
    package init(_ times: [Int64], now: Int64) {
        findings = times.map { time in
            if time > now { return Finding(doubt: .future) }
            // A clock that has not been set yet says nothing about times that it gave.
            if now >= CheckpointTimes.earliest, time < CheckpointTimes.earliest {
                return Finding(doubt: .impossible)
            }
            return Finding()
        }
        let possible = times.indices.filter { findings[$0].doubt == nil }
        var highest = Int64.min
        for index in possible {
            if times[index] < highest { findings[index].doubt = .outOfOrder }
            highest = max(highest, times[index])
        }
        var lowest = Int64.max
        for index in possible.reversed() {
            if times[index] > lowest { findings[index].doubt = .outOfOrder }
            lowest = min(lowest, times[index])
        }
        findJumps(times)
    }

    private mutating func findJumps(_ times: [Int64]) {
        var before: Int?
        for index in times.indices where findings[index].doubt == nil {
            defer { before = index }
            guard let before else { continue }
            // Times that never fall: the difference of two of them can only be too large.
            let (step, isTooLarge) = times[index].subtractingReportingOverflow(times[before])
            guard isTooLarge || step > CheckpointTimes.stepMax else { continue }
            findings[before].isBeforeJump = true
            for between in before + 1..<index { findings[between].isBesideJump = true }
        }
    }
}
