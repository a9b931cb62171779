import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// From staged pages to a published checkpoint.
//
//   capture thread -> pool -> jobs -> dispatcher thread -> tasks -> workers -> packs
//                                           |
//                                           -> publications -> publisher thread: manifest, sync
//                                                                   |
//                                                 published <-------+
//                                                     |
//                                                     -> indexer thread: index
//
// `jobs`, `tasks`, `publications` and `published` are channels. Closing `jobs` ends it all: a stage
// whose channel has ended closes those that it sends to.
//
// The dispatcher takes jobs in the order in which they began, one at a time: a job's draft starts
// from the page map that the previous job left. Batches of one job go to all workers. While one job
// is published the next one is encoded; it is prepared when its parent exists. A job ends when the
// index has its checkpoint. When a job fails, jobs that began before its failure was known fail
// too: they lack its pages.

/// Encodes and publishes the captures of one guest, in order.
final class CheckpointPipeline: Sendable {
    /// How the jobs stand.
    private struct Progress: Sendable {
        /// Jobs that have not ended.
        var openCount = 0
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

    /// One batch of work, and what it needs.
    struct Task: Sendable {
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
        /// The numbers of the disks in the map.
        var table = VolumeTable()
    }

    let repository: Repository
    let pool: StagingPool
    /// For blocks of disks; nil until they are needed.
    private let ownDiskPool = Mutex<StagingPool?>(nil)
    private let levelControl: Mutex<LevelControl>
    let workerCount: Int
    private let progress = Monitor(Progress())
    private let jobs = Channel<CaptureJob>()
    private let tasks = Channel<Task>()
    /// The time of all workers together that the job being encoded took so far.
    private let busy = Mutex(Duration.zero)
    /// A job stays here until it is known whether its checkpoint exists: the next one is prepared
    /// after that.
    private let publications = Channel<Publication>(capacity: 1)
    /// A job stays here until it has ended.
    private let published = Channel<Published>()
    private let base: Mutex<Base>
    private let threads = Mutex<[Threads.Thread]>([])
    /// The disks that the captures are of.
    let disks: SessionDisks?
    /// Called when all jobs have ended.
    private let afterLast = Mutex<(@Sendable () -> Void)?>(nil)

    init(
        repository: Repository, parent: Checkpoint?, disks: SessionDisks? = nil,
        options: CaptureOptions
    ) throws(RepositoryError) {
        try options.check()
        self.disks = disks
        self.repository = repository
        pool = try StagingPool(byteCount: options.poolByteCount)
        levelControl = Mutex(LevelControl(options.compression, within: options.compressionRange))
        workerCount = max(1, options.workerCount)
        let lease = try parent.map { (parent) throws(RepositoryError) in
            try repository.leaseForSession(parent)
        }
        base = Mutex(
            Base(parent: parent, lease: lease, map: parent == nil ? repository.emptyPageMap() : nil)
        )
        do {
            try start()
        } catch {
            close()
            throw error
        }
    }

    /// Starts the threads, which reference the pipeline until it is closed.
    ///
    /// The dispatcher is the first: each that starts is ended by one that has started before it.
    private func start() throws(RepositoryError) {
        try start { $0.dispatch() }
        try start { $0.runPublisher() }
        try start { $0.runIndexer() }
        for _ in 0..<workerCount { try start { $0.runWorker() } }
    }

    private func start(
        _ body: @escaping @Sendable (CheckpointPipeline) -> Void
    ) throws(RepositoryError) {
        let thread = try Threads.Thread { body(self) }
        threads.withLock { $0.append(thread) }
    }

    /// Ends the threads after all jobs have ended, and waits for that.
    func close() {
        requestClose()
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in threads { thread.join() }
        pool.releaseMemory()
        ownDiskPool.withLock { $0 }?.releaseMemory()
    }

    /// The pool for blocks of disks: two slots of 1 MiB for each worker.
    func diskPool() throws(RepositoryError) -> StagingPool {
        try ownDiskPool.withLock { (pool) throws(RepositoryError) in
            if let pool { return pool }
            let made = try StagingPool(byteCount: 2 * workerCount * StagingPool.slotByteCount)
            pool = made
            return made
        }
    }

    /// Hands a batch to the workers; it counts as submitted.
    func submit(
        _ batch: StagedBatch, of job: CaptureJob, _ draft: CheckpointDraft,
        _ transaction: CheckpointTransaction
    ) {
        job.state.change { $0.openBatchCount += 1 }
        tasks.send(
            Task(batch: batch, job: job, draft: draft, transaction: transaction, level: level))
    }

    /// Begins no more jobs: the threads end, by themselves, when all jobs have ended.
    ///
    /// - Parameter ended: called by the last stage when all jobs have ended.
    func requestClose(ended: (@Sendable () -> Void)? = nil) {
        afterLast.withLock { $0 = $0 ?? ended }
        jobs.close()
    }

