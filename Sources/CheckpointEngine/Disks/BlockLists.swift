import GuestModel

/// Lists of ranges of blocks.
enum BlockLists {
    /// The same blocks, ascending and separated.
    static func joined(_ ranges: [BlockRange]) -> [BlockRange] {
        var result: [BlockRange] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) where !range.isEmpty {
            if let last = result.last, last.upperBound >= range.lowerBound {
                let end = max(last.upperBound, range.upperBound)
                result[result.count - 1] = last.lowerBound..<end
            } else {
                result.append(range)
            }
        }
        return result
    }

    /// Blocks of 4 KiB of a disk with a size in bytes.
    static func blockCount(_ byteCount: UInt64) -> UInt64 {
        GuestDisk(name: "", byteCount: byteCount).blockCount
    }
}
