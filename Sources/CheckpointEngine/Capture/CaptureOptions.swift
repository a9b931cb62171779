public import CheckpointFormat
public import CheckpointIndex
import CheckpointStore
package import PackStore

/// How a session captures.
public struct CaptureOptions: Sendable {
    /// Bytes of the staging pool: the most that captures hold in memory beside the page map.
    ///
    /// The pages that are dirty in the pause must fit it. Touched as far as needed. 256 MiB; 1 to
    /// 2^40, and at least 4 MiB are taken.
    public var poolByteCount = 256 << 20
    /// How long the pause may take to copy pages; more dirty pages than fit are copied before it,
    /// while the guest runs.
    ///
    /// 10 ms; zero to an hour.
    public var pauseBudget = Duration.milliseconds(10)
    /// Precopy rounds at most; then the pause begins if the pool holds what is dirty.
    ///
    /// 8; 0 to 1,000,000.
    public var precopyRoundsMax = 8
    /// Captures that may be under way at once: one being taken, one encoded, one published, one
    /// indexed.
    ///
    /// 4; 1 to 1024.
    public var overlappingCapturesMax = 4
    /// How hard pages are compressed; zstd level 1.
    public var compression = CompressionLevel.standard
    /// Levels between which the session chooses for each checkpoint; nil: always `compression`.
    ///
    /// Begins with `compression`. Goes up by one level while encoding takes less than a quarter of
    /// the time between captures, down by one when it takes more than half, and to the fastest when
    /// it takes all of it. A range from `stored` to 6 takes twice as many checkpoints a second of
    /// 1,000 pages as level 1 does, and packs hourly ones tightly. Restores read any level alike.
    public var compressionRange: ClosedRange<CompressionLevel>?
    /// Threads that digest, compress and write; one a processor, and one because one of them waits
    /// for the disk now and then.
    ///
    /// 1 to 1024.
    public var workerCount = Threads.processorCount + 1
    /// What to keep of the lineage; nil: everything.
    ///
    /// What it does not keep is forgotten, and its space freed, while captures go on. See
    /// `CaptureSession.retentionReport`.
    public var retention: Retention?

    /// Whether a lineage may go on with another guest than its newest checkpoint's; else that is
    /// refused where it is known, as of domains of Xen by their kind and uuid.
    public var acceptsGuestChange = false

    /// Pages that the dirty log calls clean and that each capture looks at all the same, drawn at
    /// random; 0: none, 2^20 at most.
    ///
    /// They are copied in the pause, and compared afterwards. If one was written, `capture` takes
    /// the checkpoint again and compares every page; see `CaptureResult.audit`.
    public var auditPageCount = 0

    /// What ends an import before its checkpoint exists: asked on several threads, before each step
    /// and some times a second while it waits; nil: nothing does.
    ///
    /// If it throws, the import fails with `cancelled`, and what it had stored of the checkpoint is
    /// taken back. Sessions do not ask it: they have `CaptureSession.cancel`.
    public var interruption: (@Sendable () throws -> Void)?

    /// What times checkpoints, in nanoseconds since 1970, and tells a pool the present.
    package var clock: @Sendable () -> Int64 = { Int64(WallClock.nanoseconds) }

    /// The defaults.
    public init() {}

    /// Fails with `invalidOption` if a value cannot be used.
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

/// What a capture came to.
public struct CaptureResult: Sendable {
    /// The checkpoint; it is durable.
    public let checkpoint: Checkpoint
    /// Pages that the dirty log named, or all pages if every page was compared.
    public let dirtyPageCount: Int
    /// Pages copied out of the guest, precopy rounds counted each time.
    public let copiedPageCount: Int
    /// Pages copied in the pause.
    public let pausedPageCount: Int
    /// How long the guest was held still.
    public let pause: Duration
    /// What the audit of the dirty log came to; nil if none was asked for.
    ///
    /// If it found a miss, nothing of that attempt was published, and this checkpoint is of another
    /// one, which compared every page. Checkpoints since the last one that did may lack pages.
    public internal(set) var audit: CaptureAudit?
}

/// How far a capture is; for a progress line.
public struct CaptureProgress: Sendable {
    /// The phase.
    public let phase: CapturePhase
    /// Pages copied so far in this phase.
    public let pagesDone: Int
    /// Pages to copy in this phase.
    public let pagesTotal: Int
}
