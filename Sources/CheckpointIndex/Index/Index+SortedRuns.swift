package import CheckpointFormat
package import GuestModel
package import LMDBTables

// New pages are not added to the page table at once: digests are random, so each would make LMDB
// rewrite a leaf of 4 KiB. They go to `recent` first, those of one transaction as one run, and from
// there to the page table in digest order, one section of the digest space at a time:
//
//   digest space       0 ...........position.................. 2^64
//   runs up to limit     in pages  |  in runs only
//   newer runs           in runs only
//
//  - Each added page moves `position` by a share of the digest space, 1 in `drainCount`, so that
//    each write of a leaf of the table covers several pages.
//  - At the end the runs up to `limit` are removed, and draining begins again with those that exist
//    then. So at most twice `drainCount` pages are in runs, and the cost of an addition does not
//    fluctuate.
//  - The page table has precedence for pages in both: a page that is stored again is put there.
//  - A page that prune removes is removed from both (`bury`).
//
// All of this happens in the index's txns, so that every process sees the same.

extension Index {
    /// The progress of draining.
    private struct Drain {
        /// The number of the newest run being drained; 0: none.
        var limit: UInt64 = 0
        /// The position in the digest space up to which they were drained.
        var position: UInt64 = 0
        /// Pages added since the position was last moved.
        var owedCount: UInt64 = 0
    }

    private static let drainKey = "drain"

    // MARK: - Lookup

