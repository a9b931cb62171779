package import CheckpointFormat

/// The page groups that one transaction appended: maps ordinals to page locations.
package struct TransactionGroups: Sendable {
    private struct Group {
        let firstOrdinal: UInt32
        let location: RecordLocation
        let table: PageGroupTable
    }

    // Sorted by ordinal on the first lookup; workers append out of order.
    private var groups: [Group] = []
    private var isSorted = true

    package init() {}

    /// Adds a page group.
    package mutating func append(_ table: PageGroupTable, at location: RecordLocation) {
        if let last = groups.last, last.firstOrdinal > table.firstOrdinal { isSorted = false }
        groups.append(
            Group(firstOrdinal: table.firstOrdinal, location: location, table: table))
    }

    /// The packs that contain them.
    var packs: Set<UInt32> { Set(groups.map(\.location.pack)) }

    /// Number of pages in them.
    var pageCount: Int { groups.reduce(0) { $0 + $1.table.pageCount } }

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
            guard next < first + UInt64(group.table.pageCount) else {
                position += 1
                continue
            }
            guard first <= next else {
                try body(nil)
                next += 1
                continue
            }
            var here = first
            try group.table.forEachLocation(
                pack: group.location.pack, recordOffset: group.location.offset
            ) { (location) throws(E) in
                defer { here += 1 }
                guard here == next, next < end else { return }
                try body(location)
                next += 1
            }
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
