import GuestModel
import XenGuest

/// A domain with an action at chosen moments of its captures.
final class WatchedGuest: WritableGuest {
    /// Moments of a capture.
    enum Moment: String, CaseIterable, Sendable {
        /// The domain runs, pages are being copied.
        case precopy
        /// The domain has just been paused.
        case held
        /// The domain is paused, pages are being copied.
        case copying
        /// The domain is paused, everything is copied.
        case copied
        /// The domain runs again, nothing is published.
        case encoding
    }

    let base: XenDomain
    private let happen: @Sendable (Moment) throws -> Void
    private nonisolated(unsafe) var isHeld = false

    init(_ base: XenDomain, _ happen: @escaping @Sendable (Moment) throws -> Void) {
        self.base = base
        self.happen = happen
    }

    private func tell(_ moment: Moment) throws(GuestError) {
        do {
            try happen(moment)
        } catch {
            throw error as? GuestError ?? GuestError(code: .callFailed, message: "\(error)")
        }
    }

    func layout() throws(GuestError) -> GuestLayout { try base.layout() }
    var dirtyTracking: (any DirtyTracking)? { base.dirtyTracking }
    func claim() throws(GuestError) -> GuestClaim { try base.claim() }

    func pause() throws(GuestError) {
        try base.pause()
        isHeld = true
        do throws(GuestError) {
            try tell(.held)
        } catch {
            isHeld = false
            try base.resume()
            throw error
        }
    }

    func resume() throws(GuestError) {
        if isHeld { try? tell(.copied) }
        isHeld = false
        try base.resume()
        try? tell(.encoding)
    }

    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try tell(isHeld ? .copying : .precopy)
        try base.copyPages(runs, into: &destination)
    }

    func captureState() throws(GuestError) -> GuestState { try base.captureState() }
    func checkState(_ state: GuestState) throws(GuestError) { try base.checkState(state) }
    func adoptLayout(_ layout: GuestLayout) throws(GuestError) { try base.adoptLayout(layout) }
    func prepareState(_ state: GuestState) throws(GuestError) { try base.prepareState(state) }
    var startsZeroed: Bool { base.startsZeroed }
    func restoreState(_ state: GuestState) throws(GuestError) { try base.restoreState(state) }
    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        try base.writePages(runs, from: source)
    }
}
