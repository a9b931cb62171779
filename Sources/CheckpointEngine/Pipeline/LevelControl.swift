import CheckpointFormat
import CheckpointStore
import PackStore

/// Chooses the compression level of the next checkpoint from the time that the last one took.
///
/// While a checkpoint takes less than a quarter of the interval, the level goes up by one per
/// checkpoint; when it takes more than half, down by one; when it takes all of it, to the fastest
/// at once, because captures then wait. Between a quarter and a half it stays, so that it does not
/// oscillate.
///
/// But when a checkpoint takes long while the processors have time to spare, the disk is the
/// bottleneck, and fewer bytes help: the level goes up by one.
///
/// A pure function of its inputs: it has no clock.
struct LevelControl: Sendable {
    /// From this share on the processors are the bottleneck.
    private static let shortShare = 0.75
    /// Below this share they have time to spare.
    private static let spareShare = 0.6
    /// Checkpoints at a level before the disk may raise it again: it takes this many until the
    /// processors' share reflects the level's cost.
    private static let settlingCount = 8

    private let range: ClosedRange<CompressionLevel>
    /// The share of all processors' time that the process takes, over the last few checkpoints.
    private var processorShare = 1.0
    /// Checkpoints since the level last changed.
    private var settledCount = 0
    /// The level for the next checkpoint.
    private(set) var level: CompressionLevel

    /// Starts with a level; without a range it stays there.
    init(_ level: CompressionLevel, within range: ClosedRange<CompressionLevel>?) {
        let range = range ?? level...level
        self.range = range
        self.level = min(max(level, range.lowerBound), range.upperBound)
    }

    /// True if the level can change.
    var isAdaptive: Bool { range.lowerBound < range.upperBound }

    /// Records the cost of a checkpoint.
    ///
    /// - Parameters:
    ///   - busy: how long it would have taken without waiting: encoding on all workers, and
    ///     publishing.
    ///   - interval: the time from the start of the previous checkpoint to the start of this one.
    ///   - share: the share of all processors' time that this process took since the last call.
    mutating func note(busy: Duration, interval: Duration, processorShare share: Double = 1) {
        processorShare += (share - processorShare) / 4
        let before = level
        defer { settledCount = level == before ? settledCount + 1 : 0 }
        if busy * 2 > interval, processorShare < LevelControl.shortShare {
            let isSettled = settledCount >= LevelControl.settlingCount
            if isSettled, processorShare < LevelControl.spareShare { goUp() }
        } else if busy >= interval {
            level = range.lowerBound
        } else if busy * 2 > interval {
            level = max(level.faster, range.lowerBound)
        } else if busy * 4 < interval {
            goUp()
        }
    }

    private mutating func goUp() { level = min(level.slower, range.upperBound) }
}

/// Measures the share of all processors' time that this process takes.
struct ProcessorMeter {
    private var time = ContinuousClock.now
    private var used = Threads.processorTime

    /// The share since the last call, or since initialization; at most 1.
    mutating func take() -> Double {
        let (time, used) = (ContinuousClock.now, Threads.processorTime)
        defer { (self.time, self.used) = (time, used) }
        let passed = (time - self.time) * Threads.processorCount
        return passed > .zero ? min((used - self.used) / passed, 1) : 1
    }
}
