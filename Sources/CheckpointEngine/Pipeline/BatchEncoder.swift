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
        let piecePageCount = batch.filling == nil ? frames.count : BatchEncoder.piecePageCount
        var first = 0
        while first < frames.count {
            let count = min(piecePageCount, frames.count - first)
            let range = first * Page.byteCount..<(first + count) * Page.byteCount
            let piece = UnsafeMutableRawBufferPointer(rebasing: batch.slot.bytes[range])
            let pages = PageRange(first: PageFrameNumber(frames[first]), count: count)
            try batch.filling?(pages, piece)
            classifier.append(UnsafeRawBufferPointer(piece))
            first += count
        }
    }
}
