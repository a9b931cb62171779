/// Anything with page-addressed memory that can be held still: what the engine captures.
///
/// The engine calls one guest from one thread at a time. Calls may block for as long as the kernel
/// or hypervisor takes; none is made on a thread of Swift's cooperative pool.
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
}

extension Guest {
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

/// What a dirty log knows after it was read.
public enum DirtyKnowledge: Hashable, Sendable {
    /// Every page written since the last take is in the set.
    case complete
    /// Pages may be missing (Xen `ENOMEM`, a tracker restarted): every page must be compared.
    case unknown
}

/// A log of the pages that a running guest writes.
///
/// Called on the engine's capture thread, one call at a time.
public protocol DirtyTracking: AnyObject, Sendable {
    /// Begins to log. What was written before is not in the log: the caller copies everything once,
    /// after this call. Calling it again is harmless and loses nothing.
    func start() throws(GuestError)

    /// Adds the pages written since the last take (or since `start`) to `bitmap` and clears the log
    /// in the same step: a write either is in this set or will be in the next one.
    ///
    /// When it throws, the log may have been cleared: the caller treats the set as unknown.
    ///
    /// - Parameters:
    ///   - bitmap: the set that grows; never shrinks.
    ///   - isFinal: true in the pause. Xen's `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`.
    func takeDirty(into bitmap: inout DirtyBitmap, isFinal: Bool) throws(GuestError)
        -> DirtyKnowledge

    /// Adds the pages written since the last take to `bitmap`; the log need not be cleared.
    ///
    /// For a revert, which writes these pages next: where a logged page can be written without
    /// being logged again, not clearing saves one fault a page. The default takes the log.
    func readDirty(into bitmap: inout DirtyBitmap, isFinal: Bool) throws(GuestError)
        -> DirtyKnowledge

    /// How many pages the log holds now, without clearing it.
    ///
    /// The engine decides by it when to pause. It may be an estimate.
    func peekDirtyCount() throws(GuestError) -> Int

    /// Ends logging; the guest runs at full speed again. Harmless when not started.
    func stop()
}

extension DirtyTracking {
    /// Takes the log.
    public func readDirty(
        into bitmap: inout DirtyBitmap, isFinal: Bool
    ) throws(GuestError) -> DirtyKnowledge {
        try takeDirty(into: &bitmap, isFinal: isFinal)
    }
}
