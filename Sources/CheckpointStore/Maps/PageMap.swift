package import CheckpointFormat
package import GuestModel

// The logical page map in memory: for each frame absent, zero or a digest, and the Merkle tree.
//
//   slots    [ leaf number ]  -> which block of digests, or none        4 bytes for 64 frames
//   present  [ leaf number ]  -> mask of frames with a digest
//   zero     [ leaf number ]  -> mask of frames that are zero
//   blocks   [ slot / 512 ]   -> 512 leaves of 64 digests, allocated as needed
//   nodes    [ level ][ n ]   -> digest of each node; stale where `dirty` says so
//
// About 0.8 % of the guest's memory. A leaf without a digest has no block, so holes and zero pages
// cost nothing. One thread writes at a time; the owner sees to that.

/// A checkpoint's page map, in memory, that can be changed.
///
/// Unchecked: it goes from owner to owner (session, draft, reader), and only the owner touches it.
package final class PageMap: @unchecked Sendable {
    /// Frames are below this: 16 TiB of guest.
    ///
    /// The map has some bytes for every 64 frames up to the highest one, so a hostile number must
    /// not choose how many.
    package static let frameEndMax: UInt64 = 1 << 32

    private static let leavesPerChunk = 512
    private static let noSlot = UInt32.max

    private var slots: [UInt32] = []
    private var present: [UInt64] = []
    private var zero: [UInt64] = []
    private var chunks: [UnsafeMutablePointer<PageDigest>] = []
    private var slotCount: UInt32 = 0
    private var nodes: [[PageDigest]] = []
    private var dirtyLeaves = DirtyBitmap()
    /// The frames that exist, as runs; nil if they changed since somebody asked.
    private var knownLayout: GuestLayout?

    package init() {}

    deinit {
        for chunk in chunks { chunk.deallocate() }
    }

    /// Frames that exist.
    package private(set) var pageCount = 0

    /// Frames that exist and are zero.
    package private(set) var zeroPageCount = 0

    /// One more than the highest frame that exists.
    package var frameEnd: UInt64 {
        for leaf in present.indices.reversed() {
            let mask = present[leaf] | zero[leaf]
            if mask != 0 { return UInt64(leaf) * 64 + 64 - UInt64(mask.leadingZeroBitCount) }
        }
        return 0
    }

    /// The frames that exist.
    ///
    /// O(leaves) when they changed since the last call.
    package var layout: GuestLayout {
        if let knownLayout { return knownLayout }
        var frames = DirtyBitmap()
        let masks = zip(present, zero).map { $0 | $1 }
        frames.formUnion(words: masks.span)
        let layout = GuestLayout(runs: frames.runs())
        knownLayout = layout
        return layout
    }

    /// What a frame holds.
    package subscript(frame: PageFrameNumber) -> PageContent {
        let leaf = Int(frame.rawValue / 64)
        let bit = UInt64(1) << (frame.rawValue % 64)
        guard leaf < present.count else { return .absent }
        if present[leaf] & bit != 0 { return .present(digest(leaf, Int(frame.rawValue % 64))) }
        return zero[leaf] & bit != 0 ? .zero : .absent
    }

    /// Sets what a frame holds.
    ///
    /// - Returns: true if that differs from before.
    @discardableResult
    package func set(_ frame: PageFrameNumber, _ content: PageContent) -> Bool {
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
        dirtyLeaves.insert(PageFrameNumber(UInt64(leaf)))
        return true
    }

    /// Makes the frames of a layout, and only those, exist; new ones are zero until set.
    ///
    /// O(leaves); O(runs) if nothing changes.
    ///
    /// - Returns: the frames that this changed.
    package func adopt(_ layout: GuestLayout) -> DirtyBitmap {
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
            dirtyLeaves.insert(PageFrameNumber(UInt64(leaf)))
            var difference = want ^ have
            while difference != 0 {
                let index = UInt64(difference.trailingZeroBitCount)
                changed.insert(PageFrameNumber(UInt64(leaf) * 64 + index))
                difference &= difference - 1
            }
        }
        return changed
    }

    // MARK: - Blocks of digests

    private func grow(to leafCount: Int) {
        guard leafCount > present.count else { return }
        let added = leafCount - present.count
        present.append(contentsOf: repeatElement(0, count: added))
        zero.append(contentsOf: repeatElement(0, count: added))
        slots.append(contentsOf: repeatElement(PageMap.noSlot, count: added))
    }

    private func block(_ leaf: Int) -> UnsafeMutablePointer<PageDigest> {
        if slots[leaf] == PageMap.noSlot {
            if Int(slotCount) == chunks.count * PageMap.leavesPerChunk {
                let count = PageMap.leavesPerChunk * 64
                let chunk = UnsafeMutablePointer<PageDigest>.allocate(capacity: count)
                chunk.initialize(repeating: .none, count: count)
                chunks.append(chunk)
            }
            slots[leaf] = slotCount
            slotCount += 1
        }
        let slot = Int(slots[leaf])
        return chunks[slot / PageMap.leavesPerChunk] + slot % PageMap.leavesPerChunk * 64
    }

    private func digest(_ leaf: Int, _ index: Int) -> PageDigest {
        let slot = Int(slots[leaf])
        precondition(slots[leaf] != PageMap.noSlot, "a present frame has a digest")
        return chunks[slot / PageMap.leavesPerChunk][
            slot % PageMap.leavesPerChunk * 64 + index]
    }
}

