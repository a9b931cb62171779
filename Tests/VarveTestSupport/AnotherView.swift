public import GuestModel

/// A second object for one guest, which claims only itself: like an embedder's guest that does not
/// know about owners.
///
/// Everything else is the guest's own, including its dirty log.
public final class AnotherView: WritableGuest {
    private let base: any WritableGuest

    /// Creates a view of a guest.
    public init(of base: any WritableGuest) { self.base = base }

    /// The guest's.
    public func layout() throws(GuestError) -> GuestLayout { try base.layout() }
    /// The guest's.
    public var dirtyTracking: (any DirtyTracking)? { base.dirtyTracking }
    /// The guest's.
    public func pause() throws(GuestError) { try base.pause() }
    /// The guest's.
    public func resume() throws(GuestError) { try base.resume() }
    /// The guest's.
    public func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try base.copyPages(runs, into: &destination)
    }
    /// The guest's.
    public func captureState() throws(GuestError) -> GuestState { try base.captureState() }
    /// The guest's.
    public func difference(fromHistory state: GuestState) -> String? {
        base.difference(fromHistory: state)
    }
    /// The guest's.
    public func checkState(_ state: GuestState) throws(GuestError) { try base.checkState(state) }
    /// The guest's.
    public func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        try base.adoptLayout(layout)
    }
    /// The guest's.
    public func prepareState(_ state: GuestState) throws(GuestError) {
        try base.prepareState(state)
    }
    /// The guest's.
    public var startsZeroed: Bool { base.startsZeroed }
    /// The guest's.
    public func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        try base.writePages(runs, from: source)
    }
    /// The guest's.
    public func restoreState(_ state: GuestState) throws(GuestError) {
        try base.restoreState(state)
    }
    /// The guest's.
    public func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        base.mappedMemory(of: range)
    }
}
