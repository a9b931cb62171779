import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// From staged pages to a published checkpoint.
//
//   capture thread -> pool -> job -> dispatcher thread -> workers -> packs
//                                          |
//                                          -> publisher thread: manifest, sync
//                                                    |
//                                                    -> indexer thread: index
//
// The dispatcher takes jobs in the order in which they began, one at a time: a job's draft starts
// from the page map that the previous job left. Batches of one job go to all workers. While one job
// is published the next one is encoded; it is prepared when its parent exists. A job ends when the
// index has its checkpoint. When a job fails, jobs that began before its failure was known fail
// too: they lack its pages.

/// Encodes and publishes the captures of one guest, in order.
final class CheckpointPipeline: Sendable {
    private struct Queue: Sendable {
        var jobs: [CaptureJob] = []
        /// Jobs that have not ended.
        var openCount = 0
        /// What the publisher has to publish, or is publishing.
        var publication: Publication?
        var isClosed = false
        /// True when the dispatcher has handed over the last publication.
        var isDrained = false
        /// Published checkpoints that the indexer has to add, in order.
        var published: [Published] = []
        /// True when the publisher has handed over the last one.
        var isPublished = false
        var failureCount: UInt64 = 0
    }

    /// A job that is encoded, with what is left to do.
    private struct Publication: Sendable {
        let job: CaptureJob
        let transaction: CheckpointTransaction
        let prepared: CheckpointTransaction.Prepared
        /// How long encoding would have taken without waiting.
        let busy: Duration
        /// The time since the previous job was begun; nil for the first.
        let interval: Duration?
    }

    /// A job whose checkpoint exists and is not in the index yet.
    private struct Published: Sendable {
        let publication: Publication
        let checkpoint: Checkpoint
        /// How long encoding and publishing would have taken without waiting.
        let busy: Duration
    }

    private struct Work: Sendable {
        var items: [(batch: StagedBatch, job: CaptureJob)] = []
        var draft: CheckpointDraft?
        var transaction: CheckpointTransaction?
        var level = CompressionLevel.standard
        /// The time of all workers together that the job took so far.
        var busy = Duration.zero
        var isClosed = false
    }

    /// One batch of work, and what it needs.
    private struct Task: Sendable {
        let batch: StagedBatch
        let job: CaptureJob
        let draft: CheckpointDraft
        let transaction: CheckpointTransaction
        let level: CompressionLevel
    }

    /// What the next draft starts from; accessed by dispatcher and publisher, or while no job is
    /// open.
    private struct Base: ~Copyable {
        /// The newest checkpoint that exists.
        var parent: Checkpoint?
        /// Keeps the parent's pages from prune.
        var lease: SessionLease?
        /// Left by the job that was encoded last; nil: the parent's, to be read from the
        /// repository.
        var map: PageMap?
    }

    let repository: Repository
    let pool: StagingPool
    private let levelControl: Mutex<LevelControl>
    private let workerCount: Int
    private let control: WorkControl
    private let queue = Monitor(Queue())
    private let work = Monitor(Work())
    private let base: Mutex<Base>
    private let threads = Mutex<[Threads.Thread]>([])

    /// - Parameter control: checked on the dispatcher's thread, from when a job's last batch
    ///   is encoded until it is published.
    init(
        repository: Repository, parent: Checkpoint?, options: CaptureOptions,
        control: WorkControl = .none
    ) throws(RepositoryError) {
        try options.check()
        self.repository = repository
        self.control = control
        pool = try StagingPool(byteCount: options.poolByteCount)
        levelControl = Mutex(LevelControl(options.compression, within: options.compressionRange))
        workerCount = max(1, options.workerCount)
        let workerCount = workerCount
        let lease = try parent.map { (parent) throws(RepositoryError) in
            try repository.leaseForSession(parent)
        }
        base = Mutex(Base(parent: parent, lease: lease, map: parent == nil ? PageMap() : nil))
        // The threads reference the pipeline; `close` ends them.
        threads.withLock { threads in
            threads.append(Threads.Thread { self.dispatch() })
            threads.append(Threads.Thread { self.runPublisher() })
            threads.append(Threads.Thread { self.runIndexer() })
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
            queue.openCount += 1
            return job
        }
    }

