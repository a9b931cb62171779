package import GuestModel

extension Cancellation {
    /// Blocks until a time; returns false if it is cancelled before.
    package func sleep(until time: ContinuousClock.Instant) -> Bool {
        let wakeup = Monitor(())
        let registration = register { wakeup.change { _ in } }
        defer { withExtendedLifetime(registration) {} }
        _ = wakeup.wait(atMost: time - ContinuousClock.now) { _ in isCancelled ? () : nil }
        return !isCancelled
    }
}
