import CheckpointFormat
package import GuestModel

// The logical page map in memory: for each frame absent, zero or a digest, and the Merkle tree.
//
//   slots    [ leaf number ]  -> which block of digests, or none        4 bytes for 64 frames
//   present  [ leaf number ]  -> mask of frames with a digest
//   zero     [ leaf number ]  -> mask of frames that are zero
//   blocks   [ slot / 512 ]   -> 512 leaves of 64 digests, allocated as needed
//   nodes    [ level ][ n ]   -> digest of each node; stale where `dirty` says so
//
// It takes about 0.8 % of the guest's memory. A leaf without a digest has no block, so holes and
// zero pages cost nothing. The owner ensures that only one thread writes at a time.

/// The mutable page map of a checkpoint in memory.
///
/// Unchecked: it passes from owner to owner (session, draft, reader), and only the owner accesses
/// it.
package final class PageMap: @unchecked Sendable {
    /// Frame numbers are below this: 16 TiB of guest memory.
    ///
    /// The map takes some bytes for every 64 frames up to the highest one, so a hostile number must
    /// not determine its size (`MapBounds`).
    package static let frameEndMax = MapBounds.frameEndMax

    private var leaves = MapLeaves()
    private var nodes: [[PageDigest]] = []

    package init() {}

    deinit {
        leaves.deallocate()
    }

    /// Number of frames that exist.
    package var pageCount: Int { leaves.pageCount }

    /// Number of frames that exist and are zero.
    package var zeroPageCount: Int { leaves.zeroPageCount }

    /// One more than the highest frame that exists.
    package var frameEnd: UInt64 { leaves.frameEnd }

    /// The frames that exist.
    ///
    /// O(leaves) if they changed since the last call.
    package var layout: GuestLayout { leaves.layout }

    /// The content of a frame.
    package subscript(frame: PageFrameNumber) -> PageContent { leaves[frame] }

    /// Sets the content of a frame.
    ///
    /// - Returns: true if the content changed.
    @discardableResult
    package func set(_ frame: PageFrameNumber, _ content: PageContent) -> Bool {
        leaves.set(frame, content)
    }

    /// Sets the contents of frames, in order.
    ///
    /// - Parameter changed: called with the index of each frame whose content changed, and its
    ///   previous content.
    package func set(
        _ frames: Span<UInt64>, _ contents: Span<PageContent>,
        changed: (Int, PageContent) -> Void
    ) {
        leaves.set(frames, contents, changed: changed)
    }

    /// Sets frames to zero.
    ///
    /// O(leaves of the range), plus what is replaced.
    ///
    /// - Parameters:
    ///   - replaced: called with each frame that had a digest, and that digest.
    ///   - changed: called with the number of each group of 64 frames in which some were not zero,
    ///     and the mask of these.
    package func setZero(
        _ range: PageRange, replaced: (PageFrameNumber, PageDigest) -> Void = { _, _ in },
        changed: (Int, UInt64) -> Void
    ) {
        leaves.setZero(range, replaced: replaced, changed: changed)
    }

    /// Number of consecutive zero frames from a frame on, at most `limit`.
    ///
    /// Costs a sixty-fourth of a step per frame.
    package func zeroCount(from first: PageFrameNumber, atMost limit: Int) -> Int {
        leaves.zeroCount(from: first, atMost: limit)
    }

    /// Makes exactly the frames of a layout exist; new ones are zero until set.
    ///
    /// O(leaves); O(runs) if nothing changes.
    ///
    /// - Returns: the frames that changed.
    package func adopt(_ layout: GuestLayout) -> DirtyBitmap { leaves.adopt(layout) }
}

// MARK: - The Merkle tree

extension PageMap {
    /// The root; recomputes the nodes above changed leaves.
    ///
    /// O(changed leaves * levels).
    package func root() -> PageDigest {
        let levels = MerkleNode.levelCount(frameEnd: UInt64(leaves.present.count) * 64)
        grow(levels: levels)
        var dirty = leaves.dirty
        leaves.dirty.removeAll()
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
        var count = max(1, leaves.present.count)
        let hadLevels = nodes.count
        for level in 0..<levels {
            if level == nodes.count { nodes.append([]) }
            let missing = count - nodes[level].count
            if missing > 0 {
                nodes[level].append(contentsOf: repeatElement(.none, count: missing))
            }
            count = (count + 63) / 64
        }
        // A new level covers existing nodes: recompute them all.
        if levels > hadLevels && hadLevels > 0 {
            for leaf in leaves.present.indices
            where leaves.present[leaf] | leaves.zero[leaf] != 0 {
                leaves.dirty.insert(PageFrameNumber(UInt64(leaf)))
            }
        }
    }

    /// Adds one node to the batch, or records that nothing exists below it.
    private func encode(level: Int, node: Int, into batch: NodeBatch) {
        if batch.isFull { batch.flush { nodes[level][$0] = $1 } }
        if level == 0 {
            let (present, zero) = (leaves.present[node], leaves.zero[node])
            nodes[0][node] = .none
            if present | zero == 0 { return }
            let digests = UnsafeBufferPointer(
                start: present == 0 ? nil : leaves.block(node), count: present == 0 ? 0 : 64)
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
    /// O(leaves); compares digests only where leaves differ.
    package func difference(from other: PageMap) -> DirtyBitmap {
        _ = root()
        _ = other.root()
        var result = DirtyBitmap()
        for leaf in 0..<max(leaves.present.count, other.leaves.present.count) {
            let mine = leaf < leaves.present.count ? nodes[0][leaf] : .none
            let theirs = leaf < other.leaves.present.count ? other.nodes[0][leaf] : .none
            guard mine != theirs else { continue }
            for frame in UInt64(leaf) * 64..<UInt64(leaf) * 64 + 64 {
                let number = PageFrameNumber(frame)
                if self[number] != other[number] { result.insert(number) }
            }
        }
        return result
    }
}
