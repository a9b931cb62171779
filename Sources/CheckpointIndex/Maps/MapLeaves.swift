import CheckpointFormat
import GuestModel
import PackStore

/// The leaves of a volume's page map: the content of each frame, and which leaves changed.
///
/// A struct, so that setting a batch of frames is one access to it. It has no copies.
struct MapLeaves {
    /// Leaves that are allocated together: 32,768 frames.
    static let leavesPerChunk = 512
    /// The slot of a leaf without digests.
    private static let noSlot: UInt32 = 0

    /// 512 leaves: masks, and where their digests are.
    private struct Chunk {
        let present: UnsafeMutablePointer<UInt64>
        let zero: UnsafeMutablePointer<UInt64>
        let slots: UnsafeMutablePointer<UInt32>

        init(_ memory: ScratchMemory) {
            present = memory.allocate(leavesPerChunk)
            zero = memory.allocate(leavesPerChunk)
            slots = memory.allocate(leavesPerChunk)
        }
    }

    private let memory: ScratchMemory
    /// Chunks without frames do not exist.
    private var chunks: [Chunk?] = []
    private var blocks: [UnsafeMutablePointer<PageDigest>] = []
    private var slotCount: UInt32 = 0
    /// Leaves whose nodes are stale.
    var dirty = DirtyBitmap()
    /// The frames that exist, as runs; nil if they changed since they were last computed.
    private var knownLayout: GuestLayout?
    /// Number of frames that exist.
    private(set) var pageCount = 0
    /// Number of frames that exist and are zero.
    private(set) var zeroPageCount = 0

    /// - Parameter memory: holds what it allocates.
    init(_ memory: ScratchMemory) { self.memory = memory }

    /// Leaves are below this number.
    var leafEnd: Int { chunks.count * MapLeaves.leavesPerChunk }

    /// The frames of a leaf that have a digest.
    func present(_ leaf: Int) -> UInt64 {
        chunk(of: leaf)?.present[leaf % MapLeaves.leavesPerChunk] ?? 0
    }

    /// The frames of a leaf that are zero.
    func zero(_ leaf: Int) -> UInt64 {
        chunk(of: leaf)?.zero[leaf % MapLeaves.leavesPerChunk] ?? 0
    }

    private func chunk(of leaf: Int) -> Chunk? {
        let number = leaf / MapLeaves.leavesPerChunk
        return number < chunks.count ? chunks[number] : nil
    }

    /// Calls `body` with each leaf that has frames, and the mask of those that exist.
    func forEachLeaf<E: Error>(_ body: (Int, UInt64) throws(E) -> Void) throws(E) {
        for (number, chunk) in chunks.enumerated() {
            guard let chunk else { continue }
            for index in 0..<MapLeaves.leavesPerChunk {
                let mask = chunk.present[index] | chunk.zero[index]
                if mask != 0 { try body(number * MapLeaves.leavesPerChunk + index, mask) }
            }
        }
    }

    /// One more than the highest frame that exists.
    var frameEnd: UInt64 {
        for (number, chunk) in chunks.enumerated().reversed() {
            guard let chunk else { continue }
            for index in (0..<MapLeaves.leavesPerChunk).reversed() {
                let mask = chunk.present[index] | chunk.zero[index]
                guard mask != 0 else { continue }
                let leaf = number * MapLeaves.leavesPerChunk + index
                return UInt64(leaf) * 64 + 64 - UInt64(mask.leadingZeroBitCount)
            }
        }
        return 0
    }

    /// The frames that exist.
    ///
    /// O(leaves) if they changed since the last call.
    var layout: GuestLayout {
        mutating get {
            if let knownLayout { return knownLayout }
            // Sparse: a disk may be large, and hold little.
            var frames = FrameSet()
            forEachLeaf { frames.insert(wordIndex: $0, mask: $1) }
            let layout = GuestLayout(runs: frames.runs())
            knownLayout = layout
            return layout
        }
    }

    /// The content of a frame.
    subscript(frame: PageFrameNumber) -> PageContent {
        let leaf = Int(frame.rawValue / 64)
        let bit = UInt64(1) << (frame.rawValue % 64)
        guard let chunk = chunk(of: leaf) else { return .absent }
        let place = leaf % MapLeaves.leavesPerChunk
        if chunk.present[place] & bit != 0 {
            return .present(digest(chunk, place, Int(frame.rawValue % 64)))
        }
        return chunk.zero[place] & bit != 0 ? .zero : .absent
    }