    /// The existing runs; lookups of pages in them need this first.
    ///
    /// Must not be called in a txn that has added a run.
    package func recentWindow(
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> RecentWindow? {
        guard let lastKey = try transaction.lastKey(table(.recent)) else { return nil }
        let last = try lastKey.withUnsafeBufferPointer { (key) throws(LMDBError) in
            try Index.runNumber(UnsafeRawBufferPointer(key))
        }
        var first = last
        try transaction.scan(table(.recent), from: []) { (key, _) throws(LMDBError) in
            first = try Index.runNumber(key)
            return false
        }
        // Without permission to lock, runs may be overwritten while they are read: what was read is
        // discarded with the txn then.
        let runs = environment.isReadOnly ? SortedRuns() : recent
        try runs.withPages { (pages) throws(LMDBError) in
            pages.removeRuns(before: first)
            // Older ones too: this txn may see runs that a later one no longer sees.
            if let known = pages.known {
                if first < known.lowerBound {
                    try read(first...min(known.lowerBound - 1, last), &pages, transaction)
                }
                if last > known.upperBound {
                    try read(max(known.upperBound + 1, first)...last, &pages, transaction)
                }
            } else {
                try read(first...last, &pages, transaction)
            }
            pages.didRead(first...last)
            pages.beginViewing(from: first)
        }
        return RecentWindow(first...last, of: runs)
    }

    private func read(
        _ numbers: ClosedRange<UInt64>, _ pages: inout RecentPages,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try forEachRun(in: numbers, transaction) { (number, run) throws(LMDBError) in
            try pages.add(run, number: number)
        }
    }

    /// A page's position in the runs, and its location; nil if it is in none.
    private func find(
        _ digest: PageDigest, in window: RecentWindow, _ pages: borrowing RecentPages,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> (place: RecentPlace, location: PageLocation)? {
        try pages.find(digest) {
            (place) throws(LMDBError) -> (place: RecentPlace, location: PageLocation)? in
            // Another thread may have read runs that this txn does not see.
            guard place.run >= window.first, place.run <= window.last else { return nil }
            let found = try Index.withKey(order: place.run) { (key) throws(LMDBError) in
                // The checksum was verified when the run was read.
                try transaction.get(table(.recent), key, isChecked: false) {
                    (run) throws(LMDBError) -> PageLocation? in
                    guard place.position < (try SortedRun.count(run)),
                        SortedRun.digest(run, place.position) == digest
                    else { return nil }
                    return try SortedRun.location(run, place.position)
                }
            }
            guard let location = found ?? nil else { return nil }
            return (place, location)
        }
    }

    /// The location of a page; nil if it is not in the index.
    func location(
        _ digest: PageDigest, in window: RecentWindow?, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> PageLocation? {
        let placed = try Index.withKey(digest) { (key) throws(LMDBError) in
            try transaction.get(table(.pages), key, PageLocation.init(indexed:))
        }
        guard placed == nil, let window else { return placed }
        return try window.runs.withPages { (pages) throws(LMDBError) in
            try find(digest, in: window, pages, transaction)?.location
        }
    }

    /// The locations of pages, by the indexes of their digests.
    ///
    /// - Parameters:
    ///   - order: indexes, sorted by digest.
    ///   - count: an upper bound of all indexes.
    func locations(
        _ order: [Int], of count: Int, _ digest: (Int) -> PageDigest, in window: RecentWindow?,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> [PageLocation?] {
        var found = [PageLocation?](repeating: nil, count: count)
        if window == nil, try transaction.count(table(.pages)) == 0 { return found }
        try transaction.withFinder(table(.pages)) { (finder) throws(LMDBError) in
            try filter.forEachCandidate(order, digest) { (position) throws(LMDBError) in
                found[position] = try Index.withKey(digest(position)) {
                    (key) throws(LMDBError) -> PageLocation? in
                    try finder.value(of: key).map(PageLocation.init(indexed:))
                }
                return found[position] != nil
            }
        }
        guard let window else { return found }
        try window.runs.withPages { (pages) throws(LMDBError) in
            for position in order where found[position] == nil {
                found[position] = try find(
                    digest(position), in: window, pages, transaction)?.location
            }
        }
        return found
    }

    // MARK: - Adding

    /// Puts a page into the page table, which has precedence over the runs.
    package func setLocation(
        _ location: PageLocation, of digest: PageDigest, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        filter.insert(CollectionOfOne(digest))
        try withLocationBytes { (value) throws(LMDBError) in
            location.encode(into: value)
            try Index.withKey(digest) { (key) throws(LMDBError) in
                try transaction.put(table(.pages), key, UnsafeRawBufferPointer(value))
            }
        }
    }

    /// Builds a filter of the page table; in a write txn.
    func makeFilter(_ transaction: borrowing LMDBTxn) throws(LMDBError) {
        var new = PageFilter(count: try transaction.count(table(.pages)))
        try transaction.scan(table(.pages), from: []) { (key, _) throws(LMDBError) in
            new.insert(try CheckpointID(indexed: key).digest)
            return true
        }
        filter.set(new)
    }

    /// Adds pages that are not in the index, in digest order, and drains others; must be the txn's
    /// last operation on pages.
    func add(
        _ pages: [PlacedPage], _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        if try makesRun(of: pages.count, transaction) {
            try put(SortedRun.encode(pages), number: transaction.moment, transaction)
            try drain(added: pages.count, transaction)
        } else {
            try insert(pages, transaction)
        }
        if filter.isDue(try transaction.count(table(.pages))) { try makeFilter(transaction) }
    }

    /// True if this many new pages should become a run.
    private func makesRun(
        of count: Int, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> Bool {
        let limits = recent.limits
        guard count >= limits.entryCountMin else { return false }
        guard limits.bulkPart > 0 else { return true }
        return try count < transaction.count(table(.pages)) / limits.bulkPart
    }

    /// Inserts pages, in digest order, into the page table, except for existing ones.
    private func insert(
        _ pages: [PlacedPage], _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        filter.insert(pages.lazy.map(\.digest))
        try transaction.withFinder(table(.pages)) { (finder) throws(LMDBError) in
            try withLocationBytes { (value) throws(LMDBError) in
                for page in pages {
                    page.location.encode(into: value)
                    try Index.withKey(page.digest) { (key) throws(LMDBError) in
                        try finder.insert(key, UnsafeRawBufferPointer(value))
                    }
                }
            }
        }
    }

    private func put(
        _ run: [UInt8], number: UInt64, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        try Index.withKey(order: number) { (key) throws(LMDBError) in
            try run.withUnsafeBufferPointer { (bytes) throws(LMDBError) in
                try transaction.put(table(.recent), key, UnsafeRawBufferPointer(bytes))
            }
        }
    }

    /// Number of pages added while the whole digest space is drained once.
    private func drainCount(_ transaction: borrowing LMDBTxn) throws(LMDBError) -> UInt64 {
        let range = recent.limits.drainCounts
        let wanted = try transaction.count(table(.pages)) / 8
        return UInt64(min(max(wanted, range.lowerBound), range.upperBound))
    }

    private func drain(
        added: Int, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        var drain = try self.drain(transaction)
        drain.owedCount += UInt64(added)
        let count = try drainCount(transaction)
        // Smaller steps would cost more, because each searches all runs; captures would have to
        // wait for larger ones.
        if drain.owedCount >= count / 256 {
            let share = (UInt64.max / count).multipliedReportingOverflow(by: drain.owedCount)
            let end = drain.position.addingReportingOverflow(share.partialValue)
            drain.owedCount = 0
            if share.overflow || end.overflow {
                try moveToPages(from: drain.position, to: nil, limit: drain.limit, transaction)
                try removeRuns(upTo: drain.limit, transaction)
                drain.position = 0
                drain.limit = transaction.moment
            } else {
                try moveToPages(
                    from: drain.position, to: end.partialValue, limit: drain.limit, transaction)
                drain.position = end.partialValue
            }
        }
        var value = ByteWriter(reserving: 24)
        value.write(drain.limit)
        value.write(drain.position)
        value.write(drain.owedCount)
        try setValue(transaction, Index.drainKey, value.bytes)
    }

    private func drain(_ transaction: borrowing LMDBTxn) throws(LMDBError) -> Drain {
        guard let bytes = try value(transaction, Index.drainKey) else { return Drain() }
        do throws(FormatError) {
            return try ByteReader.decode(bytes) { (reader) throws(FormatError) in
                let limit = try reader.read(UInt64.self)
                let position = try reader.read(UInt64.self)
                let owed = try reader.read(UInt64.self)
                guard limit <= Index.numberMax, owed <= Index.numberMax else {
                    throw FormatError(offset: 0, reason: "a number that no writer reaches")
                }
                return Drain(limit: limit, position: position, owedCount: owed)
            }
        } catch {
            throw .damagedValue(Index.drainKey)
        }
    }

    /// Moves the pages of a section of the digest space to the page table.
    ///
    /// - Parameters:
    ///   - end: the end of the section; nil: the end of the digest space.
    ///   - limit: the number of the newest run to include.
    private func moveToPages(
        from start: UInt64, to end: UInt64?, limit: UInt64,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        guard limit > 0 else { return }
        var pages: [PlacedPage] = []
        try forEachRun(in: 0...limit, transaction) { (_, run) throws(LMDBError) in
            let count = try SortedRun.count(run)
            for position in try SortedRun.firstPosition(run, from: start)..<count {
                let digest = SortedRun.digest(run, position)
                if let end, digest.order >= end { break }
                guard let location = try SortedRun.location(run, position) else { continue }
                pages.append(PlacedPage(digest: digest, location: location))
            }
        }
        pages.sort { $0.digest.precedes($1.digest) }
        try insert(pages, transaction)
    }

    private func removeRuns(
        upTo limit: UInt64, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        var numbers: [UInt64] = []
        try forEachRun(in: 0...limit, transaction) { (number, _) throws(LMDBError) in
            numbers.append(number)
        }
        for number in numbers {
            try Index.withKey(order: number) { (key) throws(LMDBError) in
                _ = try transaction.delete(table(.recent), key)
            }
        }
    }

    // MARK: - Removal

    /// The positions of pages in the runs.
    func recentPlace(
        _ digest: PageDigest, in window: RecentWindow?, _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> RecentPlace? {
        guard let window else { return nil }
        return try window.runs.withPages { (pages) throws(LMDBError) in
            try find(digest, in: window, pages, transaction)?.place
        }
    }

    /// Removes pages from runs; all others keep their positions.
    func bury(
        _ places: [RecentPlace], _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        for (number, places) in Dictionary(grouping: places, by: \.run) {
            let found = try Index.withKey(order: number) { (key) throws(LMDBError) in
                try transaction.get(table(.recent), key) { Array($0) }
            }
            guard var run = found else { throw .damagedValue("run") }
            for place in places {
                let start = place.position * SortedRun.entryByteCount + PageDigest.byteCount
                for index in start..<start + PageLocation.byteCount { run[index] = 0 }
            }
            try put(run, number: number, transaction)
        }
    }

    // MARK: - Enumeration

    /// Pages that are only in runs, in digest order.
    package func pagesInRuns(
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> [PlacedPage] {
        var pages: [PlacedPage] = []
        try forEachRun(in: 0...UInt64.max, transaction) { (_, run) throws(LMDBError) in
            for position in 0..<(try SortedRun.count(run)) {
                guard let location = try SortedRun.location(run, position) else { continue }
                let digest = SortedRun.digest(run, position)
                let isPlaced = try Index.withKey(digest) { (key) throws(LMDBError) in
                    try transaction.get(table(.pages), key) { _ in true } ?? false
                }
                if !isPlaced { pages.append(PlacedPage(digest: digest, location: location)) }
            }
        }
        pages.sort { $0.digest.precedes($1.digest) }
        return pages
    }

    /// Calls `body` with the runs of a range of numbers, in order.
    private func forEachRun(
        in numbers: ClosedRange<UInt64>, _ transaction: borrowing LMDBTxn,
        _ body: (UInt64, UnsafeRawBufferPointer) throws(LMDBError) -> Void
    ) throws(LMDBError) {
        let start = withUnsafeBytes(of: numbers.lowerBound.bigEndian) { Array($0) }
        try transaction.scan(table(.recent), from: start) { (key, run) throws(LMDBError) in
            let number = try Index.runNumber(key)
            guard number <= numbers.upperBound else { return false }
            try body(number, run)
            return true
        }
    }

    private static func runNumber(_ key: UnsafeRawBufferPointer) throws(LMDBError) -> UInt64 {
        guard key.count == 8 else { throw .damagedValue("run's number") }
        let number = UInt64(bigEndian: key.loadUnaligned(as: UInt64.self))
        guard number <= Index.numberMax else { throw .damagedValue("run's number") }
        return number
    }
}

/// Calls `body` with space for an encoded location.
func withLocationBytes(
    _ body: (UnsafeMutableRawBufferPointer) throws(LMDBError) -> Void
) throws(LMDBError) {
    let result = withUnsafeTemporaryAllocation(
        byteCount: PageLocation.byteCount, alignment: 8
    ) { bytes in Result { () throws(LMDBError) in try body(bytes) } }
    try result.get()
}
