public import GuestModel

/// A guest to be checked, and what the checks need to read and write its memory from within.
///
/// Each check gets a new one and leaves it damaged: pages are overwritten, and state is restored
/// without the memory that belongs to it. Closures are called on the thread that runs the checks.
public struct ConformanceSubject {
    /// The guest, which is running, has no owner, and has no running log.
    public var guest: any Guest
    /// Writes 4096 bytes to a page as the guest itself would; called while it runs.
    public var write: (PageFrameNumber, [UInt8]) throws -> Void
    /// Reads a page as the guest itself would; called while it runs and while it is paused.
    public var read: (PageFrameNumber) throws -> [UInt8]
    /// Frames that may be passed to `write`; nil: all of the layout.
    public var frames: [PageFrameNumber]?
    /// Gives the guest a chance to write to some page of its own accord; nil: checks of the pause
    /// are skipped.
    ///
    /// Called while it runs, and while it is paused, when it must do nothing.
    public var work: (() throws -> Void)?
    /// Makes another object for the same guest, or fails with `busy`; nil: there can be none.
    public var another: (() throws -> any Guest)?
    /// Ends the dirty log without the guest's knowledge, as another tool would; nil: that cannot
    /// happen.
    public var endLog: (() throws -> Void)?

    /// Makes a subject without the optional parts.
    public init(
        guest: any Guest, write: @escaping (PageFrameNumber, [UInt8]) throws -> Void,
        read: @escaping (PageFrameNumber) throws -> [UInt8]
    ) {
        self.guest = guest
        self.write = write
        self.read = read
    }
}
