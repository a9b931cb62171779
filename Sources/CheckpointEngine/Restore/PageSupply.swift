import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

/// The destination of a checkpoint's pages.
///
/// Called from several threads at once, never for the same frame.
protocol PageTarget: Sendable {
    /// Memory in which pages of consecutive frames may be decompressed and verified; nil if there
    /// is none.
    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer?

    /// Takes verified pages; those that were decompressed in place are already there.
    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) throws
}

/// Reads the pages of a checkpoint on all processors, verified.
struct PageSupply: Sendable {
    /// Pages whose addresses are sorted at once: 4 GiB of guest, 60 MB of memory.
    static let windowPageCount = 1 << 20

    // A thread is worth its cost from a few thousand pages on. Threads take one share at a time:
    // pages whose blocks are otherwise out of date take several times as long as others, and are
    // adjacent.
    private static let threadPageCountMin = 2048
    private static let sharePageCount = 1024

    let repository: Repository
    let checkpoint: Checkpoint
    /// The volume to which the frames belong; their numbers are those within it.
    var volume = VolumeNumber.memory
    var control = WorkControl.none

    /// Reads pages, and passes them on in runs.
    ///
    /// When it throws, memory that `target` returned holds verified pages, zeros, or its previous
    /// bytes.
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
        let threadCount = min(
            Threads.processorCount, 1 + requests.count / PageSupply.threadPageCountMin)
        let results = Mutex<(bytes: Int, failure: (any Error)?)>((0, nil))
        let nextShare = Atomic(0)
        let (repository, id, volume, control) = (repository, checkpoint.id, volume, control)
        let disk = volume == .memory ? nil : checkpoint.manifest.volume(volume)?.name
        Threads.concurrently(threadCount) { _ in
            do {
                var fetcher = try PageFetcher(repository)
                while results.withLock({ $0.failure == nil }) {
                    try control.check()
                    let share = nextShare.add(1, ordering: .relaxed).oldValue
                    let start = PageSupply.start(ofShare: share, requests)
                    let end = PageSupply.start(ofShare: share + 1, requests)
                    guard start < requests.count else { break }
                    try fetcher.fetch(
                        requests[start..<end], place: target.place,
                        damaged: { corruption, request in
                            throw RepositoryError(corruption).attributed(
                                to: id, frame: PageFrameNumber(request.frame.rawValue, in: volume),
                                disk: disk)
                        }, deliver: target.take)
                }
                let bytes = fetcher.bytesRead
                results.withLock { $0.bytes += bytes }
            } catch {
                results.withLock { $0.failure = $0.failure ?? error }
            }
        }
        let (bytes, failure) = results.withLock {
            ($0.bytes, $0.failure.map { $0 as any Error & Sendable })
        }
        if let failure { throw failure }
        return bytes
    }

    /// The first request of a share: no block is in two of them.
    private static func start(ofShare share: Int, _ requests: [PageRequest]) -> Int {
        var start = share * sharePageCount
        guard start > 0 else { return 0 }
        while start < requests.count,
            requests[start].location.place == requests[start - 1].location.place
        { start += 1 }
        return min(start, requests.count)
    }
}
