import CheckpointFormat
import GuestModel

/// Disks at one instant: what a checkpoint's disks are read from.
///
/// An index names one of the disks. Called on the pipeline's threads; `read` on several at once.
protocol DiskSource: Sendable {
    /// The disks.
    var disks: [GuestDisk] { get }

    /// A name by which the cut is found again; empty if nothing can.
    var name: String { get }

    /// The requests to a disk that were under way at this instant; nil if that is unknown.
    func requestsUnderWay(ofDisk index: Int) -> Int?

    /// The blocks that may differ from the parent's, ascending; nil if that is unknown.
    func changedBlocks(ofDisk index: Int) throws -> [BlockRange]?

    /// The blocks that may not be zero, ascending.
    func storedBlocks(ofDisk index: Int) throws -> [BlockRange]

    /// Copies blocks; bytes past the end of the disk are zero.
    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws

    /// Throws if what was read may be of different instants.
    ///
    /// Called once, after the last read and before the checkpoint exists.
    func checkUnchanged() throws
}

/// The disks of a guest, from a cut.
struct CutDisks: DiskSource {
    let cut: any DiskCut
    /// The cut from which the parent's disks were read; nil if there is none any more.
    let parent: (any DiskCut)?
    /// Blocks in which the parent differs from that cut, by the bytes of the disk's name.
    var written: [[UInt8]: [BlockRange]] = [:]

    var disks: [GuestDisk] { cut.disks }
    var name: String { cut.name }

    func requestsUnderWay(ofDisk index: Int) -> Int? { cut.requestsUnderWay(ofDisk: index) }

    func changedBlocks(ofDisk index: Int) throws -> [BlockRange]? {
        guard let parent, var changed = try cut.changedBlocks(ofDisk: index, since: parent) else {
            return nil
        }
        let disk = disks[index]
        changed += written[Array(disk.name.utf8)] ?? []
        if let then = parent.disks.first(where: { NameForm.areSame($0.name, disk.name) }),
            then.byteCount != disk.byteCount
        {
            // What was cut off in the middle of a block reads as zeros now.
            let end = min(then.byteCount, disk.byteCount) / UInt64(Page.byteCount)
            changed.append((end..<end + 1).clamped(to: 0..<BlockLists.blockCount(disk.byteCount)))
        }
        return BlockLists.joined(changed)
    }

    func storedBlocks(ofDisk index: Int) throws -> [BlockRange] {
        try cut.storedBlocks(ofDisk: index)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws { try cut.read(blocks, ofDisk: index, into: destination) }

    func checkUnchanged() {}
}
