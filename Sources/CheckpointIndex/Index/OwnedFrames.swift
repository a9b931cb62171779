import CheckpointFormat
package import GuestModel
import LMDBTables

// Which checkpoint refers to which page, so that prune need not read all page maps.
//
// Each checkpoint, until it is forgotten and pruned, has a predecessor, normally its parent, and
// owned frames: the frames in which it may differ from the predecessor.
//
//   1. In a frame that it does not own, a checkpoint has the same content as its predecessor.
//   2. For each frame that it owns, it holds one reference to the page there.
//
// So each checkpoint reaches a page through exactly one reference: its own, or that of its nearest
// predecessor that owns the frame. A page without references is garbage. A capture adds references
// only for the pages that it changed. The first reference to a page is not stored, because the
// page's own entry stands for it.
//
// A checkpoint that is pruned transfers its owned frames to its successors. Its reference to its
// page in a frame f
//
//   P          P        passes to F if that is the only successor and does not own f
//   |          |        is dropped  if that is the only successor and owns f
//   R  --->    F        becomes n   if n successors do not own f
//   |                   is dropped  if there is no successor
//   F
//
// That requires only sets of frames; page maps are read only for the frames whose references are
// dropped.
//
// A rebuilt index does not know the checkpoints that were pruned, and has other predecessors and
// other owned frames. Any are correct as long as the two rules hold.

/// The frames in which a checkpoint holds its own references.
package struct OwnedFrames: Sendable {
    /// The checkpoint whose pages it has in all other frames; nil: there are none.
    package var predecessor: CheckpointID?
    package var frames: DirtyBitmap

    init(predecessor: CheckpointID?, frames: DirtyBitmap) {
        self.predecessor = predecessor
        self.frames = frames
    }

    /// Decodes a value of the index.
    init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        do throws(FormatError) {
            var reader = ByteReader(bytes)
            let digest = try reader.readDigest()
            predecessor = digest == .none ? nil : CheckpointID(digest)
            frames = DirtyBitmap()
            var end = 0
            while reader.remaining > 0 {
                let gap = try reader.readVarint(limit: Int(PageMap.frameEndMax), "a frame")
                let count = try reader.readVarint(limit: Int(PageMap.frameEndMax), "frames")
                guard count > 0, end + gap + count <= Int(PageMap.frameEndMax) else {
                    throw FormatError(offset: reader.position, reason: "a run of frames")
                }
                let first = PageFrameNumber(UInt64(end + gap))
                frames.insert(PageRange(first: first, count: count))
                end += gap + count
            }
        } catch {
            throw .damagedValue("owned frames")
        }
    }

    /// Encodes the value: the predecessor, then for each run the number of frames since the end of
    /// the previous run, and its length.
    var encoded: [UInt8] {
        var writer = ByteWriter(reserving: PageDigest.byteCount + 64)
        writer.write(predecessor?.digest ?? .none)
        var end: UInt64 = 0
        frames.forEachRun { run in
            writer.writeVarint(run.first.rawValue - end)
            writer.writeVarint(UInt64(run.count))
            end = run.end.rawValue
        }
        return writer.bytes
    }
}

extension Index {
    /// A checkpoint's owned frames; nil if it was pruned, or never existed.
    func ownedFrames(
        _ id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> OwnedFrames? {
        try Index.withKey(id) { (key) throws(LMDBError) in
            try transaction.get(table(.ownedFrames), key, OwnedFrames.init(indexed:))
        }
    }

    package func ownedFrames(_ id: CheckpointID) throws -> OwnedFrames? {
        try environment.read { try ownedFrames(id, $0) }
    }

    /// True if a checkpoint has owned frames.
    package func hasOwnedFrames(_ id: CheckpointID) throws -> Bool {
        try environment.read { transaction in
            try Index.withKey(id) { (key) throws(LMDBError) in
                try transaction.get(table(.ownedFrames), key) { _ in true } ?? false
            }
        }
    }

    /// Stores a checkpoint's owned frames and its predecessor.
    func setOwnedFrames(
        _ ownedFrames: OwnedFrames, of id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        let value = ownedFrames.encoded
        try Index.withKey(id) { (key) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.ownedFrames), key, UnsafeRawBufferPointer(bytes))
            }
        }
        if let predecessor = ownedFrames.predecessor {
            try link(predecessor, id, in: .successors, transaction)
        }
    }

    /// The checkpoints whose predecessor is the given one.
    package func successors(of id: CheckpointID) throws -> Set<CheckpointID> {
        try environment.read { try linked(id, in: .successors, $0) }
    }

    /// The checkpoints whose page maps are based on the given one's.
    package func builders(on id: CheckpointID) throws -> Set<CheckpointID> {
        try environment.read { try linked(id, in: .builders, $0) }
    }

    // MARK: - Pairs of checkpoints

    func link(
        _ first: CheckpointID, _ second: CheckpointID, in pairs: Table,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(first, second) { (key) throws(LMDBError) in
            try transaction.put(table(pairs), key, UnsafeRawBufferPointer(start: nil, count: 0))
        }
    }

    func removeLink(
        _ first: CheckpointID, _ second: CheckpointID, in pairs: Table,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(first, second) { (key) throws(LMDBError) in
            _ = try transaction.delete(table(pairs), key)
        }
    }

    /// The second elements of the pairs with the given first element.
    func linked(
        _ first: CheckpointID, in pairs: Table, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> Set<CheckpointID> {
        var found: Set<CheckpointID> = []
        var start = ByteWriter(reserving: PageDigest.byteCount)
        start.write(first.digest)
        try transaction.scan(table(pairs), from: start.bytes) { (key, _) throws(LMDBError) in
            guard key.count == 2 * PageDigest.byteCount else { throw .damagedValue("pair") }
            let digest = PageDigest(bytes: key)
            guard digest == first.digest else { return false }
            found.insert(
                CheckpointID(PageDigest(bytes: key.dropFirst(PageDigest.byteCount))))
            return true
        }
        return found
    }

    private static func withKey(
        _ first: CheckpointID, _ second: CheckpointID,
        _ body: (UnsafeRawBufferPointer) throws(LMDBError) -> Void
    ) throws(LMDBError) {
        var key = ByteWriter(reserving: 2 * PageDigest.byteCount)
        key.write(first.digest)
        key.write(second.digest)
        try key.bytes.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
            try body(UnsafeRawBufferPointer(bytes))
        }
    }
}
