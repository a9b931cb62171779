import PackStore

/// How long opening a repository for writing waits while another process writes to it.
///
/// The lock is tried some times a second, and whoever tries first when it is free has it: those who
/// wait are served in no order.
public struct LockWaiting: Sendable {
    /// At most so long, zero to 2^40 seconds; nil: without an end.
    public var timeMax: Duration?
    /// Asked some times a second while it waits, on the thread that waits; false ends it, and
    /// opening fails with `cancelled`.
    public var goesOn: @Sendable () -> Bool

    /// Waits.
    ///
    /// - Parameters:
    ///   - timeMax: at most so long; nil: without an end.
    ///   - goesOn: asked while it waits; false ends it.
    public init(
        atMost timeMax: Duration?, while goesOn: @escaping @Sendable () -> Bool = { true }
    ) {
        self.timeMax = timeMax
        self.goesOn = goesOn
    }

    /// Fails when another process writes.
    ///
    /// A reader that brings the index up to date has the lock for moments: that much is waited for,
    /// a second at most.
    public static let none = LockWaiting(atMost: .zero)

    func check() throws(RepositoryError) {
        guard let timeMax else { return }
        try OptionCheck.check("timeMax", timeMax, in: .zero...OptionCheck.longest)
    }
}
