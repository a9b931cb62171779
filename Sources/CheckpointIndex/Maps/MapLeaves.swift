import CheckpointFormat
import GuestModel

/// The leaves of a page map: the content of each frame, and which leaves changed.
///
/// A struct, so that setting a batch of frames is one access to it. Its owner frees it.
struct MapLeaves {
    private static let leavesPerChunk = 512
    private static let noSlot = UInt32.max

    private var slots: [UInt32] = []
    private(set) var present: [UInt64] = []
    private(set) var zero: [UInt64] = []
    private var chunks: [UnsafeMutablePointer<PageDigest>] = []
    private var slotCount: UInt32 = 0
    /// Leaves whose nodes are stale.
    var dirty = DirtyBitmap()
    /// The frames that exist, as runs; nil if they changed since they were last computed.
    private var knownLayout: GuestLayout?
    /// Number of frames that exist.
    private(set) var pageCount = 0
    /// Number of frames that exist and are zero.
    private(set) var zeroPageCount = 0

    /// Frees its memory; it must not be used afterwards.
    func deallocate() {
        for chunk in chunks { chunk.deallocate() }
    }

    /// One more than the highest frame that exists.
    var frameEnd: UInt64 {
        for leaf in present.indices.reversed() {
            let mask = present[leaf] | zero[leaf]
            if mask != 0 { return UInt64(leaf) * 64 + 64 - UInt64(mask.leadingZeroBitCount) }
        }
        return 0
    }

    /// The frames that exist.
    ///
    /// O(leaves) if they changed since the last call.
    var layout: GuestLayout {
        mutating get {
            if let knownLayout { return knownLayout }
            var frames = DirtyBitmap()
            let masks = zip(present, zero).map { $0 | $1 }
            frames.formUnion(words: masks.span)
            let layout = GuestLayout(runs: frames.runs())
            knownLayout = layout
            return layout
        }
    }

    /// The content of a frame.
    subscript(frame: PageFrameNumber) -> PageContent {
        let leaf = Int(frame.rawValue / 64)
        let bit = UInt64(1) << (frame.rawValue % 64)
        guard leaf < present.count else { return .absent }
        if present[leaf] & bit != 0 { return .present(digest(leaf, Int(frame.rawValue % 64))) }
        return zero[leaf] & bit != 0 ? .zero : .absent
    }

    /// Sets the content of a frame.
    ///
    /// - Returns: true if the content changed.
    @discardableResult
    mutating func set(_ frame: PageFrameNumber, _ content: PageContent) -> Bool {
        let leaf = Int(frame.rawValue / 64)
        let index = Int(frame.rawValue % 64)
        let bit = UInt64(1) << UInt64(index)
        if leaf >= present.count {
            if content == .absent { return false }
            grow(to: leaf + 1)
        }
        let wasZero = zero[leaf] & bit != 0
        let existed = wasZero || present[leaf] & bit != 0
        switch content {
        case .absent:
            guard existed else { return false }
            present[leaf] &= ~bit
            zero[leaf] &= ~bit
        case .zero:
            guard !wasZero else { return false }
            present[leaf] &= ~bit
            zero[leaf] |= bit
        case .present(let digest):
            let place = block(leaf) + index
            if present[leaf] & bit != 0 && place.pointee == digest { return false }
            place.pointee = digest
            present[leaf] |= bit
            zero[leaf] &= ~bit
        }
        let exists = content != .absent
        if exists != existed { knownLayout = nil }
        pageCount += (exists ? 1 : 0) - (existed ? 1 : 0)
        zeroPageCount += (content == .zero ? 1 : 0) - (wasZero ? 1 : 0)
        dirty.insert(PageFrameNumber(UInt64(leaf)))
        return true
    }

    /// Sets the contents of frames, in order.
    mutating func set(
        _ frames: Span<UInt64>, _ contents: Span<PageContent>,
        changed: (Int, PageContent) -> Void
    ) {
        for position in frames.indices {
            let frame = PageFrameNumber(frames[position])
            let old = self[frame]
            if set(frame, contents[position]) { changed(position, old) }
        }
    }

