public import CheckpointStore
import Glibc
import GuestModel

/// Takes images in as checkpoints.
public enum ImageImport {
    /// Takes a raw memory image in, read from its beginning to its end.
    ///
    /// Every page is compared with the lineage's newest checkpoint; only pages that differ are
    /// stored. Memory: the page map and the ring.
    ///
    /// - Parameters:
    ///   - repository: opened for writing.
    ///   - lineage: the guest's history.
    ///   - label: a name for this one checkpoint.
    ///   - options: sizes and limits.
    ///   - progress: called with bytes read so far.
    ///   - read: fills a buffer from where it stopped; returns how many bytes, 0 at the end.
    public static func run(
        into repository: Repository, lineage: String, label: String? = nil,
        options: CaptureOptions = CaptureOptions(), progress: ((_ byteCount: Int) -> Void)? = nil,
        read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws(CaptureError) -> Checkpoint {
        do {
            try Names.check(lineage, kind: "lineage")
            if let label { try Names.check(label, kind: "label") }
            let parent = try repository.newest(ofLineage: lineage)
            let pipeline = CheckpointPipeline(
                repository: repository, parent: parent, ringByteCount: options.ringByteCount,
                level: options.compression, workerCount: max(1, options.workerCount))
            defer { pipeline.close() }
            let job = pipeline.begin { _, _ in }
            do {
                job.move { machine in
                    machine.begin()
                    machine.pause()
                }
                let pageCount = try stageAll(job, pipeline.ring, parent, progress, read)
                job.move { machine in
                    machine.copied()
                    machine.resume()
                }
                job.complete(
                    CaptureJob.Completion(
                        layout: GuestLayout(pageCount: pageCount), state: .empty,
                        facts: CheckpointFacts(
                            lineage: lineage, label: label,
                            timeNanoseconds: Int64(WallClock.nanoseconds), comparedAll: true)))
            } catch {
                job.abort(CaptureError(wrapping: error))
            }
            return try job.wait()
        } catch {
            throw CaptureError(wrapping: error)
        }
    }

    /// Reads the image into batches.
    ///
    /// - Returns: its pages.
    private static func stageAll(
        _ job: CaptureJob, _ ring: StagingRing, _ parent: Checkpoint?,
        _ progress: ((Int) -> Void)?, _ read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws -> Int {
        var pageCount = 0
        while true {
            if let failure = job.failure { throw failure }
            let slot = ring.take()
            var filled = 0
            while filled < StagingRing.slotByteCount {
                let rest = UnsafeMutableRawBufferPointer(rebasing: slot.bytes[filled...])
                let count = try read(rest)
                if count == 0 { break }
                filled += count
            }
            guard filled % Page.byteCount == 0 else {
                let total = pageCount * Page.byteCount + filled
                throw CaptureError(
                    .sizeMismatch,
                    "the image has \(total) bytes, which is no multiple of \(Page.byteCount); it "
                        + "is cut short or no raw memory image")
            }
            if filled > 0 {
                let range = PageRange(
                    first: PageFrameNumber(UInt64(pageCount)), count: filled / Page.byteCount)
                pageCount += range.count
                if let parent, pageCount > parent.pageCount { throw mismatch(parent, "is larger") }
                job.submit(StagedBatch(slot: slot, runs: [range]))
                progress?(pageCount * Page.byteCount)
            }
            if filled < StagingRing.slotByteCount { break }
        }
        guard pageCount > 0 else {
            throw CaptureError(.sizeMismatch, "the image is empty; there is nothing to take in")
        }
        if let parent, pageCount < parent.pageCount { throw mismatch(parent, "is smaller") }
        return pageCount
    }

    private static func mismatch(_ parent: Checkpoint, _ how: String) -> CaptureError {
        CaptureError(
            .sizeMismatch,
            "the image \(how) than the \(parent.pageCount * Page.byteCount) bytes of lineage "
                + "'\(parent.lineage)'; name another lineage for another guest")
    }
}
