import Foundation
import Measuring
import Synchronization
import Varve

/// Captures at a fixed pace, as a service does: each begins on time even if the previous one is not
/// yet on the disk.
struct Heartbeat {
    struct Outcome {
        /// Seconds of each pause.
        var pauses: [Double] = []
        /// Seconds from each `begin` to its checkpoint being durable.
        var published: [Double] = []
        /// Captures that began more than one interval after their time.
        var lateCount = 0
        /// From the first `begin` until the last checkpoint is durable.
        var seconds = 0.0
        /// Bytes of all checkpoints in the repository.
        var storedByteCount = 0.0
    }

    private struct Published: Sendable {
        var times: [Double] = []
        var byteCount = 0
        var failure: String?
    }

    private let subject: CaptureSubject
    private let interval: Duration
    private let dirtyCount: Int

    init(_ subject: CaptureSubject, interval: Duration, dirtyCount: Int) {
        self.subject = subject
        self.interval = interval
        self.dirtyCount = dirtyCount
    }

    /// Runs for this time; captures that have not begun by then are skipped.
    func run(for duration: Duration) throws -> Outcome {
        var outcome = Outcome()
        let waiting = DispatchQueue(label: "published")
        let collector = Collector()
        let clock = ContinuousClock()
        let start = clock.now
        for number in 0..<Int(duration / interval) where clock.now - start < duration {
            let due = start + interval * number
            if clock.now < due { Heartbeat.sleep(due - clock.now) }
            let begun = clock.now
            if begun - due > interval { outcome.lateCount += 1 }
            subject.write(pages: dirtyCount)
            let pending = try subject.session.begin()
            outcome.pauses.append(pending.pauseTimes.downtime.seconds)
            waiting.async { collector.wait(pending, since: begun) }
        }
        waiting.sync {}
        outcome.seconds = (clock.now - start).seconds
        let all = collector.all
        if let failure = all.failure { throw Child.Failure(description: failure) }
        outcome.published = all.times
        outcome.storedByteCount = Double(all.byteCount)
        return outcome
    }

    private static func sleep(_ duration: Duration) {
        Thread.sleep(forTimeInterval: max(0, duration.seconds))
    }

    /// Records the captures' results; on the waiting queue.
    private final class Collector: Sendable {
        private let state = Mutex(Published())

        var all: Published { state.withLock { $0 } }

        func wait(_ pending: PendingCapture, since begun: ContinuousClock.Instant) {
            do {
                let checkpoint = try pending.wait().checkpoint
                let seconds = (ContinuousClock.now - begun).seconds
                state.withLock {
                    $0.times.append(seconds)
                    $0.byteCount += checkpoint.addedByteCount
                }
            } catch {
                state.withLock { $0.failure = "\(error)" }
            }
        }
    }
}
