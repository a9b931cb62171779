/// Anything with page-addressed memory that can be paused: what the engine captures.
///
/// The engine calls one guest from one thread at a time: the thread that made the call, or, for its
/// `async` form, a thread of the library. Calls may block for as long as the kernel or hypervisor
/// takes.
///
/// The product `GuestConformance` checks your own guest against these requirements.
public protocol Guest: AnyObject, Sendable {
    /// The frames that exist now.
    ///
    /// Called once at the start of a capture and once more in the pause, where it must be cheap. A
    /// frame that is removed and added again between two captures must be in the dirty log.
    func layout() throws(GuestError) -> GuestLayout

    /// Finds which pages changed; nil if the guest cannot, and every capture compares all pages.
    var dirtyTracking: (any DirtyTracking)? { get }

    /// Pauses the guest: when this returns, no page changes until `resume()`.
    ///
    /// Called only by `PausedGuest`. When it throws, the guest must be running as before.
    func pause() throws(GuestError)

    /// Lets the guest continue. Called once for each `pause()` that returned, on every path.
    ///
    /// When it throws, the engine calls it once more and then reports the failure.
    func resume() throws(GuestError)

    /// How long the last pause took, if the guest knows it better than who called `pause` and
    /// `resume`; the default is nil.
    ///
    /// Called after `resume` has returned. A guest that cleans up in `resume` after it runs again
    /// does not count that.
    var pauseTimes: PauseTimes? { get }

    /// Copies pages out of the guest, one run after another, without gaps.
    ///
    /// Called both while the guest runs (precopy: a torn page is fine, its dirty bit is set) and in
    /// the pause. Its allocations must not grow with the number of pages.
    ///
    /// - Parameters:
    ///   - runs: ascending runs, all in the layout.
    ///   - destination: exactly as long as all runs together.
    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError)

    /// Returns the state other than memory. Called in the pause, so it must be fast.
    func captureState() throws(GuestError) -> GuestState

    /// How a state is known to belong to another guest; nil if it may be this guest's.
    ///
    /// Called once as a session begins, with the state of the lineage's newest checkpoint, while
    /// the guest runs. The result completes a sentence: "its newest checkpoint is of ...".
    func difference(fromHistory state: GuestState) -> String?

    /// Makes the caller the guest's only owner until the claim is released.
    ///
    /// A `CaptureSession` calls it once, before anything else, and releases the claim when it is
    /// closed. While the guest has an owner it throws `busy`, with the remedy.
    ///
    /// The default claims this object. A guest that several objects can represent claims what they
    /// share: its memory (`GuestClaim.init(of:memory:)`) or, between processes, a lock file as
    /// `XenDomain` does. A guest that wraps another one returns that guest's claim.
    func claim() throws(GuestError) -> GuestClaim
}

extension Guest {
    /// Claims this object.
    public func claim() throws(GuestError) -> GuestClaim { try GuestClaim(of: self) }

    /// Nil: the engine measures it.
    public var pauseTimes: PauseTimes? { nil }

    /// Nil: any history may be this guest's.
    public func difference(fromHistory state: GuestState) -> String? { nil }
}

/// A guest that can be reverted to a checkpoint in place, or filled from one.
public protocol WritableGuest: Guest {
    /// Throws if the guest could not accept this state, before anything is changed.
    ///
    /// Called while the guest runs.
    func checkState(_ state: GuestState) throws(GuestError)

    /// Changes the guest's layout to the given one before pages are written.
    ///
    /// Called in the pause for a revert, and before any page for a restore. A guest whose layout is
    /// fixed throws `sizeMismatch` if it differs and changes nothing.
    func adoptLayout(_ layout: GuestLayout) throws(GuestError)

    /// Stops the guest for a revert.
    ///
    /// Unlike for a capture, what the guest is doing is thrown away, so it may be stopped without
    /// its cooperation, or be stopped already. Ended by `resume`, whatever was done in between; by
    /// default this is `pause`.
    func pauseForRevert() throws(GuestError)

    /// Asks the devices to end every access to memory, without waiting for it.
    ///
    /// Called in the pause for a revert, before `stopDevices`; what else has to be done is done
    /// between. The default returns false.
    ///
    /// - Returns: true if devices may write until `stopDevices` returns; false if it has nothing to
    ///   wait for.
    func beginStoppingDevices() throws(GuestError) -> Bool

    /// Ends every access to memory that is not the guest's own, as by devices.
    ///
    /// Called in the pause for a revert, before the log is read the last time: what devices have
    /// written until then is in it. The default does nothing.
    func stopDevices() throws(GuestError)

