/// Anything with page-addressed memory that can be held still: what the engine captures.
///
/// The engine calls one guest from one thread at a time. Calls may block for as long as the kernel
/// or hypervisor takes; none is made on a thread of Swift's cooperative pool.
///
/// The product `GuestConformance` checks a guest of your own against what is said here.
public protocol Guest: AnyObject, Sendable {
    /// The frames that exist now.
    ///
    /// Asked once at the start of a capture and once more in the pause, where it must be cheap. A
    /// frame that went and came back between two captures must be in the dirty log.
    func layout() throws(GuestError) -> GuestLayout

    /// How this guest learns which pages changed; nil if it cannot, and every capture compares all.
    var dirtyTracking: (any DirtyTracking)? { get }

    /// Holds the guest still: when this returns, no page changes until `resume()`.
    ///
    /// Called by `PausedGuest` alone. When it throws, the guest must be running as before.
    func pause() throws(GuestError)

    /// Lets the guest run on. Called once for each `pause()` that returned, on every path.
    ///
    /// When it throws, the engine calls it once more and then reports the failure.
    func resume() throws(GuestError)

    /// Copies pages out of the guest, run after run, without a gap between them.
    ///
    /// Called both while the guest runs (precopy: a torn page is fine, its dirty bit is set) and in
    /// the pause. It must not allocate in proportion to the pages.
    ///
    /// - Parameters:
    ///   - runs: ascending runs, all in the layout.
    ///   - destination: exactly as long as the runs together.
    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError)

    /// The state besides memory. Called in the pause, so it must be quick.
    func captureState() throws(GuestError) -> GuestState

    /// In which way a state is known to be another guest's than this one's; nil if it may be this
    /// one's.
    ///
    /// Asked once as a session begins, with the state of the lineage's newest checkpoint, while the
    /// guest runs. The answer is the part of a sentence: "its newest checkpoint is of ...".
    func difference(fromHistory state: GuestState) -> String?

    /// Makes the caller the guest's only owner until the claim is released.
    ///
    /// A `CaptureSession` calls it once, before anything else, and releases the claim when it is
    /// closed. While the guest has an owner it throws `busy`, with what to do about it.
    ///
    /// The default claims this object. A guest of which two objects can exist claims what they
    /// share: its memory (`GuestClaim.init(of:memory:)`) or, between processes, a lock file as
    /// `XenDomain` has. A guest that wraps another one returns that one's claim.
    func claim() throws(GuestError) -> GuestClaim
}

extension Guest {
    /// Claims this object.
    public func claim() throws(GuestError) -> GuestClaim { try GuestClaim(of: self) }

    /// Nil: any history may be this guest's.
    public func difference(fromHistory state: GuestState) -> String? { nil }
}

/// A guest that can be put back to a checkpoint in place, or filled from one.
public protocol WritableGuest: Guest {
    /// Throws if the guest could not take such state, before anything of it is changed.
    ///
    /// Called while the guest runs.
    func checkState(_ state: GuestState) throws(GuestError)

    /// Makes the guest's layout the given one before pages are written.
    ///
    /// Called in the pause for a revert, and before any page for a restore. A guest whose layout is
    /// fixed throws `sizeMismatch` if it differs and changes nothing.
    func adoptLayout(_ layout: GuestLayout) throws(GuestError)

    /// Puts back what must be so before any page is written.
    ///
    /// Called in the pause for a revert, after `adoptLayout`; never for a restore.
    func prepareState(_ state: GuestState) throws(GuestError)

    /// True if every page that the engine does not write reads as zero after `adoptLayout`: a new
    /// guest. A restore then skips zero pages.
    var startsZeroed: Bool { get }

    /// Copies pages into the guest, run after run, without a gap between them.
    ///
    /// For a restore it may be called from several threads at once, never for the same page.
    ///
    /// - Parameters:
    ///   - runs: ascending runs, all in the layout.
    ///   - source: exactly as long as the runs together; verified already.
    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError)

    /// Puts state besides memory back, after the pages. Called in the pause for a revert.
    func restoreState(_ state: GuestState) throws(GuestError)

    /// The memory of some frames, one after the other, if this process can reach it; else nil.
    ///
    /// What the engine writes there is like `writePages`: the log sees it. It stays valid until the
    /// layout changes. Asked for each run of pages, from several threads at once: it must be quick.
    func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer?
}

extension WritableGuest {
    /// Takes any state.
    public func checkState(_ state: GuestState) throws(GuestError) {}

    /// Does nothing.
    public func prepareState(_ state: GuestState) throws(GuestError) {}

    /// Nil: pages are copied by `writePages`.
    public func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? { nil }
}
