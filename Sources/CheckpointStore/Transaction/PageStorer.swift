package import CheckpointFormat
package import GuestModel
package import PackStore

/// Stores the pages of a checkpoint: skips unchanged pages and those already in the repository, and
/// groups, compresses and appends the rest.
///
/// Each instance belongs to one thread. Its buffers are reused: it allocates only a table per page
/// group, and a few arrays per batch of pages.
package struct PageStorer: ~Copyable {
    private var compressor: Compressor
    private var records = RecordWriter()
    private var changed: [Int] = []
    private var candidates: [PageDigest] = []
    private var candidatePositions: [Int] = []
    private var blocks: [PageBlockSource] = []
    private var pending: [PendingRecord] = []
    private var stored: [(range: PageRange, ordinal: UInt32)] = []

    /// Fails if there is no memory for a compressor.
    package init() throws(RepositoryError) {
        compressor = try Compressor.allocate(level: .standard)
    }

    /// Adds pages to a draft, and stores those whose content is new to the repository.
    ///
    /// Blocks for the write. Stored pages keep the order of their frames.
    ///
    /// - Parameters:
    ///   - pages: the bytes of all pages, consecutively; those of zero pages are not read.
    ///   - frames: the frame of each page, ascending.
    ///   - contents: the content of each page: its digest, or zero.
    ///   - level: how hard to compress.
    package mutating func store(
        _ pages: UnsafeRawBufferPointer, of frames: Span<UInt64>,
        holding contents: Span<PageContent>,
        level: CompressionLevel, draft: CheckpointDraft, transaction: CheckpointTransaction
    ) throws(RepositoryError) {
        compressor.level = level
        changed.removeAll(keepingCapacity: true)
        draft.update(frames, contents, changed: &changed)
        candidates.removeAll(keepingCapacity: true)
        candidatePositions.removeAll(keepingCapacity: true)
        for position in changed {
            guard case .present(let digest) = contents[position] else { continue }
            candidates.append(digest)
            candidatePositions.append(position)
        }
        guard !candidates.isEmpty else { return }
        var mustStore: [Int] = []
        mustStore.reserveCapacity(candidates.count)
        try transaction.claim(candidates.span, mustStore: &mustStore)
        guard !mustStore.isEmpty else { return }
        for index in mustStore.indices { mustStore[index] = candidatePositions[mustStore[index]] }
        // Groups keep the order of frames, whatever the order of claims.
        mustStore.sort()
        try append(mustStore, of: pages, frames, draft: draft, transaction: transaction)
    }

    /// Groups, compresses and appends the pages at the given indexes, which ascend.
    private mutating func append(
        _ positions: [Int], of pages: UnsafeRawBufferPointer, _ frames: Span<UInt64>,
        draft: CheckpointDraft, transaction: CheckpointTransaction
    ) throws(RepositoryError) {
        var ordinal = try transaction.reserveOrdinals(positions.count)
        records.removeAll()
        pending.removeAll(keepingCapacity: true)
        stored.removeAll(keepingCapacity: true)
        var groupPageCount = 0
        var index = 0
        while index < positions.count {
            let position = positions[index]
            var count = 1
            // Pages adjacent in the guest share a block: they are similar and change together.
            while index + count < positions.count,
                groupPageCount + count < PageGroupEncoder.pageCount,
                positions[index + count] == position + count,
                frames[position + count] == frames[position] + UInt64(count)
            { count += 1 }
            let bytes = pages[position * Page.byteCount..<(position + count) * Page.byteCount]
            blocks.append(PageBlockSource(bytes: UnsafeRawBufferPointer(rebasing: bytes)))
            let range = PageRange(first: PageFrameNumber(frames[position]), count: count)
            stored.append((range, ordinal))
            ordinal += UInt32(count)
            groupPageCount += count
            index += count
            if groupPageCount == PageGroupEncoder.pageCount || index == positions.count {
                encodeGroup(firstOrdinal: ordinal - UInt32(groupPageCount), transaction.number)
                groupPageCount = 0
            }
        }
        try records.withUnsafeBytes { (bytes) throws(RepositoryError) in
            try transaction.append(pending, of: bytes)
        }
        // Only now: the draft must not refer to a page that an error kept out of the packs.
        draft.recordStored(stored)
    }

    /// Encodes the blocks as a page group.
    private mutating func encodeGroup(firstOrdinal: UInt32, _ transaction: UInt64) {
        let start = records.count
        let table = PageGroupEncoder.append(
            blocks, firstOrdinal: firstOrdinal, transaction: transaction, compressor: compressor,
            to: &records)
        pending.append(
            PendingRecord(
                range: start..<records.count, type: .pageGroup, transaction: transaction,
                frame: table))
        blocks.removeAll(keepingCapacity: true)
    }
}
