import CoreMetrics
import Glibc
import SystemPackage
import Testing
import Varve
import VarveTestSupport

@testable import varve_cli

/// The file of metrics.
@Suite struct ServiceMetricsTests {
    private let directory = TemporaryDirectory()
    private var path: String { directory.path.appending("web.prom").string }

    private func content() throws -> String {
        let file = try #require(fopen(path, "r"))
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        return String(decoding: bytes[..<fread(&bytes, 1, bytes.count, file)], as: UTF8.self)
    }

    private func metrics(_ domain: String = "web") -> (ServiceMetrics, Lines) {
        let lines = Lines()
        let journal = ServiceJournal(environment: { _ in nil }, print: { lines.add($0) })
        return (ServiceMetrics(ofDomain: domain, path: path, journal: journal), lines)
    }

    private func taken(_ downtime: Duration) -> TakenCheckpoint {
        TakenCheckpoint(
            id: "ab", timeNanoseconds: 1_700_000_000_250_000_000, dirtyPageCount: 321,
            addedByteCount: 1000, downtime: downtime, lateness: .milliseconds(1500))
    }

    /// All of it, as Prometheus reads it.
    @Test func theTextIsPrometheus() throws {
        let (metrics, lines) = metrics()
        metrics.isUp(true)
        metrics.note(taken(.microseconds(1500)))
        metrics.note(taken(.microseconds(1000)))
        metrics.note(taken(.seconds(61)))
        metrics.failed("noSpace")
        metrics.failed("timedOut")
        metrics.failed("noSpace")
        metrics.flush()
        let expected = """
            # HELP varve_added_bytes_total Bytes that checkpoints added to the repository.
            # TYPE varve_added_bytes_total counter
            varve_added_bytes_total{domain="web"} 3000
            # HELP varve_checkpoints_total Checkpoints that became durable.
            # TYPE varve_checkpoints_total counter
            varve_checkpoints_total{domain="web"} 3
            # HELP varve_dirty_pages Pages that were dirty in the newest checkpoint.
            # TYPE varve_dirty_pages gauge
            varve_dirty_pages{domain="web"} 321
            # HELP varve_domain_up 1 while the domain runs, 0 while its service waits for it.
            # TYPE varve_domain_up gauge
            varve_domain_up{domain="web"} 1
            # HELP varve_downtime_seconds How long the domain did not run for a checkpoint.
            # TYPE varve_downtime_seconds histogram
            varve_downtime_seconds_bucket{domain="web",le="0.0005"} 0
            varve_downtime_seconds_bucket{domain="web",le="0.001"} 1
            varve_downtime_seconds_bucket{domain="web",le="0.002"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.005"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.01"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.02"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.05"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.1"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.2"} 2
            varve_downtime_seconds_bucket{domain="web",le="0.5"} 2
            varve_downtime_seconds_bucket{domain="web",le="1"} 2
            varve_downtime_seconds_bucket{domain="web",le="2"} 2
            varve_downtime_seconds_bucket{domain="web",le="5"} 2
            varve_downtime_seconds_bucket{domain="web",le="10"} 2
            varve_downtime_seconds_bucket{domain="web",le="60"} 2
            varve_downtime_seconds_bucket{domain="web",le="+Inf"} 3
            varve_downtime_seconds_sum{domain="web"} 61.0025
            varve_downtime_seconds_count{domain="web"} 3
            # HELP varve_failures_total Captures, starts of captures and thinnings that failed.
            # TYPE varve_failures_total counter
            varve_failures_total{domain="web",reason="noSpace"} 2
            varve_failures_total{domain="web",reason="timedOut"} 1
            # HELP varve_lag_seconds How much later than due the newest checkpoint began.
            # TYPE varve_lag_seconds gauge
            varve_lag_seconds{domain="web"} 1.5
            # HELP varve_last_checkpoint_timestamp_seconds When the newest checkpoint was taken.
            # TYPE varve_last_checkpoint_timestamp_seconds gauge
            varve_last_checkpoint_timestamp_seconds{domain="web"} 1700000000.25

            """
        #expect(try content() == expected)
        #expect(metrics.text == expected)
        #expect(lines.all.isEmpty)
    }

