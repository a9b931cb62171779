public import CheckpointIndex
public import CheckpointStore
public import CheckpointUpkeep
public import GuestModel
public import PackStore
import Synchronization

// Retention: checkpoints that the policy does not keep are forgotten while captures go on, and
// their space is freed. On a thread of its own:
//
//   published -> decide -> forget (one record, one sync)
//                  -> a pack was sealed since the last prune: plan and execute one
//
// A failure is counted and retried after the next publication: nothing waits for it, and no capture
// fails because of it.

/// Which checkpoints of a lineage are kept while it is captured.
public struct Retention: Sendable {
    /// The policy, which says what to keep; the newest checkpoint is always kept.
    public var policy: RetentionPolicy
    /// The minimum time from one thinning to the next.
    ///
    /// A second by default; zero to 2^40 seconds.
    public var interval = Duration.seconds(1)
    /// The maximum of unused bytes that a prune leaves, in percent of the store.
    ///
    /// A higher value costs space, a lower one costs writing. 20 by default; 0 to 100.
    public var unusedPercentMax = 20.0

    /// Creates a retention by a policy.
    ///
    /// A policy that keeps nothing is refused with `invalidOption` where the retention is used.
    public init(_ policy: RetentionPolicy) {
        self.policy = policy
    }

    /// Throws `invalidOption` if a value is invalid.
    func check() throws(RepositoryError) {
        try policy.check()
        try OptionCheck.check("interval", interval, in: .zero...OptionCheck.longest)
        try OptionCheck.check("unusedPercentMax", unusedPercentMax, in: 0...100)
    }
}

/// What a retention keeper has done so far.
public struct RetentionReport: Sendable {
    /// The number of checkpoints that were forgotten.
    public var forgottenCount = 0
    /// The number of prunes that freed something.
    public var pruneCount = 0
    /// The number of bytes that these prunes freed.
    public var freedByteCount = 0
    /// The checkpoints that the last thinning kept because their times are in doubt (`TimeDoubt`),
    /// oldest first.
    ///
    /// They stay until no rule would keep them whatever their times, or until they are forgotten by
    /// ID.
    public var inDoubt: [CheckpointID] = []
    /// The number of thinnings that failed; the next thinning does what a failed one left.
    public var failureCount = 0
    /// The last failure; nil if there was none.
    public var lastFailure: RepositoryError?
}

/// Thins a lineage while it is captured, on a thread of its own.
///
/// A session with `CaptureOptions.retention` has a keeper of its own. Create one for checkpoints
/// that come without a session, such as imports. The repository must be open for writing. Close the
/// keeper: its thread keeps it until then.
public final class RetentionKeeper: Sendable {
    private struct State {
        var isDue = false
        var isClosed = false
        var report = RetentionReport()
    }

    private let repository: Repository
    private let lineage: LineageName
    private let retention: Retention
    private let clock: @Sendable () -> Int64
    private let state = Monitor(State())
    private let thread = Mutex<Threads.Thread?>(nil)

    /// Creates a keeper and starts its thread, which does nothing before the first publication.
    ///
    /// Throws `invalidOption` if a value of the retention is invalid, and `callFailed` if no thread
    /// can be started.
    public convenience init(
        _ retention: Retention, of repository: Repository, lineage: LineageName
    ) throws(RepositoryError) {
        try retention.check()
        try self.init(
            retention, of: repository, lineage: lineage, clock: CaptureOptions().clock)
    }

    /// Creates a keeper with a clock that returns the present, in nanoseconds since 1970.
    package init(
        _ retention: Retention, of repository: Repository, lineage: LineageName,
        clock: @escaping @Sendable () -> Int64
    ) throws(RepositoryError) {
        self.clock = clock
        self.repository = repository
        self.lineage = lineage
        self.retention = retention
        // The thread references the keeper; `close` ends it.
        let started = try Threads.Thread { self.run() }
        thread.withLock { $0 = started }
    }

    /// Tells the keeper that the lineage has a new checkpoint; returns immediately.
    public func checkpointPublished() {
        state.change { $0.isDue = true }
    }

    /// What the keeper has done so far.
    public var report: RetentionReport { state.read { $0.report } }

    /// Thins the lineage once more, and ends the thread.
    ///
    /// Blocks until that is done. Calling it again has no effect.
    public func close() {
        requestClose()
        let thread = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
    }

    /// Ends the thread after it has thinned the lineage once more; returns immediately.
    package func requestClose() {
        state.change { $0.isClosed = true }
    }

    private func run() {
        var earliest = ContinuousClock.now
        var prunedPack: UInt32 = 0
        while true {
            let isLast = state.wait { state -> Bool? in
                guard state.isDue || state.isClosed else { return nil }
                state.isDue = false
                return state.isClosed
            }
            let start = ContinuousClock.now
            // One that comes too soon is left to the next.
            if start >= earliest || isLast {
                step(&prunedPack)
                // A long lineage must not keep a processor busy with reading its manifests.
                let took = ContinuousClock.now - start
                earliest = start + max(retention.interval, took * 10)
            }
            if isLast { return }
        }
    }

    private func step(_ prunedPack: inout UInt32) {
        do throws(RepositoryError) {
            let found = try repository.checkpoints(lineage: lineage)
            guard let newest = found.last else { return }
            let decisions = retention.policy.decide(found, nowNanoseconds: clock())
            let gone = decisions.filter { !$0.isKept && $0.checkpoint.id != newest.id }
            try repository.forget(gone.map(\.checkpoint.id))
            let inDoubt = decisions.filter { $0.timeDoubt != nil }.map(\.checkpoint.id)
            state.change { state in
                state.report.forgottenCount += gone.count
                state.report.inDoubt = inDoubt
            }
            guard newest.pack > prunedPack else { return }
            let options = PruneOptions(unusedPercentMax: retention.unusedPercentMax)
            let done = try repository.planPrune(options).execute()
            prunedPack = newest.pack
            state.change { state in
                state.report.pruneCount += done.isEmpty ? 0 : 1
                state.report.freedByteCount += done.freedByteCount
            }
        } catch {
            state.change { state in
                state.report.failureCount += 1
                state.report.lastFailure = error
            }
        }
    }
}
