import CheckpointFormat
package import GuestModel
package import LMDBTables

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
package struct OwnedFrames: Sendable, EncodedValue {
    /// The checkpoint whose pages it has in all other frames; nil: there are none.
    package var predecessor: CheckpointID?
    package var frames: FrameSet

    init(predecessor: CheckpointID?, frames: FrameSet) {
        self.predecessor = predecessor
        self.frames = frames
    }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        do throws(FormatError) {
            var reader = ByteReader(bytes)
            let digest = try reader.readDigest()
            predecessor = digest == .none ? nil : CheckpointID(digest)
            frames = FrameSet()
            var end = 0
            while reader.remaining > 0 {
                let gap = try reader.readVarint(limit: Int(PageRange.frameLimit), "a frame")
                let count = try reader.readVarint(limit: Int(PageRange.frameLimit), "frames")
                guard count > 0, end + gap + count <= Int(PageRange.frameLimit) else {
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
    package var encoded: [UInt8] {
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
    package func ownedFrames(_ id: CheckpointID) throws(IndexError) -> OwnedFrames? {
        try environment.read { (txn) throws(IndexError) in
            try tables.ownedFrames.value(for: id, in: txn)
        }
    }

    /// True if a checkpoint has owned frames.
    package func hasOwnedFrames(_ id: CheckpointID) throws(IndexError) -> Bool {
        try environment.read { (txn) throws(IndexError) in
            try tables.ownedFrames.contains(id, in: txn)
        }
    }

    /// Stores a checkpoint's owned frames and its predecessor.
    func setOwnedFrames(
        _ ownedFrames: OwnedFrames, of id: CheckpointID, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try tables.ownedFrames.put(ownedFrames, for: id, in: txn)
        if let predecessor = ownedFrames.predecessor {
            try tables.successors.insert(CheckpointPair(predecessor, id), in: txn)
        }
    }

    /// The checkpoints whose predecessor is the given one.
    package func successors(of id: CheckpointID) throws(IndexError) -> Set<CheckpointID> {
        try environment.read { (txn) throws(IndexError) in
            try tables.successors.seconds(of: id, in: txn)
        }
    }

    /// The checkpoints whose page maps are based on the given one's.
    package func builders(on id: CheckpointID) throws(IndexError) -> Set<CheckpointID> {
        try environment.read { (txn) throws(IndexError) in
            try tables.builders.seconds(of: id, in: txn)
        }
    }
}

extension LMDBTable where Key == CheckpointPair, Value == NoValue {
    /// The second checkpoints of the pairs with the given first one.
    func seconds(
        of first: CheckpointID, in txn: borrowing LMDBTxn
    ) throws(IndexError) -> Set<CheckpointID> {
        var found: Set<CheckpointID> = []
        var pairs = try entries(from: CheckpointPair(first, CheckpointID(.none)), in: txn)
        while let pair = try pairs.nextKey(), pair.first == first { found.insert(pair.second) }
        return found
    }
}