    /// Notes what a revert has found, in case this process dies before it has ended.
    ///
    /// Called in the pause, after `stopDevices` and before anything is changed. The default notes
    /// nothing.
    func noteRevert(_ found: NotedRevert)

    /// What a process noted that died in a revert, if the guest has not run since; nil: all of the
    /// memory and of the disks is compared.
    ///
    /// Called as a session begins, and before the pause. The default is nil.
    func notedRevert() -> NotedRevert?

    /// Restores the state that must be in place before any page is written.
    ///
    /// Called in the pause for a revert, after `adoptLayout`; never for a restore. If this, or what
    /// follows, fails before a page was written, `resume` brings the guest back as it was.
    func prepareState(_ state: GuestState) throws(GuestError)

    /// True if every page that the engine does not write reads as zero after `adoptLayout`, as in a
    /// new guest. A restore then skips zero pages.
    var startsZeroed: Bool { get }

    /// Copies pages into the guest, one run after another, without gaps.
    ///
    /// For a restore it may be called from several threads at once, never for the same page.
    ///
    /// - Parameters:
    ///   - runs: ascending runs, all in the layout.
    ///   - source: exactly as long as all runs together; already verified.
    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError)

    /// Restores the state other than memory, after the pages. Called in the pause for a revert.
    func restoreState(_ state: GuestState) throws(GuestError)

    /// Those of some frames that exist now.
    ///
    /// Called while the guest runs, after a revert. The default asks for the whole layout; a guest
    /// that has to search for it may ask for these frames only.
    func existing(_ frames: DirtyBitmap) throws(GuestError) -> DirtyBitmap

    /// Waits until the devices work again, after a revert, while the guest runs.
    ///
    /// - Returns: names of those that do not, after a time that depends on the guest.
    func awaitDevices() -> [String]

    /// Calls `body` with the memory of each page of some runs, in their order, for it to be read
    /// and changed.
    ///
    /// Called in the pause for a revert, after `prepareState`, if `mappedMemory` has none of these
    /// pages. A guest that can map its pages for a moment need not be copied from and to; others
    /// return false, which is the default. What is changed counts as `writePages`: the log records
    /// it.
    ///
    /// - Parameters:
    ///   - runs: ascending runs, all in the layout.
    ///   - body: must not be called after this has returned.
    /// - Returns: false if the guest cannot do it; `body` was not called then.
    func changePages(
        _ runs: Span<PageRange>,
        _ body: (PageFrameNumber, UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) -> Bool

    /// The memory of some frames, contiguous, if this process can access it; else nil.
    ///
    /// Writes by the engine there count as `writePages`: the log records them. It stays valid until
    /// the layout changes. Called for each run of pages, from several threads at once: it must be
    /// fast.
    func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer?
}

extension WritableGuest {
    /// Those in the layout.
    public func existing(_ frames: DirtyBitmap) throws(GuestError) -> DirtyBitmap {
        var frames = frames
        frames.formIntersection(DirtyBitmap(try layout()))
        return frames
    }

    /// Accepts any state.
    public func checkState(_ state: GuestState) throws(GuestError) {}

    /// Pauses it.
    public func pauseForRevert() throws(GuestError) { try pause() }

    /// False: there is nothing to wait for.
    public func beginStoppingDevices() throws(GuestError) -> Bool { false }

    /// Does nothing.
    public func stopDevices() throws(GuestError) {}

    /// False: its pages are copied, and written by `writePages`.
    public func changePages(
        _ runs: Span<PageRange>,
        _ body: (PageFrameNumber, UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) -> Bool { false }

    /// Notes nothing.
    public func noteRevert(_ found: NotedRevert) {}

    /// Nil: nothing was noted.
    public func notedRevert() -> NotedRevert? { nil }

    /// Does nothing.
    public func prepareState(_ state: GuestState) throws(GuestError) {}

    /// None: there are no devices.
    public func awaitDevices() -> [String] { [] }

    /// Nil: pages are copied by `writePages`.
    public func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? { nil }
}

/// What a revert has found before it changes anything.
public struct NotedRevert: Equatable, Sendable {
    /// The checkpoint that the guest goes back to.
    public let checkpoint: CheckpointID
    /// The pages that are compared; no other one differs from the checkpoint.
    public let pages: DirtyBitmap
    /// The guest's layout, which is the checkpoint's.
    public let layout: GuestLayout
    /// The name of a cut that holds the checkpoint's disks; empty if there is none.
    public let diskCut: String

    /// Creates a value.
    public init(
        checkpoint: CheckpointID, pages: DirtyBitmap, layout: GuestLayout, diskCut: String = ""
    ) {
        self.checkpoint = checkpoint
        self.pages = pages
        self.layout = layout
        self.diskCut = diskCut
    }
}
