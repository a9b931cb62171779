public import GuestModel

/// A region of the process's own memory that is checkpointed.
public struct MemoryRegion: @unchecked Sendable {
    // Unchecked: the embedder shares the memory between threads; the value only names it.

    /// The memory; page-aligned, a multiple of 4096 bytes, valid as long as its `ProcessMemory`.
    public let bytes: UnsafeMutableRawBufferPointer
    /// The frames of this region.
    public let pages: PageRange
    /// True if the `ProcessMemory` mapped it and unmaps it.
    let isOwned: Bool

    /// The address of a frame of this region.
    func address(of frame: PageFrameNumber) -> UnsafeMutableRawPointer {
        guard let base = bytes.baseAddress, pages.contains(frame) else {
            preconditionFailure("frame \(frame) is not in region \(pages)")
        }
        return base + Int(frame.rawValue - pages.first.rawValue) * Page.byteCount
    }
}
