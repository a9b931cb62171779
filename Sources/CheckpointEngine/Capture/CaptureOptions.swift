public import CheckpointFormat
public import CheckpointIndex
import CheckpointStore
public import GuestModel
package import PackStore

/// How a session captures, and how an import stores what it reads.
public struct CaptureOptions: Sendable {
    /// The size of the staging pool in bytes: the most memory that captures need, in addition to
    /// the page map and, with disks, 2 MiB for each worker.
    ///
    /// The pages that are dirty in the pause must fit in it. Its memory is touched only when it is
    /// needed. 256 MiB by default; 1 to 2^40, of which at least 4 MiB are reserved.
    public var poolByteCount = 256 << 20
    /// The time that copying pages may take in the pause.
    ///
    /// More dirty pages than can be copied in that time are copied before the pause, while the
    /// guest runs. This is a goal and not a limit: after `precopyRoundsMax` rounds, or when another
    /// round leaves no fewer pages, the pause begins anyway. 10 ms by default; zero to an hour.
    public var pauseBudget = Duration.milliseconds(10)
    /// The maximum number of precopy rounds.
    ///
    /// If the dirty pages do not fit in the pool after the last one, the capture fails with
    /// `poolTooSmall`. 8 by default; 0 to 1,000,000.
    public var precopyRoundsMax = 8
    /// The maximum number of captures in progress: one that is taken, one that is encoded, one that
    /// is published, and one that is indexed.
    ///
    /// 4 by default; 1 to 1024. With disks it is always 1, so that at most two cuts stand.
    public var overlappingCapturesMax = 4
    /// How strongly pages are compressed; zstd level 1 by default.
    public var compression = CompressionLevel.standard
    /// The range from which the session chooses a level for each checkpoint; nil for `compression`
    /// always.
    ///
    /// The first level is `compression`. The level rises by one while encoding takes less than a
    /// quarter of the time between captures, falls by one when it takes more than half of it, and
    /// falls to the fastest when it takes all of it. With a range from `stored` to 6, twice as many
    /// checkpoints of 1,000 pages can be taken per second as at level 1, and hourly ones are
    /// compressed well.
    public var compressionRange: ClosedRange<CompressionLevel>?
    /// The number of threads that digest, compress and write pages.
    ///
    /// One for each processor by default, and one more because at times one waits for the disk; 1
    /// to 1024.
    public var workerCount = Threads.processorCount + 1
    /// Which checkpoints of the lineage to keep; nil for all.
    ///
    /// The others are forgotten, and their space is freed, on a thread of the session while
    /// captures continue. `CaptureSession.retentionReport` has the result. An import ignores this.
    public var retention: Retention?

    /// Whether a lineage may continue with a guest other than that of its newest checkpoint.
    ///
    /// If not, such a guest is refused with `anotherGuest` where this is detected: for Xen domains
    /// by their kind and uuid.
    public var acceptsGuestChange = false

    /// Whether the guest has disks that its checkpoints are to omit.
    ///
    /// Such a checkpoint says so (`Checkpoint.omitsDisks`), because its memory must not run with
    /// disks of another instant. False by default: a session without a `DiskGroup`, or an import
    /// of an image without disks, is then refused with `invalidOption` if the newest checkpoint of
    /// its lineage has disks or omits them. A session with a `DiskGroup` ignores this.
    public var omitsDisks = false

    /// How long the cut of the disks may take in the pause.
    ///
    /// A cut that takes longer is given up where its provider can do that. The capture then fails,
    /// and the guest runs. 2 s by default; zero to an hour.
    public var diskCutBudget = Duration.seconds(2)

    /// Whether the cut from which the newest checkpoint's disks were read is kept when the session
    /// is closed.
    ///
    /// The next session of the lineage then need not compare the disks as a whole. The cut takes
    /// space where the disks are, which grows as they are written. False by default.
    public var keepsDiskCut = false

    /// The number of pages that each capture draws at random from those that the dirty log calls
    /// clean, and checks.
    ///
    /// They are copied in the pause and compared afterwards. If one was written, nothing is
    /// published; `capture` then takes the checkpoint again and compares every page
    /// (`CaptureResult.audit`), and `begin` leaves that to the next capture. 0 by default, which is
    /// none; at most 2^20.
    public var auditPageCount = 0

    /// The times of checkpoints, in nanoseconds since 1970, and the present for retention.
    package var clock: @Sendable () -> Int64 = { Int64(WallClock.nanoseconds) }

    /// Creates options with the defaults.
    public init() {}

    /// Throws `invalidOption` if a value is invalid.
    package func check() throws(RepositoryError) {
        try OptionCheck.check("poolByteCount", poolByteCount, in: 1...1 << 40)
        try OptionCheck.check("pauseBudget", pauseBudget, in: .zero...Duration.seconds(3600))
        try OptionCheck.check(
            "diskCutBudget", diskCutBudget, in: .zero...Duration.seconds(3600))
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
    /// The checkpoint, which is durable.
    public let checkpoint: Checkpoint
    /// The number of pages of memory that the dirty log named, or of all of them if every page was
    /// compared.
    public let dirtyPageCount: Int
    /// The number of pages that were copied out of the guest; a page that was copied in several
    /// rounds counts each time.
    public let copiedPageCount: Int
    /// The number of pages that were copied in the pause.
    public let pausedPageCount: Int
    /// How long the guest took to pause, and how long it was paused.
    public let pauseTimes: PauseTimes
    /// How long the guest was paused: `pauseTimes.downtime`.
    public var pause: Duration { pauseTimes.downtime }
    /// How much of `pause` was spent on the disks; zero if there are none.
    public let diskTimes: DiskCutTimes
    /// The result of the audit of the dirty log; nil if none was requested.
    ///
    /// If it found a page that the log had missed, nothing of that attempt was published, and this
    /// checkpoint is from a second attempt, which compared every page. Checkpoints since the
    /// previous comparison of every page may lack pages.
    public internal(set) var audit: CaptureAudit?
}
