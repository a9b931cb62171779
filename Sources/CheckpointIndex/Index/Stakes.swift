import CheckpointFormat
package import GuestModel
import LMDBTables

// Who holds which page, so that prune need not ask everybody.
//
// Each checkpoint that was not forgotten and pruned has a forerunner, as a rule the one that it
// follows, and stakes: the frames in which it may differ from it.
//
//   - In a frame in which it has no stake, a checkpoint has what its forerunner has.
//   - For each frame in which it has a stake, it holds one reference to the page there.
//
// So whoever has a page has it by a reference: its own, or that of the first in the line of its
// forerunners that has a stake in the frame. A page without references is nobody's. A capture makes
// references for the pages that it changed and no others; and the first reference to a page is not
// written down, because the page's own entry stands for it.
//
// A checkpoint that is pruned gives its stakes to those that follow it. Where they have a stake of
// their own, its reference goes:
//
//   P          P        reference of R to its page in a frame f:
//   |          |          one follower, without a stake in f: it passes to F
//   R  --->    F          one follower, with a stake in f:    it goes
//   |                     n followers without one:            n references, one each
//   F                     no follower:                        it goes
//
// That is all reading of frame sets; page maps are read only for the frames whose reference goes.
//
// An index that is made anew cannot know the pruned ones, and makes other lines of forerunners with
// other stakes. Any will do as long as the two rules hold.

/// The frames in which a checkpoint holds a reference of its own.
package struct Stakes: Sendable {
    /// Whose pages it has everywhere else; nil: there are none.
    package var forerunner: CheckpointID?
    package var frames: DirtyBitmap

    init(forerunner: CheckpointID?, frames: DirtyBitmap) {
        self.forerunner = forerunner
        self.frames = frames
    }

    /// Reads a value of the index.
    init(indexed bytes: UnsafeRawBufferPointer) throws(LMDBError) {
        do throws(FormatError) {
            var reader = ByteReader(bytes)
            let digest = try reader.readDigest()
            forerunner = digest == .none ? nil : CheckpointID(digest)
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
            throw .damagedValue("stakes")
        }
    }

    /// The value: the forerunner, then for each run of frames the frames before it since the run
    /// before, and its own.
    var encoded: [UInt8] {
        var writer = ByteWriter(reserving: PageDigest.byteCount + 64)
        writer.write(forerunner?.digest ?? .none)
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
    /// A checkpoint's stakes; nil if it has none because it was pruned, or never was.
    func stakes(
        _ id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> Stakes? {
        try Index.withKey(id) { (key) throws(LMDBError) in
            try transaction.get(table(.stakes), key, Stakes.init(indexed:))
        }
    }

    package func stakes(_ id: CheckpointID) throws -> Stakes? {
        try environment.read { try stakes(id, $0) }
    }

    /// True if a checkpoint has stakes.
    package func hasStakes(_ id: CheckpointID) throws -> Bool {
        try environment.read { transaction in
            try Index.withKey(id) { (key) throws(LMDBError) in
                try transaction.get(table(.stakes), key) { _ in true } ?? false
            }
        }
    }

    /// Notes a checkpoint's stakes, and whom it follows.
    func setStakes(
        _ stakes: Stakes, of id: CheckpointID, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        let value = stakes.encoded
        try Index.withKey(id) { (key) throws(LMDBError) in
            try value.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.stakes), key, UnsafeRawBufferPointer(bytes))
            }
        }
        if let forerunner = stakes.forerunner {
            try link(forerunner, id, in: .followers, transaction)
        }
    }

    /// Those whose forerunner a checkpoint is.
    package func followers(of id: CheckpointID) throws -> Set<CheckpointID> {
        try environment.read { try linked(id, in: .followers, $0) }
    }

    /// Those whose page maps build on a checkpoint's own.
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

    /// The second ones of the pairs with a first one.
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
