public import CheckpointStore
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
        var options = options
        // Nobody stands still meanwhile: what the workers have before them stays in the caches.
        options.ringByteCount = min(
            options.ringByteCount, 8 * max(1, options.workerCount) * StagingRing.slotByteCount)
        let stream = try StreamImport(into: repository, lineage: lineage, options: options)
        do {
            try stream.check(label: label)
            try stageAll(stream, progress, read)
        } catch {
            throw stream.abandon(error)
        }
        return try stream.publish(label: label)
    }

    /// Reads the image into batches.
    private static func stageAll(
        _ stream: StreamImport, _ progress: ((Int) -> Void)?,
        _ read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws {
        var pageCount = 0
        var isAtEnd = false
        while !isAtEnd {
            let count = try stream.submit { slot in
                var filled = 0
                while filled < slot.count {
                    let count = try read(UnsafeMutableRawBufferPointer(rebasing: slot[filled...]))
                    if count == 0 { break }
                    filled += count
                }
                isAtEnd = filled < slot.count
                guard filled % Page.byteCount == 0 else {
                    let total = pageCount * Page.byteCount + filled
                    throw CaptureError(
                        .sizeMismatch,
                        "the image has \(total) bytes, which is no multiple of "
                            + "\(Page.byteCount); it is cut short or no raw memory image")
                }
                guard filled > 0 else { return nil }
                return PageRange(
                    first: PageFrameNumber(UInt64(pageCount)), count: filled / Page.byteCount)
            }
            pageCount += count
            if let parent = stream.parent, pageCount > parent.pageCount {
                throw mismatch(parent, "is larger")
            }
            if count > 0 { progress?(pageCount * Page.byteCount) }
        }
        guard pageCount > 0 else {
            throw CaptureError(.sizeMismatch, "the image is empty; there is nothing to take in")
        }
        if let parent = stream.parent, pageCount < parent.pageCount {
            throw mismatch(parent, "is smaller")
        }
    }

    private static func mismatch(_ parent: Checkpoint, _ how: String) -> CaptureError {
        CaptureError(
            .sizeMismatch,
            "the image \(how) than the \(parent.pageCount * Page.byteCount) bytes of lineage "
                + "'\(parent.lineage)'; name another lineage for another guest")
    }
}
