import CoreMetrics
import Synchronization
import Varve

/// The metrics of a service.
final class ServiceMetrics: Sendable {
    private static let help = [
        "varve_added_bytes_total": "Bytes that checkpoints added to the repository.",
        "varve_checkpoints_total": "Checkpoints that became durable.",
        "varve_dirty_pages": "Pages that were dirty in the newest checkpoint.",
        "varve_domain_up": "1 while the domain runs, 0 while its service waits for it.",
        "varve_downtime_seconds": "How long the domain did not run for a checkpoint.",
        "varve_failures_total": "Captures, starts of captures and thinnings that failed.",
        "varve_lag_seconds": "How much later than due the newest checkpoint began.",
        "varve_last_checkpoint_timestamp_seconds": "When the newest checkpoint was taken.",
    ]

    private let backend = PrometheusMetrics(help: ServiceMetrics.help)
    private let labels: [(String, String)]
    private let path: String?
    private let lastCheckpoint: Gauge
    private let downtime: CoreMetrics.Timer
    private let dirtyPages: Gauge
    private let addedBytes: Counter
    private let lag: Gauge
    private let checkpoints: Counter
    private let domainUp: Gauge
    private let journal: ServiceJournal

    private struct State {
        var written: ContinuousClock.Instant?
        var isChanged = true
        var hasFailed = false
    }
    private let state = Mutex(State())

    /// Creates metrics.
    ///
    /// - Parameters:
    ///   - domain: the label of all of them.
    ///   - path: the file; nil for none.
    init(ofDomain domain: String, path: String?, journal: ServiceJournal) {
        labels = [("domain", domain)]
        self.path = path
        self.journal = journal
        lastCheckpoint = Gauge(
            label: "varve_last_checkpoint_timestamp_seconds", dimensions: labels, factory: backend)
        downtime = CoreMetrics.Timer(
            label: "varve_downtime_seconds", dimensions: labels, factory: backend)
        dirtyPages = Gauge(label: "varve_dirty_pages", dimensions: labels, factory: backend)
        addedBytes = Counter(
            label: "varve_added_bytes_total", dimensions: labels, factory: backend)
        lag = Gauge(label: "varve_lag_seconds", dimensions: labels, factory: backend)
        checkpoints = Counter(
            label: "varve_checkpoints_total", dimensions: labels, factory: backend)
        domainUp = Gauge(label: "varve_domain_up", dimensions: labels, factory: backend)
    }

    /// The metrics as they are now.
    var text: String { backend.text }

    /// The newest checkpoint that there is when the service begins.
    func resumed(atNanoseconds time: Int64) {
        lastCheckpoint.record(ServiceMetrics.seconds(time))
        changed()
    }

    /// Seconds since 1970; nanoseconds have more digits than a `Double`.
    private static func seconds(_ nanoseconds: Int64) -> Double {
        Double(nanoseconds / 1_000_000_000) + Double(nanoseconds % 1_000_000_000) / 1e9
    }

    func note(_ taken: TakenCheckpoint) {
        lastCheckpoint.record(ServiceMetrics.seconds(taken.timeNanoseconds))
        downtime.recordNanoseconds(Int64(taken.downtime.microseconds) * 1000)
        dirtyPages.record(taken.dirtyPageCount)
        addedBytes.increment(by: taken.addedByteCount)
        lag.record(Double(taken.lateness.microseconds) / 1e6)
        checkpoints.increment()
        changed()
    }

    func isUp(_ isUp: Bool) {
        domainUp.record(isUp ? 1 : 0)
        changed()
    }

    func failed(_ reason: String) {
        Counter(
            label: "varve_failures_total", dimensions: labels + [("reason", reason)],
            factory: backend
        ).increment()
        changed()
    }

    private func changed() { state.withLock { $0.isChanged = true } }

    /// Writes the file if it has changed, at most once a second.
    ///
    /// A failure is reported once, until it can be written.
    func flush(isLast: Bool = false) {
        guard let path else { return }
        let now = ContinuousClock.now
        let isDue = state.withLock { state in
            guard state.isChanged else { return false }
            if let written = state.written, now - written < .seconds(1), !isLast { return false }
            state.isChanged = false
            state.written = now
            return true
        }
        guard isDue else { return }
        do {
            try MetricsFile.write(text, to: path)
            state.withLock { $0.hasFailed = false }
        } catch {
            let isFirst = state.withLock { state in
                defer { state.hasFailed = true }
                return !state.hasFailed
            }
            if isFirst {
                journal.log(.warning, "\(ToolError(error).message); checkpoints are taken")
            }
        }
    }
}
