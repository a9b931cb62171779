import CheckpointFormat
import CheckpointStore
import PackStore

/// Chooses the compression level of the next checkpoint by what the last one took.
///
/// While a checkpoint leaves most of the interval free the level goes up by one a checkpoint; when
/// it takes more than half, down by one; when it takes all of it, to the fastest at once, because
/// captures wait then. Between a quarter and a half it stays, so that it does not swing.
///
/// But when a checkpoint takes long and the processors have time all the same, it is the disk that
/// is waited for, and fewer bytes help: the level goes up by one.
///
/// A function of what it is told alone: it has no clock.
struct LevelControl: Sendable {
    /// The processors are what is short from this part of their time on.
    private static let shortShare = 0.75
    /// They have time to spare below this part.
    private static let spareShare = 0.6
    /// Checkpoints at a level before the disk is a reason for the next one: as many as it takes
    /// until the processors' part shows what the level costs.
    private static let settlingCount = 8

    private let range: ClosedRange<CompressionLevel>
    /// The part of all processors' time that the process takes, over the last few checkpoints.
    private var processorShare = 1.0
    /// Checkpoints since the level changed last.
    private var settledCount = 0
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
    ///   - share: the part of all processors' time that this process took since the last note.
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

/// Says what part of all processors' time this process takes.
struct ProcessorMeter {
    private var time = ContinuousClock.now
    private var used = Threads.processorTime

    /// The part since the last call, or since this was made; at most 1.
    mutating func take() -> Double {
        let (time, used) = (ContinuousClock.now, Threads.processorTime)
        defer { (self.time, self.used) = (time, used) }
        let passed = (time - self.time) * Threads.processorCount
        return passed > .zero ? min((used - self.used) / passed, 1) : 1
    }
}
