import Foundation

/// Times of one thing in one run, in seconds.
public struct Distribution: Codable, Hashable, Sendable {
    /// The number of values.
    public var count: Int
    /// The minimum.
    public var least: Double
    /// The median.
    public var p50: Double
    /// The 99th percentile.
    public var p99: Double
    /// The maximum.
    public var most: Double

    /// Summarizes values.
    ///
    /// - Precondition: there is at least one value.
    public init(_ values: [Double]) {
        precondition(!values.isEmpty, "a distribution of nothing")
        let sorted = values.sorted()
        func at(_ share: Double) -> Double {
            sorted[min(sorted.count - 1, Int((Double(sorted.count) * share).rounded(.down)))]
        }
        count = sorted.count
        least = sorted[0]
        p50 =
            sorted.count % 2 == 1
            ? at(0.5) : (sorted[sorted.count / 2 - 1] + sorted[sorted.count / 2]) / 2
        p99 = at(0.99)
        most = sorted[sorted.count - 1]
    }
}

/// The role of a series in its figure.
public enum Role: String, Codable, Sendable {
    /// Varve.
    case subject
    /// The limit of the hardware or of the library below.
    case limit
    /// An alternative to Varve.
    case peer
    /// Varve in another way, or a part of the subject.
    case part
}

/// One thing that was timed, round after round.
public struct Series: Codable, Sendable {
    /// What was timed.
    public var name: String
    /// Its role.
    public var role: Role
    /// Its position on a curve; a suite's series with the same curve form that curve.
    public var x: Double?
    /// The curve's name.
    public var curve: String?
    /// Seconds of each round.
    public var seconds: Distribution
    /// Bytes that a round processes.
    public var byteCount: Int?
    /// Processor seconds of all rounds together, if they were measured.
    public var cpuSeconds: Double?
    /// The process's largest resident set.
    public var peakByteCount: Int?

    /// Bytes a second in the median round.
    public var rate: Double? { byteCount.map { Double($0) / seconds.p50 } }
}

/// The subject relative to another series, round by round, so that a machine that is slow for a
/// while slows both.
public struct Ratio: Codable, Sendable {
    /// The other series' name.
    public var to: String
    /// The rounds' ratios.
    public var value: Distribution
}

/// An additional number of a figure.
public struct Note: Codable, Sendable {
    /// Its name.
    public var name: String
    /// Its value.
    public var value: Double
    /// Its unit.
    public var unit: String
}

/// One benchmark's result: a line of the file that `Recorder` writes, an element of results.json.
public struct Figure: Codable, Sendable {
    /// `suite.what`.
    public var id: String
    /// What was timed, in words.
    public var title: String
    /// All timed series, in order.
    public var series: [Series]
    /// The subject relative to each other series.
    public var ratios: [Ratio]
    /// Numbers other than times.
    public var notes: [Note]

    /// The first part of the ID.
    public var suite: String { String(id.prefix { $0 != "." }) }

    /// The series of the figure's subject.
    public var subject: Series? { series.first { $0.role == .subject } }

    /// The series with a name.
    public func series(_ name: String) -> Series? { series.first { $0.name == name } }

    /// The subject relative to the series with a name.
    public func ratio(to name: String) -> Ratio? { ratios.first { $0.to == name } }

    /// The number with a name.
    public func note(_ name: String) -> Double? { notes.first { $0.name == name }?.value }
}
