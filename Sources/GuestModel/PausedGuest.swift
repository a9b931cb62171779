/// A guest that is held still, until this value is consumed.
///
/// It exists so that no path can forget the guest: leaving a scope by any error resumes it.
public struct PausedGuest: ~Copyable {
    // nil once resumed, so that `deinit` has nothing left to do.
    private var guest: (any Guest)?

    /// Holds the guest still.
    public init(pausing guest: any Guest) throws(GuestError) {
        try guest.pause()
        self.guest = guest
    }

    /// Lets the guest run on, and reports if it would not.
    ///
    /// A first failure is tried once more: a hypervisor answers EBUSY or EINTR at times.
    public consuming func resume() throws(GuestError) {
        guard let guest = self.guest else { return }
        self.guest = nil
        try PausedGuest.resume(guest)
    }

    deinit {
        // The error that left the scope is the one reported; a guest that will not resume
        // after two tries has nobody else to tell.
        if let guest { try? PausedGuest.resume(guest) }
    }

    private static func resume(_ guest: any Guest) throws(GuestError) {
        do {
            try guest.resume()
        } catch {
            try guest.resume()
        }
    }
}