    @Test func labelsAndHelpAreEscaped() {
        let backend = PrometheusMetrics(help: ["a_b": "one \\ two\nthree \"four\""])
        Counter(
            label: "a-b", dimensions: [("k:1", "quote \" slash \\ line\nend")], factory: backend
        ).increment(by: 2)
        let other = PrometheusMetrics(help: ["c": "one \\ two\nthree \"four\""])
        Gauge(label: "c", factory: other).record(0.5)
        #expect(
            backend.text == """
                # TYPE a_b counter
                a_b{k_1="quote \\" slash \\\\ line\\nend"} 2

                """)
        #expect(
            other.text == """
                # HELP c one \\\\ two\\nthree "four"
                # TYPE c gauge
                c 0.5

                """)
    }

    @Test func numbersAreWrittenAsPrometheusReadsThem() {
        #expect(PrometheusText.text(1) == "1" && PrometheusText.text(-0.25) == "-0.25")
        #expect(PrometheusText.text(.infinity) == "+Inf")
        #expect(PrometheusText.text(-.infinity) == "-Inf" && PrometheusText.text(.nan) == "NaN")
    }

    /// Every kind of metric of swift-metrics has its place.
    @Test func theBackendKeepsWhatItIsGiven() {
        let backend = PrometheusMetrics()
        let meter = Meter(label: "m", factory: backend)
        meter.set(5)
        meter.increment(by: 2.5)
        meter.decrement(by: 1)
        let counter = Counter(label: "c", factory: backend)
        counter.increment(by: 3)
        // The same name and labels are the same series.
        Counter(label: "c", factory: backend).increment(by: 4)
        Recorder(label: "r", dimensions: [], aggregate: true, factory: backend).record(0.02)
        #expect(backend.text.contains("m 6.5\n"))
        #expect(backend.text.contains("c 7\n"))
        #expect(backend.text.contains("r_bucket{le=\"0.01\"} 0\nr_bucket{le=\"0.02\"} 1\n"))
        counter.reset()
        #expect(backend.text.contains("c 0\n"))
        counter.destroy()
        #expect(!backend.text.contains("c 0\n"))
    }

    /// A reader finds a whole file; what is prepared beside it is not followed, and does not stay.
    @Test func theFileIsReplacedAsAWhole() throws {
        let bait = directory.path.appending("bait").string
        #expect(symlink(bait, path + ".part") == 0)
        try MetricsFile.write("a 1\n", to: path)
        #expect(access(bait, F_OK) != 0 && access(path + ".part", F_OK) != 0)
        var before = stat()
        #expect(stat(path, &before) == 0)
        #expect(before.st_mode & 0o777 == 0o644)
        let reader = try #require(fopen(path, "r"))
        defer { fclose(reader) }
        try MetricsFile.write("a 22\n", to: path)
        var bytes = [UInt8](repeating: 0, count: 100)
        #expect(bytes[..<fread(&bytes, 1, 100, reader)].elementsEqual("a 1\n".utf8))
        #expect(try content() == "a 22\n")
    }

    @Test func aFailureIsSaidOnceAndEndsNothing() throws {
        #expect(mkdir(path, 0o755) == 0)
        let (metrics, lines) = metrics()
        metrics.flush(isLast: true)
        metrics.isUp(true)
        metrics.flush(isLast: true)
        #expect(lines.all.count == 1)
        #expect(lines.all[0].contains("the metrics \(path) cannot be written: Is a directory"))
        #expect(rmdir(path) == 0)
        metrics.isUp(false)
        metrics.flush(isLast: true)
        #expect(try content().contains("varve_domain_up{domain=\"web\"} 0\n"))
    }

    @Test func theNewestCheckpointIsKnownFromTheStart() {
        let (metrics, _) = metrics("a\"b")
        metrics.resumed(atNanoseconds: 5_500_000_000)
        #expect(
            metrics.text.contains(
                "varve_last_checkpoint_timestamp_seconds{domain=\"a\\\"b\"} 5.5\n"))
    }
}
