import CheckpointFormat

/// Chooses the compression level of the next checkpoint by what the last one took.
///
/// While encoding leaves most of the interval free the level goes up by one a checkpoint; when it
/// takes more than half, down by one; when it takes all of it, to the fastest at once, because
/// captures wait then. Between a quarter and a half it stays, so that it does not swing.
///
/// A function of what it is told alone: it has no clock.
struct LevelControl: Sendable {
    private let range: ClosedRange<CompressionLevel>
    /// The level for the next checkpoint.
    private(set) var level: CompressionLevel

    /// Begins with a level; without a range it stays there.
    init(_ level: CompressionLevel, within range: ClosedRange<CompressionLevel>?) {
        let range = range ?? level...level
        self.range = range
        self.level = min(max(level, range.lowerBound), range.upperBound)
    }

    /// True if the level can change.
    var isAdaptive: Bool { range.lowerBound < range.upperBound }

    /// Notes what a checkpoint took.
    ///
    /// - Parameters:
    ///   - busy: how long it would have taken with nothing to wait for: encoding on all workers,
    ///     and publishing.
    ///   - interval: how long after the one before it it was begun.
    mutating func note(busy: Duration, interval: Duration) {
        if busy >= interval {
            level = range.lowerBound
        } else if busy * 2 > interval {
            level = max(level.faster, range.lowerBound)
        } else if busy * 4 < interval {
            level = min(level.slower, range.upperBound)
        }
    }
}
