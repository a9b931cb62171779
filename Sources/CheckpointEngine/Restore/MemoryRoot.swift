import CheckpointIndex
import CheckpointStore
public import GuestModel

/// The identity of a guest's current memory.
public enum MemoryRoot {
    /// The Merkle root of all of a guest's pages: equal to a checkpoint's `root` if and only if the
    /// memory is equal.
    ///
    /// Reads and digests every page on this thread. The guest must be paused meanwhile.
    public static func of(_ guest: any Guest) throws(GuestError) -> PageDigest {
        try map(of: guest).root()
    }

    /// The page map of a guest's current memory.
    static func map(of guest: any Guest) throws(GuestError) -> PageMap {
        let layout = try guest.layout()
        let map = PageMap()
        _ = map.adopt(layout)
        var classifier = PageClassifier()
        let buffer = PageMemory.allocate(byteCount: StagingPool.slotByteCount)
        defer { PageMemory.deallocate(buffer) }
        for batch in StagedBatches.cut(layout.runs) {
            let count = batch.reduce(0) { $0 + $1.byteCount }
            let pages = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
            var destination = pages.mutableBytes
            try guest.copyPages(batch.span, into: &destination)
            classifier.classify(UnsafeRawBufferPointer(pages))
            var position = 0
            for run in batch {
                for frame in run.frames {
                    map.set(PageFrameNumber(frame), classifier.contents[position])
                    position += 1
                }
            }
        }
        return map
    }
}
