// Disks of a guest that this process stops for a revert, but does not write itself, go back as a
// whole: what they will hold is written beside them while the guest runs, and takes their place
// while it stands still.
//
//   prepared   new contents exist beside the disks, equal to those of a cut or of now
//   written    they are the checkpoint's, and durable; a cut of them stands for the next capture
//   exchanged  the disks have the new contents; the old ones exist beside them
//   ended      what is beside the disks is gone

/// Disks whose contents can be exchanged while their guest stands still.
///
/// `CaptureSession.revert` drives it; calls come from one thread, and block. In contrast to
/// `RevertibleDisks`, nothing is compared in the pause, because what the disks hold then does not
/// matter.
public protocol ExchangeableDisks: DiskGroup {
    /// Makes new contents for all disks, beside them, while the guest runs.
    ///
    /// Notes in a journal what it creates. Throws if the exchange could not be made, with the
    /// remedy; nothing is then left.
    ///
    /// - Parameter cut: a cut of this group that stands, whose contents the new ones begin with, if
    ///   that is possible; otherwise, and if it is nil, they begin with what the disks hold now.
    func prepareExchange(from cut: (any DiskCut)?) throws(GuestError) -> any DiskExchange
}

/// New contents of all disks of a group.
public protocol DiskExchange: AnyObject, Sendable {
    /// The disks; an index names one of them below. New contents have the same size.
    var disks: [GuestDisk] { get }

    /// True if the new contents began with those of the cut that was given.
    var beginsWithCut: Bool { get }

    /// The blocks of the new contents that may hold anything but zeros, ascending and separated;
    /// called before the first write.
    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange]

    /// Fills a buffer with blocks of the new contents; bytes past the end of the disk are zero.
    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError)

    /// Writes blocks of the new contents; what is past the end of the disk is left out.
    func write(
        _ blocks: BlockRange, ofDisk index: Int, from source: UnsafeRawBufferPointer
    ) throws(GuestError)

    /// Makes the new contents durable.
    ///
    /// - Returns: a cut that holds the same, for the next capture to compare with; the caller owns
    ///   it.
    func finishWriting() throws(GuestError) -> any DiskCut

    /// Does what of `exchange` is possible while the disks have their old contents.
    ///
    /// Called in the pause, while the guest's devices end their requests. `exchange` or `unload`
    /// follows. The default does nothing.
    func load() throws(GuestError)

    /// Undoes `load`, also one that failed. The default does nothing.
    func unload() throws(GuestError)

    /// Puts the new contents in the place of the old ones. Called in the pause: it must be fast.
    ///
    /// When it throws, all disks have the old ones, unless the message says otherwise. No disk is
    /// suspended then.
    func exchange() throws(GuestError)

    /// Puts the old contents back, in the pause in which they were exchanged.
    func takeBack() throws(GuestError)

    /// Drops what is not needed any more: the old contents after an exchange, otherwise the new
    /// ones. Called once, while the guest runs.
    ///
    /// When it throws, what is left is in the journal, and is dropped later.
    func end() throws(GuestError)
}

extension DiskExchange {
    /// Does nothing.
    public func load() throws(GuestError) {}

    /// Does nothing.
    public func unload() throws(GuestError) {}
}