    /// Sets the content of a frame.
    ///
    /// - Returns: true if the content changed.
    @discardableResult
    mutating func set(_ frame: PageFrameNumber, _ content: PageContent) -> Bool {
        let leaf = Int(frame.rawValue / 64)
        let index = Int(frame.rawValue % 64)
        let bit = UInt64(1) << UInt64(index)
        if content == .absent, chunk(of: leaf) == nil { return false }
        let chunk = demand(leaf)
        let place = leaf % MapLeaves.leavesPerChunk
        let wasZero = chunk.zero[place] & bit != 0
        let wasPresent = chunk.present[place] & bit != 0
        let existed = wasZero || wasPresent
        switch content {
        case .absent:
            guard existed else { return false }
            chunk.present[place] &= ~bit
            chunk.zero[place] &= ~bit
        case .zero:
            guard !wasZero else { return false }
            chunk.present[place] &= ~bit
            chunk.zero[place] |= bit
        case .present(let digest):
            let memory = block(chunk, place) + index
            if wasPresent && memory.pointee == digest { return false }
            memory.pointee = digest
            chunk.present[place] |= bit
            chunk.zero[place] &= ~bit
        }
        let exists = content != .absent
        if exists != existed { knownLayout = nil }
        pageCount += (exists ? 1 : 0) - (existed ? 1 : 0)
        zeroPageCount += (content == .zero ? 1 : 0) - (wasZero ? 1 : 0)
        dirty.insert(PageFrameNumber(UInt64(leaf)))
        return true
    }

