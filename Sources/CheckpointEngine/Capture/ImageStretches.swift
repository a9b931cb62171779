import GuestModel

/// An image split into data stretches, which are read, and holes, which are not; ascending, without
/// gaps.
struct ImageStretches {
    struct Stretch: Equatable {
        let pages: Range<Int>
        /// True if all of it is zero and need not be read.
        let isHole: Bool
    }

    /// A hole of fewer pages is read along with the data around it: a batch of its own costs more.
    static let holePageCountMin = 64
    /// The most pages of a hole in one batch.
    static let holePageCountMax = 16_384

    private let pageCount: Int
    private var first = 0
    /// The end of the current data range; what follows was not looked up yet.
    private var dataEnd = 0
    /// The end of the hole that contains `first`.
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

    /// Looks up the next data range.
    private mutating func look(_ image: some ImageSource) throws {
        guard let data = try image.nextData(from: first * Page.byteCount) else {
            holeEnd = pageCount
            return
        }
        // A page with any byte that may be nonzero is read.
        let start = min(max(first, data.lowerBound / Page.byteCount), pageCount)
        let last = max(0, data.upperBound - 1) / Page.byteCount
        dataEnd = min(max(start, last) + 1, pageCount)
        if start - first >= ImageStretches.holePageCountMin { holeEnd = start }
    }
}
