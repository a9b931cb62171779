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
    // MARK: - Lookup

    /// The existing runs; lookups of pages in them need this first.
    ///
    /// Must not be called in a txn that has added a run.
    package func recentWindow(
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> RecentWindow? {
        guard let last = try tables.recent.lastKey(in: txn)?.number else { return nil }
        var keys = try tables.recent.entries(in: txn)
        let first = try keys.nextKey()?.number ?? last
        // Without permission to lock, runs may be overwritten while they are read: what was read is
        // discarded with the txn then.
        let runs = environment.isReadOnly ? SortedRuns() : recent
        try runs.withPages { (pages) throws(IndexError) in
            pages.removeRuns(before: first)
            // Older ones too: this txn may see runs that a later one no longer sees.
            if let known = pages.known {
                if first < known.lowerBound {
                    try read(first...min(known.lowerBound - 1, last), &pages, txn)
                }
                if last > known.upperBound {
                    try read(max(known.upperBound + 1, first)...last, &pages, txn)
                }
            } else {
                try read(first...last, &pages, txn)
            }
            pages.didRead(first...last)
            pages.beginViewing(from: first)
        }
        return RecentWindow(first...last, of: runs)
    }

    private func read(
        _ numbers: ClosedRange<UInt64>, _ pages: inout RecentPages,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        var runs = try tables.recent.entries(from: RunNumber(numbers.lowerBound), in: txn)
        while let (key, run) = try runs.next(), key.number <= numbers.upperBound {
            try pages.add(run, number: key.number)
        }
    }

    /// A page's position in the runs, and its location; nil if it is in none.
    private func find(
        _ digest: PageDigest, in window: RecentWindow, _ pages: borrowing RecentPages,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> (place: RecentPlace, location: PageLocation)? {
        try pages.find(digest) {
            (place) throws(IndexError) -> (place: RecentPlace, location: PageLocation)? in
            // Another thread may have read runs that this txn does not see.
            guard place.run >= window.first, place.run <= window.last else { return nil }
            // The checksum was verified when the run was read.
            let run = try tables.recent.value(
                for: RunNumber(place.run), in: txn, isChecked: false)
            guard let run, place.position < run.count, run.digest(place.position) == digest,
                let location = try run.location(place.position)
            else { return nil }
            return (place, location)
        }
    }

    /// The location of a page; nil if it is not in the index.
    func location(
        _ digest: PageDigest, in window: RecentWindow?, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> PageLocation? {
        let placed = try tables.pages.value(for: digest, in: txn)
        guard placed == nil, let window else { return placed }
        return try window.runs.withPages { (pages) throws(IndexError) in
            try find(digest, in: window, pages, txn)?.location
        }
    }

    /// The locations of pages, by the indexes of their digests.
    ///
    /// - Parameters:
    ///   - order: indexes, sorted by digest.
    ///   - count: an upper bound of all indexes.
    func locations(
        _ order: [Int], of count: Int, _ digest: (Int) -> PageDigest, in window: RecentWindow?,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> [PageLocation?] {
        var found = [PageLocation?](repeating: nil, count: count)
        if window == nil, try tables.pages.count(in: txn) == 0 { return found }
        let finder = try tables.pages.finder(in: txn)
        try filter.forEachCandidate(order, digest) { (position) throws(IndexError) in
            found[position] = try finder.value(for: digest(position))
            return found[position] != nil
        }
        guard let window else { return found }
        try window.runs.withPages { (pages) throws(IndexError) in
            for position in order where found[position] == nil {
                found[position] = try find(
                    digest(position), in: window, pages, txn)?.location
            }
        }
        return found
    }

    // MARK: - Adding

    /// Puts a page into the page table, which has precedence over the runs.
    package func setLocation(
        _ location: PageLocation, of digest: PageDigest, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        filter.insert(CollectionOfOne(digest))
        try tables.pages.put(location, for: digest, in: txn)
    }

    /// Builds a filter of the page table; in a write txn.
    func makeFilter(_ txn: borrowing LMDBTxn) throws(IndexError) {
        var new = PageFilter(count: try tables.pages.count(in: txn))
        var entries = try tables.pages.entries(in: txn)
        while let digest = try entries.nextKey() { new.insert(digest) }
        filter.set(new)
    }

    /// Adds pages that are not in the index, in digest order, and drains others; must be the txn's
    /// last operation on pages.
    func add(
        _ pages: [PlacedPage], _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        if try makesRun(of: pages.count, txn) {
            try put(SortedRun.encode(pages), number: txn.moment, txn)
            try drain(added: pages.count, txn)
        } else {
            try insert(pages, txn)
        }
        if filter.isDue(try tables.pages.count(in: txn)) { try makeFilter(txn) }
    }

    /// True if this many new pages should become a run.
    private func makesRun(
        of count: Int, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> Bool {
        let limits = recent.limits
        guard count >= limits.entryCountMin else { return false }
        guard limits.bulkPart > 0 else { return true }
        return try count < tables.pages.count(in: txn) / limits.bulkPart
    }

    /// Inserts pages, in digest order, into the page table, except for existing ones.
    private func insert(
        _ pages: [PlacedPage], _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        filter.insert(pages.lazy.map(\.digest))
        let finder = try tables.pages.finder(in: txn)
        for page in pages { try finder.insert(page.location, for: page.digest) }
    }

    private func put(
        _ run: [UInt8], number: UInt64, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try run.withBytes { (bytes) throws(IndexError) in
            try tables.recent.put(try SortedRun(bytes), for: RunNumber(number), in: txn)
        }
    }

    /// Number of pages added while the whole digest space is drained once.
    private func drainCount(_ txn: borrowing LMDBTxn) throws(IndexError) -> UInt64 {
        let range = recent.limits.drainCounts
        let wanted = try tables.pages.count(in: txn) / 8
        return UInt64(min(max(wanted, range.lowerBound), range.upperBound))
    }

    private func drain(
        added: Int, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        var drain = try tables.state.drain.value(in: txn) ?? Drain()
        drain.owedCount += UInt64(added)
        let count = try drainCount(txn)
        // Smaller steps would cost more, because each searches all runs; captures would have to
        // wait for larger ones.
        if drain.owedCount >= count / 256 {
            let share = (UInt64.max / count).multipliedReportingOverflow(by: drain.owedCount)
            let end = drain.position.addingReportingOverflow(share.partialValue)
            drain.owedCount = 0
            if share.overflow || end.overflow {
                try moveToPages(from: drain.position, to: nil, limit: drain.limit, txn)
                try removeRuns(upTo: drain.limit, txn)
                drain.position = 0
                drain.limit = txn.moment
            } else {
                try moveToPages(
                    from: drain.position, to: end.partialValue, limit: drain.limit, txn)
                drain.position = end.partialValue
            }
        }
        try tables.state.drain.set(drain, in: txn)
    }

    /// Moves the pages of a section of the digest space to the page table.
    ///
    /// - Parameters:
    ///   - end: the end of the section; nil: the end of the digest space.
    ///   - limit: the number of the newest run to include.
    private func moveToPages(
        from start: UInt64, to end: UInt64?, limit: UInt64,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        guard limit > 0 else { return }
        var pages: [PlacedPage] = []
        var runs = try tables.recent.entries(in: txn)
        while let (key, run) = try runs.next(), key.number <= limit {
            for position in run.firstPosition(from: start)..<run.count {
                let digest = run.digest(position)
                if let end, digest.order >= end { break }
                guard let location = try run.location(position) else { continue }
                pages.append(PlacedPage(digest: digest, location: location))
            }
        }
        pages.sort { $0.digest.precedes($1.digest) }
        try insert(pages, txn)
    }

    private func removeRuns(
        upTo limit: UInt64, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        var numbers: [RunNumber] = []
        var runs = try tables.recent.entries(in: txn)
        while let key = try runs.nextKey(), key.number <= limit { numbers.append(key) }
        for number in numbers { try tables.recent.remove(number, in: txn) }
    }

    // MARK: - Removal

    /// The positions of pages in the runs.
    func recentPlace(
        _ digest: PageDigest, in window: RecentWindow?, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> RecentPlace? {
        guard let window else { return nil }
        return try window.runs.withPages { (pages) throws(IndexError) in
            try find(digest, in: window, pages, txn)?.place
        }
    }

    /// Removes pages from runs; all others keep their positions.
    func bury(
        _ places: [RecentPlace], _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        for (number, places) in Dictionary(grouping: places, by: \.run) {
            guard var run = try tables.recent.value(for: RunNumber(number), in: txn)?.encoded
            else { throw .damagedValue("run") }
            for place in places {
                let start = place.position * SortedRun.entryByteCount + PageDigest.byteCount
                for index in start..<start + PageLocation.byteCount { run[index] = 0 }
            }
            try put(run, number: number, txn)
        }
    }

    // MARK: - Enumeration

    /// Pages that are only in runs, in digest order.
    package func pagesInRuns(
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> [PlacedPage] {
        var pages: [PlacedPage] = []
        var runs = try tables.recent.entries(in: txn)
        while let (_, run) = try runs.next() {
            for position in 0..<run.count {
                guard let location = try run.location(position) else { continue }
                let digest = run.digest(position)
                if try !tables.pages.contains(digest, in: txn) {
                    pages.append(PlacedPage(digest: digest, location: location))
                }
            }
        }
        pages.sort { $0.digest.precedes($1.digest) }
        return pages
    }
}

/// The progress of draining.
struct Drain: TableValue, FixedCoding {
    /// The number of the newest run being drained; 0: none.
    var limit: UInt64 = 0
    /// The position in the digest space up to which they were drained.
    var position: UInt64 = 0
    /// Pages added since the position was last moved.
    var owedCount: UInt64 = 0

    init() {}

    init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        (limit, position, owedCount) = try decodeIndexed("drain", bytes) {
            (reader) throws(FormatError) in
            let limit = try reader.read(UInt64.self)
            let position = try reader.read(UInt64.self)
            return (limit, position, try reader.read(UInt64.self))
        }
        // No writer reaches such numbers.
        guard limit <= Index.numberMax, owedCount <= Index.numberMax else {
            throw .damagedValue("drain")
        }
    }

    var indexedBytes: (UInt64, UInt64, UInt64) {
        (limit.littleEndian, position.littleEndian, owedCount.littleEndian)
    }
}
