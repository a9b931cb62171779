import CheckpointFormat
import GuestModel
import PackStore

/// Divides frames of a page map into parts, each of one volume.
struct MapBuilder {
    private var runs: [MapRun] = []
    private var digests: [PageDigest] = []
    private var frameCount = 0
    private let emit: (MapPart) throws(RepositoryError) -> Void

    init(emit: @escaping (MapPart) throws(RepositoryError) -> Void) {
        self.emit = emit
    }

    /// Adds one frame; frames must ascend.
    mutating func append(
        _ frame: PageFrameNumber, _ content: PageContent, ordinal: UInt32?
    ) throws(RepositoryError) {
        if isFull(for: frame) { try finish() }
        frameCount += 1
        let kind: MapRun.Content
        switch content {
        case .absent: kind = .absent
        case .zero: kind = .zero
        case .present(let digest):
            kind = ordinal == nil ? .storedBefore : .storedHere
            digests.append(digest)
        }
        extend(PageRange(first: frame, count: 1), kind, ordinal)
    }

    /// Adds frames without digests, at the cost of one frame per part that contains some of them.
    mutating func append(
        _ range: PageRange, _ content: MapRun.Content
    ) throws(RepositoryError) {
        var first = range.first.rawValue
        while first < range.end.rawValue {
            if isFull(for: PageFrameNumber(first)) { try finish() }
            let count = min(Int(range.end.rawValue - first), MapPart.frameCountMax - frameCount)
            frameCount += count
            extend(PageRange(first: PageFrameNumber(first), count: count), content, nil)
            first += UInt64(count)
        }
    }

    /// True if a frame must go to the next part.
    private func isFull(for frame: PageFrameNumber) -> Bool {
        guard let last = runs.last else { return false }
        return frameCount == MapPart.frameCountMax || last.range.volume != frame.volume
    }

    /// Appends frames to the last run if they continue it, otherwise starts a new run.
    private mutating func extend(
        _ range: PageRange, _ content: MapRun.Content, _ ordinal: UInt32?
    ) {
        if let last = runs.last, last.content == content, last.range.end == range.first,
            ordinal == nil || UInt64(last.firstOrdinal) + UInt64(last.range.count) == ordinal ?? 0
        {
            runs[runs.count - 1] = MapRun(
                range: PageRange(first: last.range.first, count: last.range.count + range.count),
                content: content, firstOrdinal: last.firstOrdinal)
        } else {
            runs.append(MapRun(range: range, content: content, firstOrdinal: ordinal ?? 0))
        }
    }

    /// Emits what was added since the last part.
    mutating func finish() throws(RepositoryError) {
        guard !runs.isEmpty else { return }
        try emit(MapPart(runs: runs, digests: digests))
        runs.removeAll(keepingCapacity: true)
        digests.removeAll(keepingCapacity: true)
        frameCount = 0
    }
}
