public import CheckpointFormat
public import CheckpointIndex
import CheckpointStore
public import GuestModel
package import PackStore

/// How a session captures.
public struct CaptureOptions: Sendable {
    /// Bytes of the staging pool: the most that captures hold in memory, apart from the page map.
    ///
    /// The pages that are dirty in the pause must fit in it. Its memory is touched only when
    /// needed. 256 MiB; 1 to 2^40, and at least 4 MiB are reserved.
    public var poolByteCount = 256 << 20
    /// How long the pause may take to copy pages; dirty pages beyond that are copied before the
    /// pause, while the guest runs.
    ///
    /// 10 ms; zero to an hour.
    public var pauseBudget = Duration.milliseconds(10)
    /// The most precopy rounds; after them the pause begins if the dirty pages fit in the pool.
    ///
    /// 8; 0 to 1,000,000.
    public var precopyRoundsMax = 8
    /// The most captures that may be in progress at once: one being taken, one encoded, one
    /// published, one indexed.
    ///
    /// 4; 1 to 1024.
    public var overlappingCapturesMax = 4
    /// How strongly pages are compressed; zstd level 1.
    public var compression = CompressionLevel.standard
    /// The range in which the session chooses a level for each checkpoint; nil: always
    /// `compression`.
    ///
    /// Starts with `compression`. Goes up by one level while encoding takes less than a quarter of
    /// the time between captures, down by one when it takes more than half, and to the fastest when
    /// it takes all of it. With a range from `stored` to 6, twice as many checkpoints of 1,000
    /// pages are taken per second as at level 1, and hourly ones are compressed well. Restores read
    /// all levels alike.
    public var compressionRange: ClosedRange<CompressionLevel>?
    /// Threads that digest, compress and write; one per processor, and one more because at times
    /// one of them waits for the disk.
    ///
    /// 1 to 1024.
    public var workerCount = Threads.processorCount + 1
    /// Which checkpoints of the lineage to keep; nil: all.
    ///
    /// The others are forgotten, and their space is freed, while captures go on. See
    /// `CaptureSession.retentionReport`.
    public var retention: Retention?

    /// Whether a lineage may continue with a guest other than its newest checkpoint's; if not, that
    /// is refused where it is detected, for Xen domains by their kind and uuid.
    public var acceptsGuestChange = false

    /// Pages that the dirty log calls clean and that each capture checks anyway, drawn at random;
    /// 0: none, 2^20 at most.
    ///
    /// They are copied in the pause, and compared afterwards. If one was written, `capture` takes
    /// the checkpoint again and compares every page; see `CaptureResult.audit`.
    public var auditPageCount = 0

    /// The times of checkpoints, in nanoseconds since 1970, and the present for retention.
    package var clock: @Sendable () -> Int64 = { Int64(WallClock.nanoseconds) }

    /// The defaults.
    public init() {}

    /// Throws `invalidOption` if a value is invalid.
    package func check() throws(RepositoryError) {
        try OptionCheck.check("poolByteCount", poolByteCount, in: 1...1 << 40)
        try OptionCheck.check("pauseBudget", pauseBudget, in: .zero...Duration.seconds(3600))
        try OptionCheck.check("precopyRoundsMax", precopyRoundsMax, in: 0...1_000_000)
        try OptionCheck.check("overlappingCapturesMax", overlappingCapturesMax, in: 1...1024)
        try OptionCheck.check("workerCount", workerCount, in: 1...1024)
        try OptionCheck.check("auditPageCount", auditPageCount, in: 0...1 << 20)
        try CaptureOptions.check("compression", compression)
        if let compressionRange {
            try CaptureOptions.check("compressionRange", compressionRange.lowerBound)
            try CaptureOptions.check("compressionRange", compressionRange.upperBound)
        }
        try retention?.check()
    }

    private static func check(
        _ name: String, _ level: CompressionLevel
    ) throws(RepositoryError) {
        // zstd's own limits; above 19 it needs much more memory.
        if level != .stored { try OptionCheck.check(name, level.rawValue, in: -131_072...19) }
    }
}

/// The result of a capture.
public struct CaptureResult: Sendable {
    /// The checkpoint; it is durable.
    public let checkpoint: Checkpoint
    /// Pages that the dirty log named, or all pages if every page was compared.
    public let dirtyPageCount: Int
    /// Pages copied out of the guest, precopy rounds counted each time.
    public let copiedPageCount: Int
    /// Pages copied in the pause.
    public let pausedPageCount: Int
    /// How long the guest took to pause, and how long it was paused.
    public let pauseTimes: PauseTimes
    /// How long the guest was paused.
    public var pause: Duration { pauseTimes.downtime }
    /// The result of the audit of the dirty log; nil if none was requested.
    ///
    /// If it found a miss, nothing of that attempt was published, and this checkpoint is from a
    /// second attempt, which compared every page. Checkpoints since the previous full comparison
    /// may lack pages.
    public internal(set) var audit: CaptureAudit?
}
