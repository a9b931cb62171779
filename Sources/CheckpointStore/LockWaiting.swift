import PackStore

/// How long opening a repository for writing waits while another process is writing to it.
///
/// The lock is tried several times a second, and the first process to try it when it is free gets
/// it: waiting processes are served in no particular order.
public struct LockWaiting: Sendable {
    /// Maximum time to wait, zero to 2^40 seconds; nil: no limit.
    public var timeMax: Duration?

    /// Creates a waiting policy.
    ///
    /// - Parameter timeMax: maximum time to wait; nil: no limit.
    public init(atMost timeMax: Duration?) {
        self.timeMax = timeMax
    }

    /// Fails if another process is writing.
    ///
    /// A reader that brings the index up to date holds the lock briefly: opening waits for that,
    /// for at most a second.
    public static let none = LockWaiting(atMost: .zero)

    func check() throws(RepositoryError) {
        guard let timeMax else { return }
        try OptionCheck.check("timeMax", timeMax, in: .zero...OptionCheck.longest)
    }
}
