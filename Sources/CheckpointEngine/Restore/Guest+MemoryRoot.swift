import CheckpointIndex
import CheckpointStore
public import GuestModel

extension Guest {
    /// Returns the Merkle root of all of the guest's pages, which equals that of a checkpoint's
    /// `memory` if and only if the memory is equal.
    ///
    /// Blocks: every page is copied and digested on this thread. No page may change meanwhile. The
    /// guest is not paused by this.
    public func memoryRoot() throws(GuestError) -> PageDigest { try pageMap().root() }

    /// Returns the page map of the guest's current memory.
    func pageMap() throws(GuestError) -> VolumeMap { try pageMap(of: try layout()) }

    /// Returns the page map of a part of it.
    func pageMap(of layout: GuestLayout) throws(GuestError) -> VolumeMap {
        let map = VolumeMap()
        _ = map.adopt(layout)
        var classifier = PageClassifier()
        let buffer = PageMemory.allocate(byteCount: StagingPool.slotByteCount)
        defer { PageMemory.deallocate(buffer) }
        for batch in StagedBatches.cut(layout.runs) {
            let count = batch.reduce(0) { $0 + $1.byteCount }
            let pages = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
            var destination = pages.mutableBytes
            try copyPages(batch.span, into: &destination)
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
