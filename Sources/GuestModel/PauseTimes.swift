/// The durations of one pause of a guest.
public struct PauseTimes: Hashable, Sendable {
    /// From the request to pause until the guest was paused.
    ///
    /// For a domain of Xen that suspends itself it is the time that this takes; the domain runs for
    /// most of it.
    public var request = Duration.zero
    /// How long it was paused.
    public var downtime = Duration.zero

    /// Values as a guest reports them.
    public init(request: Duration = .zero, downtime: Duration = .zero) {
        self.request = request
        self.downtime = downtime
    }
}
