import Foundation

/// Times of one thing in one run, in seconds.
public struct Distribution: Codable, Hashable, Sendable {
    /// How many there are.
    public var count: Int
    /// The least.
    public var least: Double
    /// The one in the middle.
    public var p50: Double
    /// One in a hundred is larger.
    public var p99: Double
    /// The largest.
    public var most: Double

    /// Sums values up.
    ///
    /// - Precondition: there is at least one.
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

/// What a series stands for in its figure.
public enum Role: String, Codable, Sendable {
    /// Varve.
    case subject
    /// What the hardware or the library below allows.
    case limit
    /// What one would take instead.
    case peer
    /// Varve in another way, or a part of the subject.
    case part
}

/// One thing that was timed, round after round.
public struct Series: Codable, Sendable {
    /// What was timed.
    public var name: String
    /// What it stands for.
    public var role: Role
    /// Where on a curve it lies: series with the same curve in one suite.
    public var x: Double?
    /// The curve's name.
    public var curve: String?
    /// Seconds a round.
    public var seconds: Distribution
    /// Bytes that a round works on.
    public var byteCount: Int?
    /// Processor seconds of all rounds together, where they were counted.
    public var cpuSeconds: Double?
    /// The process's largest resident set.
    public var peakByteCount: Int?

    /// Bytes a second in the middle round.
    public var rate: Double? { byteCount.map { Double($0) / seconds.p50 } }
}

/// The subject over another series, round by round, so that a machine that slows down for a while
/// slows both.
public struct Ratio: Codable, Sendable {
    /// The other series' name.
    public var to: String
    /// The rounds' ratios.
    public var value: Distribution
}

/// One more number that a figure has.
public struct Note: Codable, Sendable {
    /// What it says.
    public var name: String
    /// How much.
    public var value: Double
    /// What it counts.
    public var unit: String
}

/// One benchmark's result: a line of the file that `Recorder` writes, an element of results.json.
public struct Figure: Codable, Sendable {
    /// `suite.what`.
    public var id: String
    /// What was timed, in words.
    public var title: String
    /// All that was timed, in order.
    public var series: [Series]
    /// The subject over each of the others.
    public var ratios: [Ratio]
    /// Numbers beside the times.
    public var notes: [Note]

    /// The first part of the id.
    public var suite: String { String(id.prefix { $0 != "." }) }

    /// The series that the figure is about.
    public var subject: Series? { series.first { $0.role == .subject } }

    /// The series with a name.
    public func series(_ name: String) -> Series? { series.first { $0.name == name } }

    /// The subject over the series with a name.
    public func ratio(to name: String) -> Ratio? { ratios.first { $0.to == name } }

    /// The number with a name.
    public func note(_ name: String) -> Double? { notes.first { $0.name == name }?.value }
}
