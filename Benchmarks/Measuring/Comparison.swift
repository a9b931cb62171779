import Benchmark
import Foundation
import Glibc

/// A benchmark that times its subject, limits and peers in turn, round after round.
///
/// The runner shows the subject's wall time; the figure with all series and their ratios is written
/// to `Settings.figures`, because the runner's own exports have one series for each benchmark.
public final class Comparison {
    private let id: String
    private let title: String
    private var order: [String] = []
    private var values: [String: [Double]] = [:]
    private var series: [String: Series] = [:]
    private var notes: [Note] = []
    private var isWarmingUp = true
    fileprivate var benchmark: Benchmark?
    /// A new directory, removed when the benchmark ends.
    public let directory: String

    fileprivate init(id: String, title: String) {
        self.id = id
        self.title = title
        directory = Settings.directory + "/varve-benchmark-\(getpid())-\(id)"
    }

    /// Times the subject of the figure.
    public func subject<T>(
        _ name: String = "Varve", byteCount: Int? = nil, _ body: () throws -> T
    ) rethrows -> T {
        benchmark?.startMeasurement()
        defer { benchmark?.stopMeasurement() }
        return try time(name, .subject, byteCount: byteCount, body)
    }

    /// Times the hardware's limit.
    @discardableResult
    public func limit<T>(
        _ name: String, byteCount: Int? = nil, _ body: () throws -> T
    ) rethrows -> T {
        try time(name, .limit, byteCount: byteCount, body)
    }

    /// Times another series.
    public func time<T>(
        _ name: String, _ role: Role, byteCount: Int? = nil, _ body: () throws -> T
    ) rethrows -> T {
        let start = ContinuousClock.now
        let result = try body()
        add(name, role, seconds: (ContinuousClock.now - start).seconds, byteCount: byteCount)
        return result
    }

    /// Adds a time that was measured elsewhere, or by another program.
    ///
    /// - Parameters:
    ///   - byteCount: bytes processed.
    ///   - x: its position on the curve.
    ///   - child: the program, for its processor time and memory.
    public func add(
        _ name: String, _ role: Role, seconds: Double, byteCount: Int? = nil,
        at x: (value: Double, curve: String)? = nil, child: ChildResult? = nil
    ) {
        guard !isWarmingUp else { return }
        if values[name] == nil { order.append(name) }
        values[name, default: []].append(seconds)
        var entry =
            series[name]
            ?? Series(
                name: name, role: role, x: x?.value, curve: x?.curve,
                seconds: Distribution([seconds]), byteCount: byteCount)
        if let child {
            entry.cpuSeconds = (entry.cpuSeconds ?? 0) + child.cpuSeconds
            entry.peakByteCount = max(entry.peakByteCount ?? 0, child.peakByteCount)
        }
        series[name] = entry
    }

    /// Adds a number to the figure; a later value of the same name replaces an earlier one.
    public func note(_ name: String, _ value: Double, _ unit: String) {
        guard !isWarmingUp else { return }
        notes.removeAll { $0.name == name }
        notes.append(Note(name: name, value: value, unit: unit))
    }

    fileprivate func endWarmUp() { isWarmingUp = false }

    /// The figure; nil if no round was timed.
    fileprivate var figure: Figure? {
        guard !order.isEmpty else { return nil }
        let all = order.compactMap { name -> Series? in
            guard var entry = series[name], let values = values[name] else { return nil }
            entry.seconds = Distribution(values)
            return entry
        }
        let subject = all.first { $0.role == .subject }?.name ?? order[0]
        let ratios = order.filter { $0 != subject }.compactMap { other -> Ratio? in
            let pairs = zip(values[subject] ?? [], values[other] ?? []).filter { $0.1 > 0 }
            guard !pairs.isEmpty else { return nil }
            return Ratio(to: other, value: Distribution(pairs.map { $0.0 / $0.1 }))
        }
        return Figure(id: id, title: title, series: all, ratios: ratios, notes: notes)
    }
}

/// Registers a comparison with the runner.
///
/// - Parameters:
///   - id: `suite.what`, the figure's name.
///   - title: what is timed, as printed in the report.
///   - rounds: how often each series is timed, after one untimed round; 1 has no untimed round.
///   - setup: creates the state that the rounds use.
///   - finish: adds results after the last round.
///   - round: times the subject and the others once.
public func compare<Subject>(
    _ id: String, _ title: String, rounds: Int,
    setup: @escaping (Comparison) throws -> Subject,
    finish: @escaping (Subject, Comparison) throws -> Void = { _, _ in },
    round: @escaping (Subject, Comparison) throws -> Void
) {
    guard !Settings.isListing else {
        print(id)
        return
    }
    let comparison = Comparison(id: id, title: title)
    let configuration = Benchmark.Configuration(
        metrics: [.wallClock, .cpuTotal, .peakMemoryResident], warmupIterations: 0,
        maxDuration: .seconds(3600), maxIterations: rounds)
    // The runner keeps what `setup` returns until the process ends; the state is released earlier.
    var subject: Subject?
    Benchmark(id, configuration: configuration) { benchmark in
        comparison.benchmark = benchmark
        guard let subject else { throw CocoaError(.featureUnsupported) }
        try round(subject, comparison)
    } setup: {
        try FileManager.default.createDirectory(
            atPath: comparison.directory, withIntermediateDirectories: true)
        do {
            let made = try setup(comparison)
            if rounds > 1 { try round(made, comparison) }
            subject = made
        } catch {
            // The runner does not report it.
            print("\(id): \(error)")
            throw error
        }
        comparison.endWarmUp()
    } teardown: {
        if let made = subject { try finish(made, comparison) }
        subject = nil
        if let figure = comparison.figure { try Recorder.append(figure) }
        try FileManager.default.removeItem(atPath: comparison.directory)
    }
}

/// The file of figures.
public enum Recorder {
    /// Appends a line to `Settings.figures`.
    public static func append(_ figure: Figure) throws {
        guard let path = Settings.figures else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        var line = try encoder.encode(figure)
        line.append(UInt8(ascii: "\n"))
        let file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0o644)
        guard file >= 0 else { throw CocoaError(.fileWriteUnknown) }
        let count = line.withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
        close(file)
        guard count == line.count else { throw CocoaError(.fileWriteUnknown) }
    }
}

extension Duration {
    /// The duration in seconds.
    public var seconds: Double { self / .seconds(1) }
}
