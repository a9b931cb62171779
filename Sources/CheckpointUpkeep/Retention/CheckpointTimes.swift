// How far the times of a lineage's checkpoints can be trusted.
//
// The order of publication is certain; times come from a clock that may be wrong or be set. In
// order of publication, correct times never decrease and are never later than the present. So
//
//   later than the present         .future       the clock was ahead, or is slow now
//   before this format existed     .impossible   for example, a clock that began at 1970
//   later than one that came after, or earlier than one that came before
//                                  .outOfOrder   one of the two is wrong, it is unknown which
//
// and all others are certain: they never decrease. The first two kinds are excluded before the
// third is determined, so that a single wrong clock does not cast doubt on other checkpoints. A
// checkpoint with a time in doubt is known to have been taken before the next certain one.
//
// A clock that jumps forward by years gives times that never decrease. Nothing shows that they are
// wrong while the clock stays there, so checkpoints before such a jump form a stretch of their own.

/// Why the time of a checkpoint is in doubt.
public enum TimeDoubt: String, Hashable, Sendable {
    /// It is later than the present.
    case future
    /// It is before 2025, when no checkpoint could be taken: the clock had not been set.
    case impossible
    /// It is later than that of a later checkpoint, or earlier than that of an earlier one.
    case outOfOrder
}

extension TimeDoubt: CustomStringConvertible {
    /// A short description.
    public var description: String {
        switch self {
        case .future: "later than the present"
        case .impossible: "before 2025"
        case .outOfOrder: "out of order"
        }
    }
}

/// Findings about the times of one lineage, oldest first.
package struct CheckpointTimes {
    /// The finding about one time.
    package struct Finding: Equatable {
        /// Why it is in doubt; nil: it is certain.
        package var doubt: TimeDoubt?
        /// True if the next certain time is more than a year later.
        var isBeforeJump = false
        /// True for a time in doubt between two certain times with a jump between them.
        var isBesideJump = false
    }

    /// 1 January 2025, in nanoseconds since 1970.
    static let earliest: Int64 = 1_735_689_600_000_000_000
    /// Maximum distance between two checkpoints unless the clock jumped: 365 days.
    static let stepMax: Int64 = 365 * 86_400 * 1_000_000_000

    package private(set) var findings: [Finding]

    /// Judges times in order of publication.
    ///
    /// Costs a few comparisons per time.
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
            // Times never decrease here: the difference of two of them can only be too large.
            let (step, isTooLarge) = times[index].subtractingReportingOverflow(times[before])
            guard isTooLarge || step > CheckpointTimes.stepMax else { continue }
            findings[before].isBeforeJump = true
            for between in before + 1..<index { findings[between].isBesideJump = true }
        }
    }
}
