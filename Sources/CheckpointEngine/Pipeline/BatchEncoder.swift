import CheckpointFormat
import CheckpointStore
import GuestModel
import PackStore

/// One worker's tools: determines the contents of a batch's pages, and hands them to the store.
///
/// Everything that each page needs is here and is reused.
struct BatchEncoder: ~Copyable {
    /// Pages that are read together and classified while they are in the caches: 256 KiB.
    private static let piecePageCount = 64

    private var storer: PageStorer
    private var frames: [UInt64] = []
    private var classifier = PageClassifier()

    /// Fails if there is no memory for a compressor.
    init() throws(CheckpointError) {
        do throws(RepositoryError) {
            storer = try PageStorer()
        } catch {
            throw CheckpointError(error)
        }
    }

    /// Compares a batch with the draft, and stores what is new.
    mutating func encode(
        _ batch: StagedBatch, level: CompressionLevel, draft: CheckpointDraft,
        transaction: CheckpointTransaction
    ) throws(CheckpointError) {
        if batch.isZero {
            for run in batch.runs { draft.updateZeros(run) }
            return
        }
        do {
            try classify(batch)
            // Spans would borrow all of `self`; the arrays are shared, not copied.
            let (frames, contents) = (frames, classifier.contents)
            try storer.store(
                UnsafeRawBufferPointer(batch.slot.bytes), of: frames.span,
                holding: contents.span, level: level, draft: draft, transaction: transaction)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// Determines the contents of a batch's pages, after reading them if that is still to be done.
    private mutating func classify(_ batch: StagedBatch) throws {
        frames.removeAll(keepingCapacity: true)
        for run in batch.runs { frames.append(contentsOf: run.frames) }
        classifier.removeAll()
        // A disk has no blocks but those that are not zero.
        let isDisk = batch.runs.first.map { $0.volume != .memory } ?? false
        classifier.zero = isDisk ? .absent : .zero
        guard let filling = batch.filling else {
            let bytes = batch.slot.bytes[..<(frames.count * Page.byteCount)]
            return classifier.append(UnsafeRawBufferPointer(rebasing: bytes))
        }
        var start = 0
        for run in batch.runs {
            var first = 0
            while first < run.count {
                let count = min(BatchEncoder.piecePageCount, run.count - first)
                let end = start + count * Page.byteCount
                let piece = UnsafeMutableRawBufferPointer(rebasing: batch.slot.bytes[start..<end])
                let number = PageFrameNumber(run.first.rawValue + UInt64(first))
                try filling(PageRange(first: number, count: count), piece)
                classifier.append(UnsafeRawBufferPointer(piece))
                first += count
                start = end
            }
        }
    }
}
