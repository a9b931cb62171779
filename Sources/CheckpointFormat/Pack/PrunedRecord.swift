// The payload of a pruned record: all packs that prune has ever removed from the repository, as
// ranges. The newest record counts; it includes everything in older ones.
//
//   varint  number of ranges, then for each, ascending and with a gap between them:
//     varint  first pack, less the end of the previous range (0 at first)
//     varint  number of packs in the range, at least 1

/// The packs that were removed, as opposed to lost.
package struct PrunedRecord: Hashable, Sendable {
    /// Ascending and disjoint; none is empty.
    package private(set) var ranges: [Range<UInt32>] = []

    package init() {}

    package init(_ packs: some Sequence<UInt32>) {
        for pack in Set(packs).sorted() {
            if let last = ranges.last, last.upperBound == pack {
                ranges[ranges.count - 1] = last.lowerBound..<pack + 1
            } else {
                ranges.append(pack..<pack + 1)
            }
        }
    }

    /// - Parameter ranges: ascending and disjoint; they may be adjacent.
    package init(ranges: [ClosedRange<UInt32>]) {
        for range in ranges where range.upperBound < .max {
            if let last = self.ranges.last, last.upperBound == range.lowerBound {
                self.ranges[self.ranges.count - 1] = last.lowerBound..<range.upperBound + 1
            } else {
                self.ranges.append(range.lowerBound..<range.upperBound + 1)
            }
        }
    }

    /// True if the pack was removed.
    package func contains(_ pack: UInt32) -> Bool {
        var (low, high) = (0, ranges.count)
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].upperBound <= pack { low = middle + 1 } else { high = middle }
        }
        return low < ranges.count && ranges[low].contains(pack)
    }

    /// The union with other packs.
    package func union(_ packs: [UInt32]) -> PrunedRecord { union(PrunedRecord(packs)) }

    /// The union of both.
    package func union(_ other: PrunedRecord) -> PrunedRecord {
        let all = (ranges + other.ranges).sorted { $0.lowerBound < $1.lowerBound }
        var result = PrunedRecord()
        for range in all {
            if let last = result.ranges.last, last.upperBound >= range.lowerBound {
                let end = max(last.upperBound, range.upperBound)
                result.ranges[result.ranges.count - 1] = last.lowerBound..<end
            } else {
                result.ranges.append(range)
            }
        }
        return result
    }

    /// Encodes the payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 1 + ranges.count * 4)
        writer.writeVarint(UInt64(ranges.count))
        var end: UInt32 = 0
        for range in ranges {
            writer.writeVarint(UInt64(range.lowerBound - end))
            writer.writeVarint(UInt64(range.count))
            end = range.upperBound
        }
        return writer.bytes
    }

    /// Fails if it lists the pack that contains it, or a later one: prune and repair write the
    /// record to a pack later than all those it lists.
    package func check(in pack: UInt32) throws(FormatError) {
        guard let last = ranges.last, last.upperBound > pack else { return }
        throw FormatError(
            offset: 0, reason: "it lists pack \(last.upperBound - 1), but is in pack \(pack)")
    }

    /// Decodes a payload.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> PrunedRecord {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> PrunedRecord in
            let count = try reader.readVarint(limit: payload.count / 2, "the number of ranges")
            var record = PrunedRecord()
            var end = 0
            for _ in 0..<count {
                let start = reader.position
                let gap = try reader.readVarint(limit: Int(UInt32.max), "a pack number")
                let packs = try reader.readVarint(limit: Int(UInt32.max), "a range's length")
                guard packs > 0, gap > 0, end + gap + packs <= Int(UInt32.max) else {
                    throw FormatError(offset: start, reason: "a range of packs is out of order")
                }
                let first = end + gap
                end = first + packs
                record.ranges.append(UInt32(first)..<UInt32(end))
            }
            try reader.expectEnd()
            return record
        }
    }
}
