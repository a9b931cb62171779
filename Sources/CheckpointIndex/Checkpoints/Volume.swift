package import CheckpointFormat
public import GuestModel

/// One volume of a checkpoint: the memory, or a disk.
public struct Volume: Hashable, Sendable {
    package let record: VolumeRecord

    package init(_ record: VolumeRecord) { self.record = record }

    package var number: VolumeNumber { record.number }

    /// Its name: `memory`, or that of the disk, such as `xvda`.
    public var name: String { record.name }
    /// True if it is a disk.
    public var isDisk: Bool { record.isDisk }
    /// Its size in bytes: of a disk, as its guest sees it; of the memory, that of the pages that
    /// exist.
    public var byteCount: UInt64 {
        isDisk ? record.byteCount : record.pageCount * UInt64(Page.byteCount)
    }
    /// Logical block size in bytes: of a disk 512 or 4096, of the memory 4096.
    public var blockByteCount: Int { Int(record.sectorByteCount) }
    /// The Merkle root of its page map: identifies its contents.
    public var root: PageDigest { record.root }
    /// Number of pages that exist, including zero pages; of a disk, number of blocks of 4 KiB that
    /// are not zero.
    public var pageCount: Int { Int(record.pageCount) }
    /// Number of pages whose bytes are all zero; 0 for a disk.
    public var zeroPageCount: Int { Int(record.zeroPageCount) }
    /// Number of pages whose content differs from the parent's; all pages if there is no parent.
    public var changedPageCount: Int { Int(record.changedPageCount) }
    /// Number of requests to a disk that its guest had made when it was cut, and that were not
    /// answered, at most 65,534; nil if that is unknown, and for the memory.
    ///
    /// The guest issues them again when it is restored. Alone, the disk has each of them done, not
    /// done or half done.
    public var requestsUnderWay: Int? { record.requestsUnderWay }
    /// The disk as its guest sees it; nil for the memory.
    public var disk: GuestDisk? {
        isDisk
            ? GuestDisk(name: name, byteCount: byteCount, sectorByteCount: blockByteCount) : nil
    }
}