    /// Begins a job; it waits its turn.
    ///
    /// The pipeline must not be closed.
    ///
    /// - Parameter control: ends it as a failure does, until it is published.
    func begin(
        _ control: WorkControl,
        ended: @escaping @Sendable (CaptureJob, Result<Checkpoint, CheckpointError>) -> Void
    ) -> CaptureJob {
        progress.change { progress in
            let job = CaptureJob(
                generation: progress.failureCount, control: control, ended: ended)
            progress.openCount += 1
            jobs.send(job)
            return job
        }
    }

    /// Jobs that have not ended.
    var openJobCount: Int { progress.read { $0.openCount } }

    /// Waits until at most `count` jobs have not ended.
    func waitForJobs(atMost count: Int, _ control: WorkControl) throws(CheckpointError) {
        let isReached: Void? = progress.wait(until: control.cancellation) {
            $0.openCount <= count ? () : nil
        }
        if isReached == nil { throw control.cancelledCapture }
    }

    /// Waits until all jobs have ended.
    func waitForJobs() {
        progress.wait { $0.openCount == 0 ? () : nil }
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
                base.table = VolumeTable(of: parent.manifest)
            }
            let map = base.map ?? repository.emptyPageMap()
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
            base.table = VolumeTable(of: parent.manifest)
        }
    }

    // MARK: - The dispatcher

    private func dispatch() {
        var lastStart: ContinuousClock.Instant?
        while let job = jobs.receive() {
            let start = ContinuousClock.now
            do {
                try checkPredecessors(of: job)
                try encode(job, interval: lastStart.map { start - $0 })
            } catch {
                let failure = CheckpointError(wrapping: error)
                job.fail(failure)
                // The capture thread may still be submitting: wait until it has noticed.
                job.state.wait { $0.isHandedOver ? () : nil }
                end(job, .failure(job.failure ?? failure))
                disks?.releaseRetired()
            }
            lastStart = start
        }
        publications.close()
        tasks.close()
    }

    /// The level that the next checkpoint is compressed at.
    var level: CompressionLevel { levelControl.withLock { $0.level } }

    private func checkPredecessors(of job: CaptureJob) throws(CheckpointError) {
        guard job.generation == progress.read({ $0.failureCount }) else {
            throw CheckpointError(
                .predecessorFailed,
                "an earlier capture failed after this one had begun; take it again, the next "
                    + "capture has the pages of both")
        }
    }

    /// Records the result of a job.
    private func end(_ job: CaptureJob, _ result: Result<Checkpoint, CheckpointError>) {
        job.state.change { state in
            switch result {
            case .success: state.machine.publish()
            case .failure: state.machine.fail()
            }
        }
        // Its pages are merged back before the next job that need not fail with it can begin.
        job.ended(job, result)
        progress.change { progress in
            if case .failure = result, !job.isAborted { progress.failureCount += 1 }
            progress.openCount -= 1
        }
        job.end(result)
    }

    /// Encodes a job, and hands it to the publisher when the previous one is published.
    private func encode(_ job: CaptureJob, interval: Duration?) throws {
        let (map, known) = try takeMap()
        let draft = CheckpointDraft(map: map)
        var table = known
        do {
            let transaction = try repository.begin()
            let publication: Publication
            do {
                try encodeBatches(job, draft, transaction)
                job.move { $0.encode() }
                try job.check()
                draft.adopt(completion(of: job).layout)
                try audit(job, draft)
                let completion = completion(of: job)
                let volumes = try volumes(of: completion.disks, &table)
                if let source = completion.disks {
                    try encodeDisks(
                        source, as: volumes, known: known.volumes, job, draft, transaction)
                }
                publications.waitUntilEmpty()
                try checkPredecessors(of: job)
                let (parent, lease) = base.withLock { ($0.parent, $0.lease) }
                let start = ContinuousClock.now
                let prepared = try transaction.prepare(
                    draft, parent: parent, lease: lease, disks: volumes, table: table,
                    state: completion.state, completion.facts,
                    while: { self.goesOn(job) })
                // The last check: once published, the checkpoint exists.
                try job.check()
                let encoding = busy.withLock { $0 } / workerCount
                publication = Publication(
                    job: job, transaction: transaction, prepared: prepared,
                    busy: encoding + (ContinuousClock.now - start), interval: interval)
            } catch {
                transaction.abandon()
                throw error
            }
            let map = draft.finish()
            base.withLock { [table] base in
                base.map = map
                base.table = table
            }
            publications.send(publication)
        } catch {
            // The map has parts of a checkpoint that does not exist: read it again.
            base.withLock { $0.map = nil }
            throw error
        }
    }

    /// Returns false if the job is to end; it has then failed.
    private func goesOn(_ job: CaptureJob) -> Bool {
        do throws(CheckpointError) {
            try job.check()
            return true
        } catch {
            job.fail(error)
            return false
        }
    }

    /// The page map that a job starts from.
    private func takeMap() throws(RepositoryError) -> (PageMap, VolumeTable) {
        let known = base.withLock { base -> (PageMap, VolumeTable)? in
            defer { base.map = nil }
            return base.map.map { ($0, base.table) }
        }
        if let known { return known }
        // The checkpoint that is being published may become the parent.
        publications.waitUntilEmpty()
        guard let parent else { return (repository.emptyPageMap(), VolumeTable()) }
        return (try repository.pageMap(of: parent).map, VolumeTable(of: parent.manifest))
    }

    /// Hands a job's batches to the workers until it is complete and all are encoded.
    private func encodeBatches(
        _ job: CaptureJob, _ draft: CheckpointDraft, _ transaction: CheckpointTransaction
    ) throws(CheckpointError) {
        let level = level
        busy.withLock { $0 = .zero }
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
            tasks.send(
                contentsOf: batches.lazy.map {
                    Task(batch: $0, job: job, draft: draft, transaction: transaction, level: level)
                })
        }
        if let failure = job.failure { throw failure }
    }

    private func completion(of job: CaptureJob) -> CaptureJob.Completion {
        guard let completion = job.state.read({ $0.completion }) else {
            preconditionFailure("a job without failure is completed")
        }
        return completion
    }

    /// Compares pages that the log called clean; a miss fails the job before it is published.
    private func audit(_ job: CaptureJob, _ draft: CheckpointDraft) throws(CheckpointError) {
        // The sample leaves the job: its slots are free before the job ends.
        let sample = job.state.change { state in
            defer { state.completion?.audit = nil }
            return state.completion?.audit
        }
        guard let audit = sample?.compare(with: draft) else { return }
        job.state.change { $0.audit = audit }
        if audit.missedPageCount > 0 { throw CheckpointError(audit) }
    }

    // MARK: - The publisher

    private func runPublisher() {
        while let publication = publications.peek() {
            do throws(CheckpointError) {
                published.send(try publish(publication))
            } catch {
                // In the order in which they began; nothing is prepared before the outcome is
                // known.
                published.waitUntilEmpty()
                end(publication.job, .failure(error))
                disks?.releaseRetired()
            }
            publications.removeFirst()
        }
        published.close()
    }

    private func publish(_ publication: Publication) throws(CheckpointError) -> Published {
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
            let failure = CheckpointError(error)
            publication.job.fail(failure)
            throw failure
        }
    }

    // MARK: - The indexer

    private func runIndexer() {
        var meter = ProcessorMeter()
        while let done = published.peek() {
            index(done, &meter)
            published.removeFirst()
            // The first checkpoint of a large disk takes memory that later ones do not need.
            if done.checkpoint.storedPageCount >= CheckpointPipeline.largePageCount {
                FreedMemory.giveBack()
            }
        }
        afterLast.withLock { $0 }?()
    }

    /// Number of stored pages from which on a checkpoint is large: 1 GiB.
    private static let largePageCount = 1 << 18

    /// Adds a published checkpoint to the index, and ends its job.
    private func index(_ done: Published, _ meter: inout ProcessorMeter) {
        let start = ContinuousClock.now
        let publication = done.publication
        publication.transaction.index()
        // Before the checkpoint is announced: a prune that follows finds the parent free.
        publication.prepared.releaseParent()
        if let interval = publication.interval {
            let busy = done.busy + (ContinuousClock.now - start)
            let share = meter.take()
            levelControl.withLock {
                $0.note(busy: busy, interval: interval, processorShare: share)
            }
        }
        end(publication.job, .success(done.checkpoint))
        disks?.releaseRetired()
    }

    // MARK: - Workers

    private func runWorker() {
        while true {
            do throws(CheckpointError) {
                var encoder = try BatchEncoder()
                while let task = tasks.receive() {
                    let job = task.job
                    finish(job, failure: work(on: consume task, &encoder))
                }
                return
            } catch {
                // No memory for an encoder: a job fails, and then there may be some.
                guard let task = tasks.receive() else { return }
                finish(task.job, failure: error)
            }
        }
    }

    /// Encodes a batch; returns why that failed.
    ///
    /// When it returns, the batch's slot is free: a job has ended when all are encoded, and then it
    /// has none.
    private func work(
        on task: consuming Task, _ encoder: inout BatchEncoder
    ) -> CheckpointError? {
        guard task.job.failure == nil else { return nil }
        let start = ContinuousClock.now
        var failure: CheckpointError?
        do throws(CheckpointError) {
            try encoder.encode(
                task.batch, level: task.level, draft: task.draft, transaction: task.transaction)
        } catch {
            failure = error
        }
        let took = ContinuousClock.now - start
        busy.withLock { $0 += took }
        return failure
    }

    private func finish(_ job: CaptureJob, failure: CheckpointError?) {
        if let failure { job.fail(failure) }
        job.state.update { state in
            state.openBatchCount -= 1
            return state.openBatchCount == 0
        }
    }
}
