import CoreMetrics
import Synchronization

/// A backend of swift-metrics that keeps values for Prometheus.
///
/// Counters, gauges, meters and timers; a timer is a histogram in seconds, and so is a recorder
/// that aggregates, in its own unit. What it keeps is written by `text`.
final class PrometheusMetrics: MetricsFactory {
    /// The upper limits of a histogram's buckets, in seconds: of downtimes, from well below a
    /// millisecond to a guest that all but misses its time to suspend.
    static let limits: [Double] = [
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60,
    ]

    /// One series: a metric with its labels.
    final class Series: Sendable {
        /// What a series is, and what it holds.
        enum Value: Equatable {
            case counter(Double)
            case gauge(Double)
            /// How many values were in each bucket alone, the last one without a limit; the sum.
            case histogram([Int], sum: Double)
        }

        let labels: [(String, String)]
        private let value: Mutex<Value>

        fileprivate init(_ labels: [(String, String)], _ value: Value) {
            self.labels = labels
            self.value = Mutex(value)
        }

        /// What it holds now.
        var current: Value { value.withLock { $0 } }

        func add(_ amount: Double) {
            value.withLock { value in
                switch value {
                case .counter(let old): value = .counter(old + amount)
                case .gauge(let old): value = .gauge(old + amount)
                case .histogram: break
                }
            }
        }

        func set(_ new: Double) {
            value.withLock { value in
                switch value {
                case .counter: value = .counter(new)
                case .gauge: value = .gauge(new)
                case .histogram(var counts, let sum):
                    let bucket =
                        PrometheusMetrics.limits.firstIndex { new <= $0 } ?? counts.count - 1
                    counts[bucket] += 1
                    value = .histogram(counts, sum: sum + new)
                }
            }
        }
    }

    private let help: [String: String]
    private let families = Mutex<[String: [String: Series]]>([:])

    /// Creates a backend without metrics.
    ///
    /// - Parameter help: a sentence for each name of a metric.
    init(help: [String: String] = [:]) { self.help = help }

    /// The series of a name and labels, which is created at its first use.
    private func series(
        _ name: String, _ labels: [(String, String)], _ value: Series.Value
    ) -> Series {
        let key = PrometheusText.labels(labels)
        return families.withLock { families in
            if let found = families[name]?[key] { return found }
            let new = Series(labels, value)
            families[name, default: [:]][key] = new
            return new
        }
    }

    private func remove(_ series: Series) {
        families.withLock { families in
            for (name, all) in families {
                families[name] = all.filter { $0.value !== series }
            }
            families = families.filter { !$0.value.isEmpty }
        }
    }

    /// All metrics in Prometheus' text format.
    var text: String {
        let all = families.withLock { families in families.mapValues { Array($0.values) } }
        return all.sorted { $0.key < $1.key }
            .map { PrometheusText.family($0.key, help: help[$0.key], $0.value) }
            .joined()
    }

    // MARK: - MetricsFactory

    private static let empty = Series.Value.histogram(
        [Int](repeating: 0, count: limits.count + 1), sum: 0)

    func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
        Handler(series(label, dimensions, .counter(0)))
    }

    func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler {
        Handler(series(label, dimensions, .gauge(0)))
    }

    func makeRecorder(
        label: String, dimensions: [(String, String)], aggregate: Bool
    ) -> any RecorderHandler {
        Handler(
            series(label, dimensions, aggregate ? PrometheusMetrics.empty : .gauge(0)))
    }

    func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
        Handler(series(label, dimensions, PrometheusMetrics.empty))
    }

    func destroyCounter(_ handler: any CounterHandler) { destroy(handler) }
    func destroyMeter(_ handler: any MeterHandler) { destroy(handler) }
    func destroyRecorder(_ handler: any RecorderHandler) { destroy(handler) }
    func destroyTimer(_ handler: any TimerHandler) { destroy(handler) }

    private func destroy(_ handler: any AnyObject) {
        if let handler = handler as? Handler { remove(handler.series) }
    }

    /// Records into one series.
    private final class Handler: CounterHandler, MeterHandler, RecorderHandler, TimerHandler {
        let series: Series

        init(_ series: Series) { self.series = series }

        func increment(by amount: Int64) { series.add(Double(amount)) }
        func increment(by amount: Double) { series.add(amount) }
        func decrement(by amount: Double) { series.add(-amount) }
        func set(_ value: Int64) { series.set(Double(value)) }
        func set(_ value: Double) { series.set(value) }
        func record(_ value: Int64) { series.set(Double(value)) }
        func record(_ value: Double) { series.set(value) }
        func recordNanoseconds(_ duration: Int64) { series.set(Double(duration) / 1e9) }
        func reset() { series.set(0) }
    }
}
