import CheckpointFormat
import CheckpointStore
import GuestModel

/// One worker's tools: turns batches of pages into page frames in the packs.
///
/// Everything that is needed a page lives here and is used again: the work allocates a handful of
/// times a batch of 256 pages, never a page.
struct BatchEncoder: ~Copyable {
    private var compressor: Compressor
    private var records = RecordWriter()
    private var frames: [UInt64] = []
    private var classifier = PageClassifier()
    private var candidates: [PageDigest] = []
    private var candidatePositions: [Int] = []

    init() {
        compressor = Compressor(level: .standard)
    }

    /// Compares a batch with the draft, and stores what is new.
    mutating func encode(
        _ batch: StagedBatch, level: CompressionLevel, draft: CheckpointDraft,
        transaction: CheckpointTransaction
    ) throws(RepositoryError) {
        compressor.level = level
        let pages = UnsafeRawBufferPointer(batch.slot.bytes)
        frames.removeAll(keepingCapacity: true)
        for run in batch.runs { frames.append(contentsOf: run.frames) }
        classifier.classify(
            UnsafeRawBufferPointer(rebasing: pages[..<(frames.count * Page.byteCount)]))
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
        var pending: [PendingRecord] = []
        var stored: [(range: PageRange, ordinal: UInt32)] = []
        var blocks: [PageBlockSource] = []
        var blockPages = 0
        var ordinal = firstOrdinal
        var frameOrdinal = firstOrdinal
        func flush(_ records: inout RecordWriter) {
            guard !blocks.isEmpty else { return }
            let start = records.bytes.count
            let table = PageFrameEncoder.append(
                blocks, firstOrdinal: frameOrdinal, transaction: transaction.number,
                compressor: compressor, to: &records)
            pending.append(
                PendingRecord(
                    range: start..<records.bytes.count, type: .pageFrame,
                    transaction: transaction.number, frame: table))
            blocks.removeAll(keepingCapacity: true)
            blockPages = 0
            frameOrdinal = ordinal
        }
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
            if blockPages == PageFrameEncoder.pageCount { flush(&records) }
        }
        flush(&records)
        try transaction.append(pending, of: records.bytes)
        for (range, ordinal) in stored { draft.recordStored(range, firstOrdinal: ordinal) }
    }
}