    /// Sets frames to zero, leaf by leaf: a hole costs only its leaves and what it replaces.
    ///
    /// - Parameters:
    ///   - replaced: called with each frame that had a digest, and that digest.
    ///   - changed: called with the number of each leaf in which frames were not zero, and their
    ///     mask.
    mutating func setZero(
        _ range: PageRange, replaced: (PageFrameNumber, PageDigest) -> Void = { _, _ in },
        changed: (Int, UInt64) -> Void
    ) {
        grow(to: Int((range.end.rawValue + 63) / 64))
        DirtyBitmap.forEachWord(of: range) { leaf, mask in
            let fresh = mask & ~zero[leaf]
            guard fresh != 0 else { return }
            var held = fresh & present[leaf]
            if held != fresh { knownLayout = nil }
            pageCount += (fresh & ~held).nonzeroBitCount
            zeroPageCount += fresh.nonzeroBitCount
            while held != 0 {
                let index = held.trailingZeroBitCount
                replaced(
                    PageFrameNumber(UInt64(leaf) * 64 + UInt64(index)), digest(leaf, index))
                held &= held - 1
            }
            present[leaf] &= ~fresh
            zero[leaf] |= fresh
            dirty.insert(PageFrameNumber(UInt64(leaf)))
            changed(leaf, fresh)
        }
    }

    /// Number of consecutive zero frames from a frame on, at most `limit`.
    ///
    /// O(leaves in the result).
    func zeroCount(from first: PageFrameNumber, atMost limit: Int) -> Int {
        var count = 0
        while count < limit {
            let frame = first.rawValue + UInt64(count)
            let (leaf, index) = (Int(frame / 64), frame % 64)
            guard leaf < zero.count else { break }
            let found = (~(zero[leaf] >> index)).trailingZeroBitCount
            count += found
            if found < 64 - Int(index) { break }
        }
        return min(count, limit)
    }

    /// Makes exactly the frames of a layout exist; new ones are zero until set.
    ///
    /// O(leaves); O(runs) if nothing changes.
    ///
    /// - Returns: the frames that changed.
    mutating func adopt(_ layout: GuestLayout) -> DirtyBitmap {
        guard layout != self.layout else { return DirtyBitmap() }
        let wanted = DirtyBitmap(layout)
        var changed = DirtyBitmap()
        knownLayout = nil
        grow(to: wanted.words.count)
        for leaf in present.indices {
            let want = leaf < wanted.words.count ? wanted.words[leaf] : 0
            let have = present[leaf] | zero[leaf]
            guard want != have else { continue }
            pageCount += want.nonzeroBitCount - have.nonzeroBitCount
            zeroPageCount -= zero[leaf].nonzeroBitCount
            present[leaf] &= want
            zero[leaf] = zero[leaf] & want | want & ~have
            zeroPageCount += zero[leaf].nonzeroBitCount
            dirty.insert(PageFrameNumber(UInt64(leaf)))
            changed.insert(wordIndex: leaf, mask: want ^ have)
        }
        return changed
    }

    // MARK: - Blocks of digests

    private mutating func grow(to leafCount: Int) {
        guard leafCount > present.count else { return }
        let added = leafCount - present.count
        present.append(contentsOf: repeatElement(0, count: added))
        zero.append(contentsOf: repeatElement(0, count: added))
        slots.append(contentsOf: repeatElement(MapLeaves.noSlot, count: added))
    }

    mutating func block(_ leaf: Int) -> UnsafeMutablePointer<PageDigest> {
        if slots[leaf] == MapLeaves.noSlot {
            if Int(slotCount) == chunks.count * MapLeaves.leavesPerChunk {
                let count = MapLeaves.leavesPerChunk * 64
                let chunk = UnsafeMutablePointer<PageDigest>.allocate(capacity: count)
                chunk.initialize(repeating: .none, count: count)
                chunks.append(chunk)
            }
            slots[leaf] = slotCount
            slotCount += 1
        }
        let slot = Int(slots[leaf])
        return chunks[slot / MapLeaves.leavesPerChunk] + slot % MapLeaves.leavesPerChunk * 64
    }

    private func digest(_ leaf: Int, _ index: Int) -> PageDigest {
        let slot = Int(slots[leaf])
        precondition(slots[leaf] != MapLeaves.noSlot, "a present frame has a digest")
        return chunks[slot / MapLeaves.leavesPerChunk][
            slot % MapLeaves.leavesPerChunk * 64 + index]
    }
}