// MARK: - The Merkle tree

extension PageMap {
    /// The root; brings nodes over changed leaves up to date.
    ///
    /// O(changed leaves * levels).
    package func root() -> PageDigest {
        let levels = MerkleNode.levelCount(frameEnd: UInt64(present.count) * 64)
        grow(levels: levels)
        var dirty = dirtyLeaves
        dirtyLeaves.removeAll()
        let batch = NodeBatch()
        for level in 0..<levels {
            var parents = DirtyBitmap()
            dirty.forEachRun { run in
                for node in run.frames {
                    encode(level: level, node: Int(node), into: batch)
                    parents.insert(PageFrameNumber(node / 64))
                }
            }
            batch.flush { nodes[level][$0] = $1 }
            dirty = parents
        }
        let top = MerkleNode.levelCount(frameEnd: frameEnd) - 1
        guard let root = nodes[top].first, root != .none else { return MerkleNode.emptyRoot }
        return root
    }

    private func grow(levels: Int) {
        var count = max(1, present.count)
        let hadLevels = nodes.count
        for level in 0..<levels {
            if level == nodes.count { nodes.append([]) }
            let missing = count - nodes[level].count
            if missing > 0 {
                nodes[level].append(contentsOf: repeatElement(.none, count: missing))
            }
            count = (count + 63) / 64
        }
        // A new level covers nodes that were there before it: make them all over.
        if levels > hadLevels && hadLevels > 0 {
            for leaf in present.indices where present[leaf] | zero[leaf] != 0 {
                dirtyLeaves.insert(PageFrameNumber(UInt64(leaf)))
            }
        }
    }

    /// Hands one node to the batch, or notes that nothing is below it.
    private func encode(level: Int, node: Int, into batch: NodeBatch) {
        if batch.isFull { batch.flush { nodes[level][$0] = $1 } }
        if level == 0 {
            let (present, zero) = (present[node], zero[node])
            nodes[0][node] = .none
            if present | zero == 0 { return }
            let digests = UnsafeBufferPointer(
                start: present == 0 ? nil : block(node), count: present == 0 ? 0 : 64)
            batch.append(node) {
                MerkleNode.encode(
                    level: 0, present: present, zero: zero, children: digests, into: $0)
            }
            return
        }
        nodes[level][node] = .none
        nodes[level - 1].withUnsafeBufferPointer { below in
            let first = node * 64
            let children = UnsafeBufferPointer(
                rebasing: below[first..<min(first + 64, below.count)])
            var mask: UInt64 = 0
            for index in children.indices where children[index] != .none {
                mask |= 1 << UInt64(index)
            }
            if mask == 0 { return }
            batch.append(node) {
                MerkleNode.encode(
                    level: level, present: mask, zero: 0, children: children, into: $0)
            }
        }
    }

    /// Frames whose content differs between two maps.
    ///
    /// O(leaves), digests only where leaves differ.
    package func difference(from other: PageMap) -> DirtyBitmap {
        _ = root()
        _ = other.root()
        var result = DirtyBitmap()
        for leaf in 0..<max(present.count, other.present.count) {
            let mine = leaf < present.count ? nodes[0][leaf] : .none
            let theirs = leaf < other.present.count ? other.nodes[0][leaf] : .none
            guard mine != theirs else { continue }
            for frame in UInt64(leaf) * 64..<UInt64(leaf) * 64 + 64 {
                let number = PageFrameNumber(frame)
                if self[number] != other[number] { result.insert(number) }
            }
        }
        return result
    }
}
