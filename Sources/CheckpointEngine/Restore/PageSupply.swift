import CheckpointFormat
import CheckpointStore
import GuestModel
import Synchronization

/// Where pages of a checkpoint go.
///
/// Called from several threads at once, never for the same frame.
protocol PageTarget: Sendable {
    /// Memory that pages of consecutive frames may be unpacked in, and are verified in; nil if
    /// there is none.
    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer?

    /// Takes verified pages; those that were unpacked in their place are there already.
    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) throws
}

/// Reads the pages of a checkpoint on all processors, verified.
struct PageSupply: Sendable {
    /// Pages whose places are sorted at once: 4 GiB of guest, 60 MB of memory.
    static let windowPageCount = 1 << 20

    let repository: Repository
    let checkpoint: Checkpoint

    /// Reads pages, and hands them on in runs.
    ///
    /// When it throws, memory that `target` gave holds verified pages, zeros, or what it held.
    ///
    /// - Returns: bytes read from packs.
    func read(
        _ pages: [(frame: PageFrameNumber, digest: PageDigest)],
        into target: some PageTarget
    ) throws -> Int {
        let requests: [PageRequest]
        do {
            requests = try repository.locate(pages)
        } catch {
            throw error.attributed(to: checkpoint.id)
        }
        guard !requests.isEmpty else { return 0 }
        // A few thousand pages keep a processor busy long enough to be worth a thread.
        let threadCount = min(Threads.processorCount, 1 + requests.count / 2048)
        let results = Mutex<(bytes: Int, failure: (any Error)?)>((0, nil))
        let (repository, id) = (repository, checkpoint.id)
        Threads.concurrently(threadCount) { thread in
            let start = requests.count * thread / threadCount
            let end = requests.count * (thread + 1) / threadCount
            var fetcher = PageFetcher(repository)
            do {
                try fetcher.fetch(
                    requests[start..<end], place: target.place,
                    damaged: { corruption, request in
                        throw RepositoryError(corruption).attributed(to: id, frame: request.frame)
                    }, deliver: target.take)
            } catch {
                results.withLock { $0.failure = $0.failure ?? error }
            }
            let bytes = fetcher.bytesRead
            results.withLock { $0.bytes += bytes }
        }
        let (bytes, failure) = results.withLock {
            ($0.bytes, $0.failure.map { $0 as any Error & Sendable })
        }
        if let failure { throw failure }
        return bytes
    }
}
