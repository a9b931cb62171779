/// Which frames of a guest exist, as ascending runs that neither touch nor overlap.
///
/// A hole is not a zero page: a 128 MiB PVH guest has 32,784 pages among a million frame numbers.
/// Holes cost nothing. The layout may change from one checkpoint to the next.
public struct GuestLayout: Hashable, Sendable {
    /// The runs, ascending, with at least one missing frame between two of them.
    public let runs: [PageRange]
    /// Frames that exist.
    public let pageCount: Int

    /// A layout without a page.
    public static let empty = GuestLayout(runs: [])

    /// Takes runs in any order and joins those that touch.
    ///
    /// - Precondition: no two runs overlap.
    public init(runs: [PageRange]) {
        var joined: [PageRange] = []
        for run in runs.sorted(by: { $0.first < $1.first }) {
            if let last = joined.last {
                precondition(last.end <= run.first, "layout runs \(last) and \(run) overlap")
            }
            joined.appendJoining(run)
        }
        self.runs = joined
        self.pageCount = joined.reduce(0) { $0 + $1.count }
    }

    /// A layout of `pageCount` frames from frame 0, without holes.
    public init(pageCount: Int) {
        precondition(pageCount >= 0, "a page count is not negative")
        self.init(
            runs: pageCount == 0 ? [] : [PageRange(first: PageFrameNumber(0), count: pageCount)])
    }

    /// One more than the highest frame that exists; 0 for the empty layout.
    public var frameEnd: UInt64 { runs.last?.end.rawValue ?? 0 }

    /// Bytes of memory that exist.
    public var byteCount: Int { pageCount * Page.byteCount }

    /// True if the frame exists.
    ///
    /// O(log runs).
    public func contains(_ frame: PageFrameNumber) -> Bool {
        var low = 0
        var high = runs.count
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].end <= frame { low = middle + 1 } else { high = middle }
        }
        return low < runs.count && runs[low].contains(frame)
    }
}
