package import GuestModel

extension Cancellation {
    /// Blocks until a time, or until this is cancelled.
    ///
    /// - Returns: false if this is cancelled.
    package func sleep(until time: ContinuousClock.Instant) -> Bool {
        let wakeup = Monitor(())
        let registration = register { wakeup.change { _ in } }
        defer { withExtendedLifetime(registration) {} }
        _ = wakeup.wait(atMost: time - ContinuousClock.now) { _ in isCancelled ? () : nil }
        return !isCancelled
    }
}
