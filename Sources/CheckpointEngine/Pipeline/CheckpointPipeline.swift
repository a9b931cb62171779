import CheckpointFormat
import CheckpointStore
import GuestModel
import Synchronization

// From staged pages to a published checkpoint.
//
//   capture thread  -> ring -> job -> dispatcher thread -> workers -> packs
//
// The dispatcher takes jobs in the order in which they began, one at a time: a job's draft starts
// from the page map that the job before it left. Batches of one job go to all workers. When a job
// fails, jobs that began before its failure was known fail too: they lack its pages.

/// Encodes and publishes the captures of one guest, in order.
final class CheckpointPipeline: Sendable {
    private struct Queue: Sendable {
        var jobs: [CaptureJob] = []
        var isBusy = false
        var isClosed = false
        var failureCount: UInt64 = 0
    }

    private struct Work: Sendable {
        var items: [(batch: StagedBatch, job: CaptureJob)] = []
        var draft: CheckpointDraft?
        var transaction: CheckpointTransaction?
        var level = CompressionLevel.standard
        /// What the job took of all workers' time so far, together.
        var busy = Duration.zero
        var isClosed = false
    }

    /// One item of work, and what goes with it.
    private struct Task: Sendable {
        let batch: StagedBatch
        let job: CaptureJob
        let draft: CheckpointDraft
        let transaction: CheckpointTransaction
        let level: CompressionLevel
    }

    /// What the next draft starts from; touched by the dispatcher, or while it is idle.
    private struct Base: ~Copyable {
        var parent: Checkpoint?
        /// Keeps the parent's pages from prune.
        var hold: CheckpointHold?
        /// nil: to be read from the repository.
        var map: PageMap?
    }

    let repository: Repository
    let ring: StagingRing
    /// Touched by the dispatcher alone, but for `level`.
    private let control: Mutex<LevelControl>
    private let workerCount: Int
    private let queue = Monitor(Queue())
    private let work = Monitor(Work())
    private let base: Mutex<Base>
    private let threads = Mutex<[Threads.Thread]>([])

    init(
        repository: Repository, parent: Checkpoint?, options: CaptureOptions
    ) throws(RepositoryError) {
        self.repository = repository
        ring = StagingRing(byteCount: options.ringByteCount)
        control = Mutex(LevelControl(options.compression, within: options.compressionRange))
        workerCount = max(1, options.workerCount)
        let workerCount = workerCount
        let hold = try parent.map { (parent) throws(RepositoryError) in try repository.hold(parent)
        }
        base = Mutex(Base(parent: parent, hold: hold, map: parent == nil ? PageMap() : nil))
        // The threads hold the pipeline; `close` ends them.
        threads.withLock { threads in
            threads.append(Threads.Thread { self.dispatch() })
            for _ in 0..<workerCount {
                threads.append(Threads.Thread { self.runWorker() })
            }
        }
    }

    /// Ends the threads after all jobs have ended.
    func close() {
        queue.change { $0.isClosed = true }
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in threads { thread.join() }
    }

    /// Begins a job; it waits its turn.
    func begin(
        ended: @escaping @Sendable (CaptureJob, Result<Checkpoint, CaptureError>) -> Void
    ) -> CaptureJob {
        queue.change { queue in
            precondition(!queue.isClosed, "the pipeline is closed")
            let job = CaptureJob(generation: queue.failureCount, ended: ended)
            queue.jobs.append(job)
            return job
        }
    }

    /// Jobs that have not ended.
    var openJobCount: Int { queue.read { $0.jobs.count + ($0.isBusy ? 1 : 0) } }

    /// Waits until at most so many jobs have not ended.
    func waitForJobs(atMost count: Int) {
        queue.wait { $0.jobs.count + ($0.isBusy ? 1 : 0) <= count ? () : nil }
    }

    // MARK: - Base, while no job is open

    /// The checkpoint that the next one follows.
    var parent: Checkpoint? { base.withLock { $0.parent } }

    /// Runs `body` with the parent's page map.
    ///
    /// No job may be open.
    func withMap<T>(
        _ body: (PageMap) throws(RepositoryError) -> T
    ) throws(RepositoryError) -> T {
        precondition(openJobCount == 0, "the map belongs to a job")
        return try base.withLock { (base) throws(RepositoryError) -> T in
            if base.map == nil, let parent = base.parent {
                base.map = try repository.pageMap(of: parent).map
            }
            let map = base.map ?? PageMap()
            base.map = map
            return try body(map)
        }
    }

    /// Lets prune have the parent: nothing will follow it.
    func release() {
        base.withLock { $0.hold = nil }
    }

    /// Makes another checkpoint the parent of the next one.
    ///
    /// No job may be open.
    func rebase(on parent: Checkpoint, hold: CheckpointHold, map: PageMap) {
        precondition(openJobCount == 0, "the base belongs to a job")
        base.withLock { base in
            base.parent = parent
            base.hold = hold
            base.map = map
        }
    }

    // MARK: - The dispatcher

    private func dispatch() {
        var lastStart: ContinuousClock.Instant?
        while let job = nextJob() {
            let start = ContinuousClock.now
            let result = run(job)
            if case .success = result, let lastStart { adapt(interval: start - lastStart) }
            lastStart = start
            job.state.change { state in
                switch result {
                case .success: state.machine.publish()
                case .failure: state.machine.fail()
                }
            }
            if case .failure = result { queue.change { $0.failureCount += 1 } }
            job.ended(job, result)
            queue.change { $0.isBusy = false }
            job.state.change { $0.result = result }
        }
        work.change { $0.isClosed = true }
    }