    /// Jobs that have not ended.
    var openJobCount: Int { queue.read { $0.openCount } }

    /// Waits until at most `count` jobs have not ended.
    func waitForJobs(atMost count: Int) {
        queue.wait { $0.openCount <= count ? () : nil }
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

    /// Releases the parent to prune: nothing will follow it.
    func release() {
        base.withLock { $0.lease = nil }
    }

    /// Makes another checkpoint the parent of the next one.
    ///
    /// No job may be open.
    func rebase(on parent: Checkpoint, lease: SessionLease, map: PageMap) {
        precondition(openJobCount == 0, "the base belongs to a job")
        base.withLock { base in
            base.parent = parent
            base.lease = lease
            base.map = map
        }
    }

    // MARK: - The dispatcher

    private func dispatch() {
        var lastStart: ContinuousClock.Instant?
        while let job = nextJob() {
            let start = ContinuousClock.now
            do {
                try checkPredecessors(of: job)
                try encode(job, interval: lastStart.map { start - $0 })
            } catch {
                let failure = CaptureError(wrapping: error)
                job.fail(failure)
                // The capture thread may still be submitting: wait until it has noticed.
                job.state.wait { $0.isHandedOver ? () : nil }
                end(job, .failure(job.failure ?? failure))
            }
            lastStart = start
        }
        queue.change { $0.isDrained = true }
        work.change { $0.isClosed = true }
    }

    /// The level that the next checkpoint is compressed at.
    var level: CompressionLevel { levelControl.withLock { $0.level } }

    private func nextJob() -> CaptureJob? {
        queue.wait { queue -> CaptureJob?? in
            if !queue.jobs.isEmpty { return .some(queue.jobs.removeFirst()) }
            return queue.isClosed ? .some(nil) : nil
        }
    }

    private func checkPredecessors(of job: CaptureJob) throws(CaptureError) {
        guard job.generation == queue.read({ $0.failureCount }) else {
            throw CaptureError(
                .predecessorFailed,
                "an earlier capture failed after this one had begun; take it again, the next "
                    + "capture has the pages of both")
        }
    }

    /// Records the result of a job.
    private func end(_ job: CaptureJob, _ result: Result<Checkpoint, CaptureError>) {
        job.state.change { state in
            switch result {
            case .success: state.machine.publish()
            case .failure: state.machine.fail()
            }
        }
        // Its pages are merged back before the next job that need not fail with it can begin.
        job.ended(job, result)
        queue.change { queue in
            if case .failure = result { queue.failureCount += 1 }
            queue.openCount -= 1
        }
        job.state.change { $0.result = result }
    }

    /// Encodes a job, and hands it to the publisher when the previous one is published.
    private func encode(_ job: CaptureJob, interval: Duration?) throws {
        let draft = CheckpointDraft(map: try takeMap())
        do {
            let transaction = try repository.begin()
            let publication: Publication
            do {
                try encodeBatches(job, draft, transaction)
                guard let completion = job.state.read({ $0.completion }) else {
                    preconditionFailure("a job without failure is completed")
                }
                job.move { $0.encode() }
                try control.check()
                draft.adopt(completion.layout)
                try audit(job, completion, draft)
                waitForPublication()
                try checkPredecessors(of: job)
                let (parent, lease) = base.withLock { ($0.parent, $0.lease) }
                let start = ContinuousClock.now
                let prepared = try transaction.prepare(
                    draft, parent: parent, lease: lease, state: completion.state, completion.facts,
                    while: { self.goesOn(job) })
                // The last check: once published, the checkpoint exists.
                try control.check()
                let encoding = work.read { $0.busy } / workerCount
                publication = Publication(
                    job: job, transaction: transaction, prepared: prepared,
                    busy: encoding + (ContinuousClock.now - start), interval: interval)
            } catch {
                transaction.abandon()
                throw error
            }
            let map = draft.finish()
            base.withLock { $0.map = map }
            queue.change { $0.publication = publication }
        } catch {
            // The map has parts of a checkpoint that does not exist: read it again.
            base.withLock { $0.map = nil }
            throw error
        }
    }

    /// Returns false if the job is to end; it has then failed.
    private func goesOn(_ job: CaptureJob) -> Bool {
        do throws(CaptureError) {
            try control.checkCapture()
            return true
        } catch {
            job.fail(error)
            return false
        }
    }

    private func waitForPublication() {
        queue.wait { $0.publication == nil ? () : nil }
    }

    // MARK: - The publisher

    private func runPublisher() {
        while let publication = nextPublication() {
            do throws(CaptureError) {
                let published = try publish(publication)
                queue.change { queue in
                    queue.published.append(published)
                    queue.publication = nil
                }
            } catch {
                // In the order in which they began; nothing is prepared before the outcome is
                // known.
                queue.wait { $0.published.isEmpty ? () : nil }
                end(publication.job, .failure(error))
                queue.change { $0.publication = nil }
            }
        }
        queue.change { $0.isPublished = true }
    }

    private func nextPublication() -> Publication? {
        queue.wait { queue -> Publication?? in
            if let publication = queue.publication { return .some(publication) }
            return queue.isDrained ? .some(nil) : nil
        }
    }

    private func publish(_ publication: Publication) throws(CaptureError) -> Published {
        let start = ContinuousClock.now
        do throws(RepositoryError) {
            let published = try publication.transaction.publish(publication.prepared)
            base.withLock { base in
                base.parent = published.checkpoint
                base.lease = published.lease
            }
            return Published(
                publication: publication, checkpoint: published.checkpoint,
                busy: publication.busy + (ContinuousClock.now - start))
        } catch {
            publication.transaction.abandon()
            base.withLock { $0.map = nil }
            let failure = CaptureError(error)
            publication.job.fail(failure)
            throw failure
        }
    }

    // MARK: - The indexer

    private func runIndexer() {
        var meter = ProcessorMeter()
        while let published = nextPublished() {
            let start = ContinuousClock.now
            let publication = published.publication
            publication.transaction.index()
            // Before the checkpoint is announced: a prune that follows finds the parent free.
            publication.prepared.releaseParent()
            if let interval = publication.interval {
                let busy = published.busy + (ContinuousClock.now - start)
                let share = meter.take()
                levelControl.withLock {
                    $0.note(busy: busy, interval: interval, processorShare: share)
                }
            }
            end(publication.job, .success(published.checkpoint))
            queue.change { queue in _ = queue.published.removeFirst() }
        }
    }

    private func nextPublished() -> Published? {
        queue.wait { queue -> Published?? in
            if let published = queue.published.first { return .some(published) }
            return queue.isPublished ? .some(nil) : nil
        }
    }

    /// Compares pages that the log called clean; a miss fails the job before it is published.
    private func audit(
        _ job: CaptureJob, _ completion: CaptureJob.Completion, _ draft: CheckpointDraft
    ) throws(CaptureError) {
        guard let audit = completion.audit?.compare(with: draft) else { return }
        job.state.change { $0.audit = audit }
        if audit.missedPageCount > 0 { throw CaptureError(audit) }
    }

    private func takeMap() throws(RepositoryError) -> PageMap {
        let known = base.withLock { base in
            defer { base.map = nil }
            return base.map
        }
        if let known { return known }
        // The checkpoint that is being published may become the parent.
        waitForPublication()
        guard let parent else { return PageMap() }
        return try repository.pageMap(of: parent).map
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
                do throws(CaptureError) {
                    try encoder.encode(
                        task.batch, level: task.level, draft: task.draft,
                        transaction: task.transaction)
                } catch {
                    failure = error
                }
                let busy = ContinuousClock.now - start
                work.update { work in
                    work.busy += busy
                    return false
                }
            }
            if let failure { job.fail(failure) }
            job.state.update { state in
                state.openBatchCount -= 1
                return state.openBatchCount == 0
            }
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
