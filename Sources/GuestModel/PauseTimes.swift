/// How long one pause of a guest took.
public struct PauseTimes: Hashable, Sendable {
    /// The time from the request to pause until the guest was paused.
    ///
    /// A Xen domain that suspends itself takes most of it, and runs meanwhile.
    public var request = Duration.zero
    /// The time from when the guest was paused until it was resumed.
    public var downtime = Duration.zero

    /// Creates a value as an engine or a guest measured it.
    public init(request: Duration = .zero, downtime: Duration = .zero) {
        self.request = request
        self.downtime = downtime
    }
}