    /// The level that the next checkpoint is compressed at.
    var level: CompressionLevel { control.withLock { $0.level } }

    /// Chooses the next checkpoint's level by what this one took of the time since the last.
    private func adapt(interval: Duration) {
        let busy = work.read { $0.busy } / workerCount
        control.withLock { $0.note(busy: busy, interval: interval) }
    }

    private func nextJob() -> CaptureJob? {
        queue.wait { queue -> CaptureJob?? in
            if !queue.jobs.isEmpty {
                queue.isBusy = true
                return .some(queue.jobs.removeFirst())
            }
            return queue.isClosed ? .some(nil) : nil
        }
    }

    private func run(_ job: CaptureJob) -> Result<Checkpoint, CaptureError> {
        do {
            if job.generation != queue.read({ $0.failureCount }) {
                throw CaptureError(
                    .predecessorFailed,
                    "an earlier capture failed after this one had begun; take it again, the next "
                        + "capture has the pages of both")
            }
            return .success(try encode(job))
        } catch {
            let failure = CaptureError(wrapping: error)
            job.fail(failure)
            // The capture thread may still be handing in: wait until it has noticed.
            job.state.wait { $0.isHandedOver ? () : nil }
            return .failure(job.failure ?? failure)
        }
    }

    private func encode(_ job: CaptureJob) throws -> Checkpoint {
        let (parent, map) = try takeBase()
        let draft = CheckpointDraft(map: map)
        do {
            let transaction = try repository.begin(parent: parent)
            defer { transaction.abandon() }
            try encodeBatches(job, draft, transaction)
            guard let completion = job.state.read({ $0.completion }) else {
                preconditionFailure("a job without failure is completed")
            }
            job.move { $0.encode() }
            draft.adopt(completion.layout)
            try audit(job, completion, draft)
            let start = ContinuousClock.now
            let (checkpoint, hold) = try transaction.publish(
                draft, state: completion.state, completion.facts)
            // The workers have nothing to do meanwhile.
            let published = (ContinuousClock.now - start) * workerCount
            work.change { $0.busy += published }
            let map = draft.finish()
            base.withLock { base in
                base.parent = checkpoint
                base.hold = hold
                base.map = map
            }
            return checkpoint
        } catch {
            // The map holds parts of a checkpoint that does not exist: read it again.
            base.withLock { $0.map = nil }
            throw error
        }
    }

    /// Compares pages that the log called clean; a miss ends the job before it is published.
    private func audit(
        _ job: CaptureJob, _ completion: CaptureJob.Completion, _ draft: CheckpointDraft
    ) throws(CaptureError) {
        guard let audit = completion.audit?.compare(with: draft) else { return }
        job.state.change { $0.audit = audit }
        if audit.missedPageCount > 0 { throw CaptureError(audit) }
    }

    private func takeBase() throws(RepositoryError) -> (Checkpoint?, PageMap) {
        try base.withLock { (base) throws(RepositoryError) in
            let parent = base.parent
            if let map = base.map {
                base.map = nil
                return (parent, map)
            }
            guard let parent else { return (nil, PageMap()) }
            return (parent, try repository.pageMap(of: parent).map)
        }
    }

    /// Hands a job's batches to the workers until it is complete and all are encoded.
    private func encodeBatches(
        _ job: CaptureJob, _ draft: CheckpointDraft, _ transaction: CheckpointTransaction
    ) throws(CaptureError) {
        let next = level
        work.change { work in
            work.draft = draft
            work.transaction = transaction
            work.level = next
            work.busy = .zero
        }
        defer {
            work.change { work in
                work.draft = nil
                work.transaction = nil
            }
        }
        while true {
            let batches = job.state.wait { state -> [StagedBatch]? in
                if state.failure != nil { return state.openBatchCount == 0 ? [] : nil }
                if !state.batches.isEmpty {
                    defer { state.batches.removeAll() }
                    return state.batches
                }
                return state.completion != nil && state.openBatchCount == 0 ? [] : nil
            }
            if batches.isEmpty { break }
            work.change { $0.items.append(contentsOf: batches.map { ($0, job) }) }
        }
        if let failure = job.failure { throw failure }
    }

    // MARK: - Workers

    private func runWorker() {
        var encoder = BatchEncoder()
        while let task = nextTask() {
            let job = task.job
            var failure: CaptureError?
            if job.failure == nil {
                let start = ContinuousClock.now
                do throws(RepositoryError) {
                    try encoder.encode(
                        task.batch, level: task.level, draft: task.draft,
                        transaction: task.transaction)
                } catch {
                    failure = CaptureError(error)
                }
                let busy = ContinuousClock.now - start
                work.change { $0.busy += busy }
            }
            if let failure { job.fail(failure) }
            job.state.change { $0.openBatchCount -= 1 }
        }
    }

    private func nextTask() -> Task? {
        work.wait { work -> Task?? in
            if let item = work.items.first, let draft = work.draft,
                let transaction = work.transaction
            {
                work.items.removeFirst()
                return .some(
                    Task(
                        batch: item.batch, job: item.job, draft: draft,
                        transaction: transaction, level: work.level))
            }
            return work.isClosed ? .some(nil) : nil
        }
    }
}