    /// Sets the contents of frames, in order.
    ///
    /// - Parameter base: subtracted from each frame number.
    mutating func set(
        _ frames: Span<UInt64>, from base: UInt64, _ contents: Span<PageContent>,
        changed: (Int, PageContent) -> Void
    ) {
        for position in frames.indices {
            let frame = PageFrameNumber(frames[position] - base)
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
        DirtyBitmap.forEachWord(of: range) { leaf, mask in
            let chunk = demand(leaf)
            let place = leaf % MapLeaves.leavesPerChunk
            let fresh = mask & ~chunk.zero[place]
            guard fresh != 0 else { return }
            var held = fresh & chunk.present[place]
            if held != fresh { knownLayout = nil }
            pageCount += (fresh & ~held).nonzeroBitCount
            zeroPageCount += fresh.nonzeroBitCount
            while held != 0 {
                let index = held.trailingZeroBitCount
                replaced(
                    PageFrameNumber(UInt64(leaf) * 64 + UInt64(index)),
                    digest(chunk, place, index))
                held &= held - 1
            }
            chunk.present[place] &= ~fresh
            chunk.zero[place] |= fresh
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
            let found = (~(zero(leaf) >> index)).trailingZeroBitCount
            count += found
            if found < 64 - Int(index) { break }
        }
        return min(count, limit)
    }

    /// Removes frames, leaf by leaf.
    ///
    /// O(chunks of the range), plus what is removed.
    ///
    /// - Parameters:
    ///   - replaced: called with each frame that had a digest, and that digest.
    ///   - changed: called with the number of each leaf in which frames existed, and their mask.
    mutating func remove(
        _ range: PageRange, replaced: (PageFrameNumber, PageDigest) -> Void,
        changed: (Int, UInt64) -> Void
    ) {
        var next = range.first.rawValue
        let end = min(range.end.rawValue, UInt64(leafEnd) * 64)
        while next < end {
            let leaf = Int(next / 64)
            guard let chunk = chunk(of: leaf) else {
                let chunkFrames = UInt64(MapLeaves.leavesPerChunk * 64)
                next = (next / chunkFrames + 1) * chunkFrames
                continue
            }
            let count = min(64 - next % 64, end - next)
            let mask = (count == 64 ? UInt64.max : (1 << count) - 1) << (next % 64)
            next += count
            let place = leaf % MapLeaves.leavesPerChunk
            let gone = mask & (chunk.present[place] | chunk.zero[place])
            guard gone != 0 else { continue }
            knownLayout = nil
            var held = gone & chunk.present[place]
            while held != 0 {
                let index = held.trailingZeroBitCount
                replaced(
                    PageFrameNumber(UInt64(leaf) * 64 + UInt64(index)),
                    digest(chunk, place, index))
                held &= held - 1
            }
            pageCount -= gone.nonzeroBitCount
            zeroPageCount -= (gone & chunk.zero[place]).nonzeroBitCount
            chunk.present[place] &= ~gone
            chunk.zero[place] &= ~gone
            dirty.insert(PageFrameNumber(UInt64(leaf)))
            changed(leaf, gone)
        }
    }

    /// Number of consecutive frames from one on that do not exist, at most `limit`.
    ///
    /// O(leaves in the result); a missing chunk is one step.
    func absentCount(from first: PageFrameNumber, atMost limit: Int) -> Int {
        var count = 0
        while count < limit {
            let frame = first.rawValue + UInt64(count)
            let (leaf, index) = (Int(frame / 64), frame % 64)
            guard let chunk = chunk(of: leaf) else {
                let chunkFrames = UInt64(MapLeaves.leavesPerChunk * 64)
                count += Int(chunkFrames - frame % chunkFrames)
                continue
            }
            let place = leaf % MapLeaves.leavesPerChunk
            let mask = (chunk.present[place] | chunk.zero[place]) >> index
            let found = min(mask.trailingZeroBitCount, 64 - Int(index))
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
        for leaf in 0..<max(leafEnd, wanted.words.count) {
            let want = leaf < wanted.words.count ? wanted.words[leaf] : 0
            let have = present(leaf) | zero(leaf)
            guard want != have else { continue }
            let chunk = demand(leaf)
            let place = leaf % MapLeaves.leavesPerChunk
            pageCount += want.nonzeroBitCount - have.nonzeroBitCount
            zeroPageCount -= chunk.zero[place].nonzeroBitCount
            chunk.present[place] &= want
            chunk.zero[place] = chunk.zero[place] & want | want & ~have
            zeroPageCount += chunk.zero[place].nonzeroBitCount
            dirty.insert(PageFrameNumber(UInt64(leaf)))
            changed.insert(wordIndex: leaf, mask: want ^ have)
        }
        return changed
    }

    // MARK: - Memory

    /// The chunk of a leaf, which is allocated if it does not exist.
    private mutating func demand(_ leaf: Int) -> Chunk {
        let number = leaf / MapLeaves.leavesPerChunk
        if number < chunks.count, let chunk = chunks[number] { return chunk }
        if number >= chunks.count {
            chunks.append(contentsOf: repeatElement(nil, count: number + 1 - chunks.count))
        }
        let chunk = Chunk(memory)
        chunks[number] = chunk
        return chunk
    }

    /// The digests of a leaf's frames; nil if it has none.
    func digests(_ leaf: Int) -> UnsafePointer<PageDigest>? {
        guard let chunk = chunk(of: leaf) else { return nil }
        let slot = chunk.slots[leaf % MapLeaves.leavesPerChunk]
        return slot == MapLeaves.noSlot ? nil : UnsafePointer(memory(of: slot))
    }

    private mutating func block(_ chunk: Chunk, _ place: Int) -> UnsafeMutablePointer<PageDigest> {
        if chunk.slots[place] == MapLeaves.noSlot {
            if Int(slotCount) == blocks.count * MapLeaves.leavesPerChunk {
                // Not initialized: digests are read only where a mask says that there is one, and
                // pages of memory that are not touched take no space.
                blocks.append(memory.allocate(MapLeaves.leavesPerChunk * 64))
            }
            slotCount += 1
            chunk.slots[place] = slotCount
        }
        return memory(of: chunk.slots[place])
    }

    private func memory(of slot: UInt32) -> UnsafeMutablePointer<PageDigest> {
        let slot = Int(slot) - 1
        return blocks[slot / MapLeaves.leavesPerChunk] + slot % MapLeaves.leavesPerChunk * 64
    }

    private func digest(_ chunk: Chunk, _ place: Int, _ index: Int) -> PageDigest {
        let slot = chunk.slots[place]
        precondition(slot != MapLeaves.noSlot, "a present frame has a digest")
        return memory(of: slot)[index]
    }
}
