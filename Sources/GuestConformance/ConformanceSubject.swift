public import GuestModel

/// A guest to be checked, and what the checks need besides to see and to write its memory.
///
/// Each check gets a new one and spoils it: pages are overwritten, and state is put back without
/// the memory that belongs to it. Closures are called on the thread that runs the checks.
public struct ConformanceSubject {
    /// The guest, which runs, has no owner, and logs nothing.
    public var guest: any Guest
    /// Writes 4096 bytes to a page as the guest itself would: called while it runs.
    public var write: (PageFrameNumber, [UInt8]) throws -> Void
    /// What the guest itself finds in a page: called while it runs and while it is held.
    public var read: (PageFrameNumber) throws -> [UInt8]
    /// Frames that `write` may be given; nil: all of the layout.
    public var frames: [PageFrameNumber]?
    /// Gives the guest a chance to write to some page by its own will; nil: checks of the pause are
    /// skipped.
    ///
    /// Called while it runs, and while it is held, when it must do nothing.
    public var work: (() throws -> Void)?
    /// Makes another object that stands for the same guest, or fails with `busy`; nil: there can be
    /// none.
    public var another: (() throws -> any Guest)?
    /// Ends the dirty log behind the guest's back, as another tool would; nil: nobody can.
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
