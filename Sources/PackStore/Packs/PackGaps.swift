package import CheckpointFormat

/// Packs that are missing.
///
/// Pack numbers come from file names and records, so a gap may have any width. Up to `namedMax`
/// missing packs are named one by one, and a wider gap as a whole.
package enum PackGaps {
    private static let namedMax = 64

    /// The packs up to a number that are neither present nor were removed, ascending.
    ///
    /// - Parameter packs: those that are present, ascending.
    package static func missing(
        _ packs: some Collection<UInt32>, _ pruned: PrunedRecord, upTo newest: UInt32
    ) -> [ClosedRange<UInt32>] {
        let known = pruned.union(PrunedRecord(packs)).ranges
        var result: [ClosedRange<UInt32>] = []
        var next: UInt32 = 1
        for range in known where next <= newest {
            if range.lowerBound > next {
                append(next...min(range.lowerBound - 1, newest), to: &result)
            }
            next = max(next, range.upperBound)
        }
        if next <= newest { append(next...newest, to: &result) }
        return result
    }

    private static func append(
        _ gap: ClosedRange<UInt32>, to result: inout [ClosedRange<UInt32>]
    ) {
        if gap.count > namedMax {
            result.append(gap)
        } else {
            result += gap.map { $0...$0 }
        }
    }

    /// The description of a gap, reported for its first pack.
    package static func words(_ gap: ClosedRange<UInt32>) -> String {
        gap.count == 1
            ? "the file is missing" : "the file and the \(gap.count - 1) after it are missing"
    }
}
