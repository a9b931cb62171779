/// A disk as its guest sees it.
public struct GuestDisk: Hashable, Sendable {
    /// The name by which the guest's configuration knows it, such as `xvda`.
    ///
    /// 1 to 255 bytes of letters, digits and `._-:@+`, not beginning with `-`, and not `memory`; a
    /// capture refuses other names.
    public let name: String
    /// Its size in bytes: a multiple of the block size, at most 16 TiB.
    public let byteCount: UInt64
    /// Its logical block size in bytes: 512 or 4096.
    public let sectorByteCount: Int

    /// Describes a disk.
    public init(name: String, byteCount: UInt64, sectorByteCount: Int = 512) {
        self.name = name
        self.byteCount = byteCount
        self.sectorByteCount = sectorByteCount
    }

    /// Number of blocks of 4 KiB, the last of which may extend past the end of the disk.
    public var blockCount: UInt64 {
        byteCount / UInt64(Page.byteCount) + (byteCount % UInt64(Page.byteCount) == 0 ? 0 : 1)
    }
}

/// Consecutive blocks of 4 KiB of a disk, by number from its beginning.
public typealias BlockRange = Range<UInt64>

/// The disks of a guest that are cut together, at the instant of its checkpoint: a *consistency
/// group*.
///
/// The engine drives it through one capture after another:
///
/// 1. `prepareCut()`, while the guest runs: does all that may take long or fail.
/// 2. `DiskCut.cut(within:)`, in the pause. Nothing that the guest issues later is in the cut;
///    every write that the guest has seen completed is.
/// 3. `changedBlocks`, `storedBlocks` and `read`, while the guest runs again.
/// 4. `release()`, once a later cut takes its place or the capture failed.
///
/// A cut stands until the next one was read, because what changed is known by comparing the two. So
/// at most two stand at a time.
///
/// The engine calls one group from one thread at a time, and `read` of a cut from several. Calls
/// may block; only `cut` does so in the pause. An error fails the capture with the guest's code,
/// and the guest runs on. `ConformanceSuite.runDisks` checks a group.
public protocol DiskGroup: AnyObject, Sendable {
    /// The disks that the next cut will contain, each with a name of its own.
    ///
    /// Disks may be added, removed and resized between captures. Blocks.
    func disks() throws(GuestError) -> [GuestDisk]

    /// Prepares a cut of all disks: checks room and limits, and notes in a journal what the cut
    /// will create, so that leftovers of a crash are found.
    ///
    /// Called once for each capture, before the pause. Blocks. Throws if the cut could not be made,
    /// with the remedy in the message; nothing is then left to release.
    func prepareCut() throws(GuestError) -> any DiskCut

    /// The cut with a name, made earlier by this or another process, if it still stands and can be
    /// read; otherwise nil, and the next capture compares every block that may be stored.
    ///
    /// Called when a session begins. Blocks. The caller owns the cut, and releases it.
    func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)?
}

/// Disks that can be put back to a checkpoint together with the memory: those to which only the
/// guest's own process writes, such as files of an embedding program.
///
/// `CaptureSession.revert` drives it while the guest is paused: after a cut of the disks as they
/// are, it sets the sizes that differ and writes the blocks that differ. Should a call fail, it
/// puts back from the cut what it had written before, by the same calls, so a call that failed may
/// have done a part of its work. What the process has read from the disks, such as a cache, is its
/// own to drop, in `WritableGuest.restoreState`.
///
/// Calls come from one thread, and may block.
public protocol RevertibleDisks: DiskGroup {
    /// Sets the size of a disk; what is added reads as zeros.
    ///
    /// - Parameters:
    ///   - disk: the name of one that is there.
    ///   - byteCount: a size that it had before: in a checkpoint, or at the cut.
    /// - Throws: `unsupported` if its size never changes, as that of a device.
    func resize(_ disk: String, to byteCount: UInt64) throws(GuestError)

    /// Writes blocks of a disk. The next cut contains them; they need not be durable.
    ///
    /// - Parameters:
    ///   - blocks: the blocks, all of which begin within the disk.
    ///   - disk: its name.
    ///   - source: 4096 bytes for each block; those past the end of the disk are left out.
    func write(
        _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
    ) throws(GuestError)
}

/// How long the parts of a cut took.
public struct DiskCutTimes: Hashable, Sendable {
    /// The time spent waiting for requests that were under way.
    public var drain = Duration.zero
    /// The time spent making the cut, without that.
    public var cut = Duration.zero

    /// Creates a value as measured.
    public init(drain: Duration = .zero, cut: Duration = .zero) {
        self.drain = drain
        self.cut = cut
    }
}

/// One cut of all disks of a group: prepared before the pause, made in it, and read after it.
public protocol DiskCut: AnyObject, Sendable {
    /// The disks, in the order of the group; an index names one of them below.
    var disks: [GuestDisk] { get }

    /// A name by which `DiskGroup.standingCut` finds it again; empty if nothing can.
    ///
    /// It is stored in the checkpoint, and has at most 4096 bytes. Valid once the cut was made.
    var name: String { get }

    /// Makes the cut of all disks. Called at most once, in the pause, so it must be fast.
    ///
    /// Blocks. When it throws, no disk is suspended, and the guest can continue; the caller still
    /// calls `release`.
    ///
    /// - Parameter budget: a cut that takes longer is given up with `timedOut`, if that is
    /// possible.
    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes

    /// The number of requests to a disk that the guest had made at the cut, and that were not
    /// answered; nil if that is unknown.
    ///
    /// Stored in the checkpoint (`Volume.requestsUnderWay`). Called once the cut was made, while
    /// the guest may run. The default is nil.
    func requestsUnderWay(ofDisk index: Int) -> Int?

    /// The blocks in which a disk may differ from an earlier cut, ascending and separated; nil if
    /// that is unknown, and then every block that may be stored is compared.
    ///
    /// A block that differs and is not named is lost, so name too many rather than too few. The
    /// block in which a disk ended, or ends now, need not be named if only the size changed.
    /// Blocks.
    ///
    /// - Parameters:
    ///   - index: the disk.
    ///   - earlier: a cut of the same group that still stands.
    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]?

    /// The blocks of a disk that may hold anything but zeros, ascending and separated.
    ///
    /// Blocks that are not named are taken for zeros without being read.
    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange]

    /// Fills a buffer with blocks of a disk; bytes past its end are zero.
    ///
    /// Called from several threads. Blocks.
    ///
    /// - Parameters:
    ///   - blocks: the blocks.
    ///   - index: the disk.
    ///   - destination: 4096 bytes for each block.
    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError)

    /// The checkpoint exists: from now on the cut is only compared with, by `changedBlocks` of a
    /// later one, until it is released.
    ///
    /// A provider that is short of room may give up such a cut; it then calls every change since
    /// it unknown. The default does nothing.
    func readingEnded()

    /// Drops the cut, or what was prepared for it. Called once, whether or not the cut was made.
    ///
    /// Blocks. When it throws, what is left is in the journal, and is dropped later.
    func release() throws(GuestError)
}

extension DiskCut {
    /// Does nothing.
    public func readingEnded() {}

    /// Nil: it is not known how many requests were under way.
    public func requestsUnderWay(ofDisk index: Int) -> Int? { nil }
}
