import GuestModel

/// An image cut into stretches that are read, and holes that are not; ascending and without gaps.
struct ImageStretches {
    struct Stretch: Equatable {
        let pages: Range<Int>
        /// True if all of it is zero and need not be read.
        let isHole: Bool
    }

    /// A hole of fewer pages is read with what is around it: a batch of its own costs more.
    static let holePageCountMin = 64
    /// Pages of a hole that go to a worker at once.
    static let holePageCountMax = 16_384

    private let pageCount: Int
    private var first = 0
    /// Where what is read ends; what follows was not asked for yet.
    private var dataEnd = 0
    /// Where the hole ends that `first` is in.
    private var holeEnd = 0

    init(pageCount: Int) {
        self.pageCount = pageCount
    }

    /// The next stretch; nil at the end.
    mutating func next(_ image: some ImageSource) throws -> Stretch? {
        guard first < pageCount else { return nil }
        if first >= dataEnd && first >= holeEnd { try look(image) }
        let isHole = first < holeEnd
        let end =
            isHole
            ? min(holeEnd, first + ImageStretches.holePageCountMax)
            : min(dataEnd, first + StagingPool.slotPageCount)
        defer { first = end }
        return Stretch(pages: first..<end, isHole: isHole)
    }

    /// Asks where the next data are.
    private mutating func look(_ image: some ImageSource) throws {
        guard let data = try image.nextData(from: first * Page.byteCount) else {
            holeEnd = pageCount
            return
        }
        // A page of which any byte may be other than zero is read.
        let start = min(max(first, data.lowerBound / Page.byteCount), pageCount)
        let last = max(0, data.upperBound - 1) / Page.byteCount
        dataEnd = min(max(start, last) + 1, pageCount)
        if start - first >= ImageStretches.holePageCountMin { holeEnd = start }
    }
}
