import CheckpointFormat
import CheckpointStore
import GuestModel

/// One worker's tools: turns batches of pages into page frames in the packs.
///
/// Everything that is needed a page lives here and is used again: what is allocated is a table for
/// each page frame, and a handful for each batch of 256 pages.
struct BatchEncoder: ~Copyable {
    /// Pages that are read at once and classified while they are in the caches: 256 KiB.
    private static let piecePageCount = 64

    private var compressor: Compressor
    private var records = RecordWriter()
    private var frames: [UInt64] = []
    private var classifier = PageClassifier()
    private var candidates: [PageDigest] = []
    private var candidatePositions: [Int] = []
    private var blocks: [PageBlockSource] = []
    private var pending: [PendingRecord] = []
    private var stored: [(range: PageRange, ordinal: UInt32)] = []

    init() {
        compressor = Compressor(level: .standard)
    }

    /// Compares a batch with the draft, and stores what is new.
    mutating func encode(
        _ batch: StagedBatch, level: CompressionLevel, draft: CheckpointDraft,
        transaction: CheckpointTransaction
    ) throws(CaptureError) {
        if batch.isZero {
            for run in batch.runs { draft.updateZeros(run) }
            return
        }
        do {
            try classify(batch)
            try storeChanged(
                UnsafeRawBufferPointer(batch.slot.bytes), level: level, draft: draft,
                transaction: transaction)
        } catch {
            throw CaptureError(wrapping: error)
        }
    }

    /// Finds out what the pages of a batch hold, and reads them before if that is still to be done.
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

    /// Compares classified pages with the draft, and stores what is new.
    private mutating func storeChanged(
        _ pages: UnsafeRawBufferPointer, level: CompressionLevel, draft: CheckpointDraft,
        transaction: CheckpointTransaction
    ) throws(RepositoryError) {
        compressor.level = level
        var changed: [Int] = []
        changed.reserveCapacity(frames.count)
        draft.update(frames.span, classifier.contents.span, changed: &changed)
        candidates.removeAll(keepingCapacity: true)
        candidatePositions.removeAll(keepingCapacity: true)
        for position in changed {
            guard case .present(let digest) = classifier.contents[position] else { continue }
            candidates.append(digest)
            candidatePositions.append(position)
        }
        guard !candidates.isEmpty else { return }
        var mustStore: [Int] = []
        mustStore.reserveCapacity(candidates.count)
        try transaction.claim(candidates.span, mustStore: &mustStore)
        guard !mustStore.isEmpty else { return }
        for index in mustStore.indices { mustStore[index] = candidatePositions[mustStore[index]] }
        // Claims come with unknown digests first; frames want frame order.
        mustStore.sort()
        try store(pages, mustStore, draft: draft, transaction: transaction)
    }

    /// Encodes and appends the pages at some positions, ascending.
    private mutating func store(
        _ pages: UnsafeRawBufferPointer, _ mustStore: [Int], draft: CheckpointDraft,
        transaction: CheckpointTransaction
    ) throws(RepositoryError) {
        let firstOrdinal = try transaction.reserveOrdinals(mustStore.count)
        records.removeAll()
        pending.removeAll(keepingCapacity: true)
        stored.removeAll(keepingCapacity: true)
        var blockPages = 0
        var ordinal = firstOrdinal
        var index = 0
        while index < mustStore.count {
            let position = mustStore[index]
            var count = 1
            // Pages adjacent in the guest share a block: they are alike and change together.
            while index + count < mustStore.count, blockPages + count < PageFrameEncoder.pageCount,
                mustStore[index + count] == position + count,
                frames[position + count] == frames[position] + UInt64(count)
            { count += 1 }
            let bytes = pages[position * Page.byteCount..<(position + count) * Page.byteCount]
            blocks.append(PageBlockSource(bytes: UnsafeRawBufferPointer(rebasing: bytes)))
            let range = PageRange(first: PageFrameNumber(frames[position]), count: count)
            stored.append((range, ordinal))
            ordinal += UInt32(count)
            blockPages += count
            index += count
            if blockPages == PageFrameEncoder.pageCount || index == mustStore.count {
                encodeFrame(firstOrdinal: ordinal - UInt32(blockPages), transaction.number)
                blockPages = 0
            }
        }
        try records.withUnsafeBytes { (bytes) throws(RepositoryError) in
            try transaction.append(pending, of: bytes)
        }
        draft.recordStored(stored)
    }

    /// Makes a page frame of the blocks.
    private mutating func encodeFrame(firstOrdinal: UInt32, _ transaction: UInt64) {
        let start = records.count
        let table = PageFrameEncoder.append(
            blocks, firstOrdinal: firstOrdinal, transaction: transaction, compressor: compressor,
            to: &records)
        pending.append(
            PendingRecord(
                range: start..<records.count, type: .pageFrame, transaction: transaction,
                frame: table))
        blocks.removeAll(keepingCapacity: true)
    }
}
