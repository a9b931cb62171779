/// A guest that is paused until this value is consumed.
///
/// It ensures that the guest is resumed: leaving a scope by any error resumes it.
public struct PausedGuest: ~Copyable {
    // nil once resumed, so that `deinit` has nothing left to do.
    private var guest: (any Guest)?

    /// Pauses the guest.
    public init(pausing guest: any Guest) throws(GuestError) {
        try guest.pause()
        self.guest = guest
    }

    /// Stops a guest for a revert.
    public init(stopping guest: any WritableGuest) throws(GuestError) {
        try guest.pauseForRevert()
        self.guest = guest
    }

    /// Resumes the guest, and throws if that fails.
    ///
    /// A failure is retried once: a hypervisor sometimes returns EBUSY or EINTR.
    public consuming func resume() throws(GuestError) {
        guard let guest = self.guest else { return }
        self.guest = nil
        try PausedGuest.resume(guest)
    }

    deinit {
        // The error that left the scope is the one reported; if the guest does not resume after two
        // tries, there is no caller left to tell.
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
