package import CheckpointFormat

/// The page groups that one transaction appended: maps ordinals to page locations.
package struct TransactionGroups: Sendable {
    private struct Group {
        let firstOrdinal: UInt32
        let location: RecordLocation
        /// The place of its first block in `blocks`.
        let firstBlock: UInt32
        let blockCount: UInt8
    }

    // Flat, because a transaction may have millions: 20 bytes for each group and 4 for each block.
    // Sorted by ordinal on the first lookup; workers append out of order.
    private var groups: [Group] = []
    private var blocks: [PageGroupTable.Block] = []
    private var isSorted = true
    /// Number of pages in them.
    private(set) var pageCount = 0

    package init() {}

    /// Adds a page group.
    package mutating func append(_ table: PageGroupTable, at location: RecordLocation) {
        if let last = groups.last, last.firstOrdinal > table.firstOrdinal { isSorted = false }
        groups.append(
            Group(
                firstOrdinal: table.firstOrdinal, location: location,
                firstBlock: UInt32(blocks.count), blockCount: UInt8(table.blocks.count)))
        blocks += table.blocks
        pageCount += table.pageCount
    }

    /// The packs that contain them.
    var packs: Set<UInt32> { Set(groups.map(\.location.pack)) }

    private func blocks(of group: Group) -> ArraySlice<PageGroupTable.Block> {
        let first = Int(group.firstBlock)
        return blocks[first..<first + Int(group.blockCount)]
    }

    /// Calls `body` with the locations of `count` pages from an ordinal on; nil for a page that is
    /// in no page group.
    package mutating func forEachLocation<E: Error>(
        from ordinal: UInt32, count: Int, _ body: (PageLocation?) throws(E) -> Void
    ) throws(E) {
        if !isSorted {
            groups.sort { $0.firstOrdinal < $1.firstOrdinal }
            isSorted = true
        }
        var next = UInt64(ordinal)
        let end = next + UInt64(count)
        var position = index(of: ordinal) ?? 0
        while next < end {
            guard position < groups.count else {
                try body(nil)
                next += 1
                continue
            }
            let group = groups[position]
            let first = UInt64(group.firstOrdinal)
            let blocks = blocks(of: group)
            let groupEnd = first + blocks.reduce(0) { $0 + UInt64($1.pageCount) }
            guard next < groupEnd else {
                position += 1
                continue
            }
            guard first <= next else {
                try body(nil)
                next += 1
                continue
            }
            let last = min(end, groupEnd)
            try PageGroupTable.forEachLocation(
                of: Int(next - first)..<Int(last - first), in: blocks, pack: group.location.pack,
                recordOffset: group.location.offset, body)
            next = last
            position += 1
        }
    }

    /// The last page group whose first ordinal is at most `ordinal`.
    private func index(of ordinal: UInt32) -> Int? {
        var low = 0
        var high = groups.count
        while low < high {
            let middle = (low + high) / 2
            if groups[middle].firstOrdinal <= ordinal { low = middle + 1 } else { high = middle }
        }
        return low == 0 ? nil : low - 1
    }
}
