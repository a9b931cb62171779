import CheckpointFormat
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

/// Decompresses and hashes pages on all processors while the caller continues to read page maps.
final class VerifyPages: Sendable {
    private struct Batch: Sendable {
        let checkpoint: CheckpointID
        let requests: [PageRequest]
    }

    private struct Outcome: Sendable {
        var failure: RepositoryError?
        var pageCount = 0
    }

    /// Pages per batch, and queued batches: some MiB of memory per processor.
    private static let batchPageCount = 4096
    private static let waitingCountMax = 64

    private let repository: Repository
    private let findings: VerifyFindings
    private let control: WorkControl
    private let batches = Channel<Batch>(capacity: waitingCountMax)
    private let outcome = Mutex(Outcome())
    private let threads = Mutex<[Threads.Thread]>([])

    /// Fails if not even one thread can be started.
    init(
        _ repository: Repository, _ findings: VerifyFindings, _ control: WorkControl
    ) throws(RepositoryError) {
        self.repository = repository
        self.findings = findings
        self.control = control
        var started = [try Threads.Thread { self.run() }]
        while started.count < Threads.processorCount, let next = try? Threads.Thread({ self.run() })
        {
            started.append(next)
        }
        threads.withLock { [started] in $0 = started }
    }

    /// Submits pages that a checkpoint stored, sorted by location; blocks while many are queued.
    func submit(_ requests: [PageRequest], of checkpoint: CheckpointID) {
        var start = 0
        while start < requests.count {
            let end = min(start + VerifyPages.batchPageCount, requests.count)
            let batch = Batch(checkpoint: checkpoint, requests: Array(requests[start..<end]))
            batches.send(batch)
            start = end
        }
    }

    /// Waits until all pages were read; returns their number.
    func finish() throws(RepositoryError) -> Int {
        batches.close()
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in threads { thread.join() }
        let (failure, count) = outcome.withLock { ($0.failure, $0.pageCount) }
        if let failure { throw failure }
        return count
    }

    private func run() {
        do throws(RepositoryError) {
            var fetcher = try PageFetcher(repository)
            while let batch = batches.receive() { read(batch, &fetcher) }
        } catch {
            outcome.withLock { $0.failure = $0.failure ?? error }
            // So that no sender waits for room: what is submitted from here on is not read.
            while batches.receive() != nil {}
        }
    }

    private func read(_ batch: Batch, _ fetcher: inout PageFetcher) {
        do {
            try control.check()
            try fetcher.fetch(batch.requests[...]) { corruption, request in
                // A page of a forgotten checkpoint may just have been pruned.
                guard try repository.location(of: request.digest) != nil else { return }
                findings.note(corruption, request.digest, storedBy: batch.checkpoint)
            } deliver: { _, _, _ in
            }
            outcome.withLock { $0.pageCount += batch.requests.count }
        } catch {
            let wrapped = repository.indexFailure(error)
            outcome.withLock { $0.failure = $0.failure ?? wrapped }
        }
    }
}
