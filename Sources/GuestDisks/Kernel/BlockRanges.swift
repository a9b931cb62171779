import GuestModel

/// Builds ascending, separated ranges of blocks from ascending ranges of bytes, which may overlap
/// or touch.
struct BlockRanges {
    /// More than these would cost more memory than comparing everything costs time: 64 MiB.
    static let countLimit = 4 << 20

    private(set) var ranges: [BlockRange] = []
    private let blockCount: UInt64

    /// - Parameter blockCount: the size of the disk; what is beyond it is cut off.
    init(blockCount: UInt64) { self.blockCount = blockCount }

    /// Adds the blocks that contain some bytes; false if there are too many ranges, or they are not
    /// ascending.
    mutating func add(bytes: Range<UInt64>) -> Bool {
        guard !bytes.isEmpty else { return true }
        let page = UInt64(Page.byteCount)
        let lower = bytes.lowerBound / page
        let upper = min((bytes.upperBound - 1) / page + 1, blockCount)
        guard lower < upper else { return true }
        if let last = ranges.last, lower <= last.upperBound {
            guard lower >= last.lowerBound else { return false }
            ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, upper)
            return true
        }
        guard ranges.count < BlockRanges.countLimit else { return false }
        ranges.append(lower..<upper)
        return true
    }

    /// All blocks of a disk.
    static func all(_ blockCount: UInt64) -> [BlockRange] {
        blockCount == 0 ? [] : [0..<blockCount]
    }
}

extension [BlockRange] {
    /// Adds a range at the end, which may overlap the last ones.
    mutating func join(_ range: BlockRange) {
        var (lower, upper) = (range.lowerBound, range.upperBound)
        while let last, last.upperBound >= lower {
            lower = Swift.min(lower, last.lowerBound)
            upper = Swift.max(upper, last.upperBound)
            removeLast()
        }
        if lower < upper { append(lower..<upper) }
    }
}
