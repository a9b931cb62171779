import CheckpointFormat
package import GuestModel
package import PackStore

// The logical page map of one volume in memory: for each frame absent, zero or a digest, and the
// Merkle tree. Frame numbers are those within the volume.
//
//   chunks   [ leaf / 512 ]   -> masks of frames with a digest and of zero frames, and which block
//                                of digests each leaf has; allocated as needed
//   blocks   [ slot / 512 ]   -> 512 leaves of 64 digests, allocated as needed
//   nodes    [ level ][ n ]   -> digest of each node; stale where `dirty` says so
//
// It takes about 0.8 % of what the volume holds: for a disk, in a file if that is much
// (`ScratchMemory`). A leaf without a digest has no block, so holes and zero pages cost nothing.
// The owner ensures that only one thread writes at a time.

/// The mutable page map of one volume of a checkpoint in memory.
///
/// Unchecked: it passes from owner to owner (session, draft, reader), and only the owner accesses
/// it.
package final class VolumeMap: @unchecked Sendable {
    private let memory: ScratchMemory
    private var leaves: MapLeaves
    private var nodes: [MapNodes] = []

    /// - Parameter place: where memory for a large volume is to be kept.
    package init(in place: ScratchMemory.Place = .process) {
        memory = ScratchMemory(place)
        leaves = MapLeaves(memory)
    }

    /// Gives memory that is in a file back to the kernel, which keeps what it has room for.
    ///
    /// The map stays as it is. A system call for each 8 MiB of it.
    package func releasePages() { memory.releasePages() }

    /// Bytes of the process's own memory, and of a file, that it has.
    package var byteCounts: (own: Int, file: Int) { memory.byteCounts }

    /// Number of frames that exist.
    package var pageCount: Int { leaves.pageCount }

    /// Number of frames that exist and are zero.
    package var zeroPageCount: Int { leaves.zeroPageCount }

    /// One more than the highest frame that exists.
    package var frameEnd: UInt64 { leaves.frameEnd }

    /// The frames that exist, as runs.
    ///
    /// O(leaves) if they changed since the last call.
    package var layout: GuestLayout { leaves.layout }

    /// The frames that have a digest: they exist and are not zero.
    ///
    /// O(leaves), and takes memory for these frames.
    package func contentRuns() -> [PageRange] {
        var result = FrameSet()
        leaves.forEachLeaf { leaf, _ in
            let mask = leaves.present(leaf)
            if mask != 0 { result.insert(wordIndex: leaf, mask: mask) }
        }
        return result.runs()
    }

    /// Calls `body` with each group of 64 frames in which some exist: its number, and the mask of
    /// these.
    package func forEachLeaf<E: Error>(_ body: (Int, UInt64) throws(E) -> Void) throws(E) {
        try leaves.forEachLeaf(body)
    }

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
    /// - Parameters:
    ///   - base: subtracted from each frame number.
    ///   - changed: called with the index of each frame whose content changed, and its previous
    ///     content.
    package func set(
        _ frames: Span<UInt64>, from base: UInt64 = 0, _ contents: Span<PageContent>,
        changed: (Int, PageContent) -> Void
    ) {
        leaves.set(frames, from: base, contents, changed: changed)
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

    /// Removes frames.
    ///
    /// O(what is removed), and a step for each 32,768 frames.
    ///
    /// - Parameters:
    ///   - replaced: called with each frame that had a digest, and that digest.
    ///   - changed: called with the number of each group of 64 frames in which some existed, and
    ///     the mask of these.
    package func remove(
        _ range: PageRange, replaced: (PageFrameNumber, PageDigest) -> Void = { _, _ in },
        changed: (Int, UInt64) -> Void = { _, _ in }
    ) {
        leaves.remove(range, replaced: replaced, changed: changed)
    }

    /// Number of consecutive frames from one on that do not exist, at most `limit`.
    package func absentCount(from first: PageFrameNumber, atMost limit: Int) -> Int {
        leaves.absentCount(from: first, atMost: limit)
    }

    /// Makes exactly the frames of a layout exist; new ones are zero until set.
    ///
    /// O(leaves); O(runs) if nothing changes.
    ///
    /// - Returns: the frames that changed.
    package func adopt(_ layout: GuestLayout) -> DirtyBitmap { leaves.adopt(layout) }
}

// MARK: - The Merkle tree

extension VolumeMap {
    /// The root; recomputes the nodes above changed leaves.
    ///
    /// O(changed leaves * levels).
    package func root() -> PageDigest {
        let levels = MerkleNode.levelCount(frameEnd: UInt64(leaves.leafEnd) * 64)
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
        let root = nodes[MerkleNode.levelCount(frameEnd: frameEnd) - 1][0]
        return root == .none ? MerkleNode.emptyRoot : root
    }

    private func grow(levels: Int) {
        let hadLevels = nodes.count
        guard levels > hadLevels else { return }
        for _ in hadLevels..<levels { nodes.append(MapNodes(memory)) }
        // A new level covers existing nodes: recompute them all.
        if hadLevels > 0 {
            leaves.forEachLeaf { leaf, _ in leaves.dirty.insert(PageFrameNumber(UInt64(leaf))) }
        }
    }

    /// Adds one node to the batch, or records that nothing exists below it.
    private func encode(level: Int, node: Int, into batch: NodeBatch) {
        if batch.isFull { batch.flush { nodes[level][$0] = $1 } }
        if level == 0 {
            let (present, zero) = (leaves.present(node), leaves.zero(node))
            nodes[0][node] = .none
            if present | zero == 0 { return }
            let digests = UnsafeBufferPointer(
                start: present == 0 ? nil : leaves.digests(node), count: present == 0 ? 0 : 64)
            batch.append(node) {
                MerkleNode.encode(
                    level: 0, present: present, zero: zero, children: digests, into: $0)
            }
            return
        }
        nodes[level][node] = .none
        nodes[level - 1].withChildren(of: node) { children in
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
    /// Costs the nodes of the tree that differ; compares digests only where leaves differ.
    package func difference(from other: VolumeMap) -> DirtyBitmap {
        var result = DirtyBitmap()
        forEachDifference(from: other) { result.insert(wordIndex: $0, mask: $1) }
        return result
    }

    /// The same of a disk, where it takes memory for what differs and not for the disk's size.
    package func differingRuns(from other: VolumeMap) -> [PageRange] {
        var result = FrameSet()
        forEachDifference(from: other) { result.insert(wordIndex: $0, mask: $1) }
        return result.runs()
    }

    /// Calls `body` with each leaf that differs, in ascending order, and the mask of its frames
    /// that do.
    private func forEachDifference(
        from other: VolumeMap, _ body: (_ leaf: Int, _ mask: UInt64) -> Void
    ) {
        _ = root()
        _ = other.root()
        func visit(_ level: Int, _ node: Int) {
            guard nodes[level][node] != other.nodes[level][node] else { return }
            guard level == 0 else {
                for child in node * 64..<node * 64 + 64 { visit(level - 1, child) }
                return
            }
            var mask: UInt64 = 0
            for index in 0..<64 {
                let frame = PageFrameNumber(UInt64(node * 64 + index))
                if self[frame] != other[frame] { mask |= 1 << UInt64(index) }
            }
            if mask != 0 { body(node, mask) }
        }
        // What the taller tree has above has nothing to be compared with.
        let top = min(nodes.count, other.nodes.count) - 1
        let leafEnd = max(leaves.leafEnd, other.leaves.leafEnd)
        for node in 0..<(leafEnd + (1 << (6 * top)) - 1) >> (6 * top) { visit(top, node) }
    }
}

/// The nodes of one level, in chunks that are allocated as needed; the others have no digest.
private struct MapNodes {
    private static let chunkCount = 512
    private static let none = [PageDigest](repeating: .none, count: 64)
    private let memory: ScratchMemory
    private var chunks: [UnsafeMutablePointer<PageDigest>?] = []

    init(_ memory: ScratchMemory) { self.memory = memory }

    subscript(node: Int) -> PageDigest {
        get {
            let chunk = node / MapNodes.chunkCount
            guard chunk < chunks.count, let digests = chunks[chunk] else { return .none }
            return digests[node % MapNodes.chunkCount]
        }
        set {
            let chunk = node / MapNodes.chunkCount
            if chunk >= chunks.count {
                chunks.append(contentsOf: repeatElement(nil, count: chunk + 1 - chunks.count))
            }
            let digests = chunks[chunk] ?? memory.allocate(MapNodes.chunkCount)
            digests[node % MapNodes.chunkCount] = newValue
            chunks[chunk] = digests
        }
    }

    /// Calls `body` with the 64 children of a node of the level above.
    func withChildren(of node: Int, _ body: (UnsafeBufferPointer<PageDigest>) -> Void) {
        let chunk = node * 64 / MapNodes.chunkCount
        guard chunk < chunks.count, let digests = chunks[chunk] else {
            return MapNodes.none.withUnsafeBufferPointer(body)
        }
        let first = node * 64 % MapNodes.chunkCount
        body(UnsafeBufferPointer(start: digests + first, count: 64))
    }
}
