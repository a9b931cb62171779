package import CheckpointFormat
package import GuestModel
package import LMDBTables
import Synchronization

// A run: the pages that one write txn added, in digest order. Its value in the table `recent` has
// for each page its digest and its location. A location of zeros: prune removed the page.

/// A view of a run; valid as long as its bytes.
package struct SortedRun: TableValue {
    static let entryByteCount = PageDigest.byteCount + PageLocation.byteCount

    private typealias Words = (UInt64, UInt64, UInt64, UInt64)

    private let bytes: UnsafeRawBufferPointer

    /// Number of entries.
    var count: Int { bytes.count / SortedRun.entryByteCount }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        try self.init(bytes)
    }

    init(_ bytes: UnsafeRawBufferPointer) throws(IndexError) {
        guard bytes.count % SortedRun.entryByteCount == 0 else { throw .damagedValue("run") }
        self.bytes = bytes
    }

    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try body(bytes)
    }

    /// A copy of the bytes.
    var encoded: [UInt8] { Array(bytes) }

    static func encode(_ pages: [PlacedPage]) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: pages.count * entryByteCount) { buffer, count in
            let run = UnsafeMutableRawBufferPointer(buffer)
            for page in pages {
                run.storeBytes(of: page.digest.words, toByteOffset: count, as: Words.self)
                let start = count + PageDigest.byteCount
                withUnsafeBytes(of: page.location.indexedBytes) { location in
                    UnsafeMutableRawBufferPointer(rebasing: run[start...])
                        .copyMemory(from: location)
                }
                count += entryByteCount
            }
        }
    }

    func digest(_ position: Int) -> PageDigest {
        let start = position * SortedRun.entryByteCount
        return PageDigest(words: bytes.loadUnaligned(fromByteOffset: start, as: Words.self))
    }

    /// An entry's location; nil if prune removed the page.
    func location(_ position: Int) throws(IndexError) -> PageLocation? {
        let start = position * SortedRun.entryByteCount + PageDigest.byteCount
        let bytes = UnsafeRawBufferPointer(rebasing: bytes[start..<start + PageLocation.byteCount])
        guard bytes.contains(where: { $0 != 0 }) else { return nil }
        return try PageLocation(indexed: bytes)
    }

    /// The first entry whose digest is not below a position in the digest space.
    func firstPosition(from order: UInt64) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if digest(middle).order < order { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

extension PageDigest {
    /// The first eight bytes as a number, which orders like the digests.
    var order: UInt64 { words.0.byteSwapped }

    /// True if it precedes another in byte order.
    package func precedes(_ other: PageDigest) -> Bool {
        (order, words.1.byteSwapped, words.2.byteSwapped, words.3.byteSwapped)
            < (
                other.order, other.words.1.byteSwapped, other.words.2.byteSwapped,
                other.words.3.byteSwapped
            )
    }
}

/// A page and its location.
package struct PlacedPage: Hashable {
    package let digest: PageDigest
    package let location: PageLocation
}

/// The position of a page in the runs: the run's number, and the position in that run.
struct RecentPlace: Hashable {
    let run: UInt64
    let position: Int
}

/// Finds pages in runs by the first eight bytes of their digests.
///
/// Hash tables with open addressing, 16 bytes per slot, at most half full. On a hit, the caller
/// compares the rest of the digest in the run. They contain only data from the index, and are built
/// by reading runs.
struct RecentPages {
    private struct Slot {
        var prefix: UInt64 = 0
        /// The run's ordinal, from 1, in the upper half, and the position in the lower; 0: free.
        var place: UInt64 = 0
    }

    /// The slots of a part of the prefixes.
    private struct Table {
        var slots: [Slot] = []
        var takenCount = 0

        mutating func insert(_ slot: Slot) {
            let mask = slots.count - 1
            var index = Int(truncatingIfNeeded: slot.prefix) & mask
            while slots[index].place != 0 { index = (index + 1) & mask }
            slots[index] = slot
            takenCount += 1
        }
    }

    // Many, because a full one is rebuilt while captures wait: rebuilding a million entries at once
    // took 50 to 100 ms.
    private static let tableBits = 8
    private var tables = [Table](repeating: Table(), count: 1 << tableBits)
    /// The runs' numbers by their ordinals, which are assigned as runs are read.
    private var runs: [UInt64: UInt64] = [:]
    private var lastOrdinal: UInt64 = 0
    /// Numbers of the runs that were read.
    private var numbers: Set<UInt64> = []
    private var oldest = UInt64.max
    /// A range of numbers in which every run that any txn sees was read.
    private(set) var known: ClosedRange<UInt64>?
    /// Number of viewers of the runs from a number on.
    private var viewers: [UInt64: Int] = [:]

    /// Adds a run; one that was read before is skipped.
    mutating func add(
        _ run: SortedRun, number: UInt64
    ) throws(IndexError) {
        let count = run.count
        guard count <= UInt32.max else { throw .damagedValue("run") }
        guard numbers.insert(number).inserted else { return }
        oldest = min(oldest, number)
        lastOrdinal += 1
        runs[lastOrdinal] = number
        for position in 0..<count {
            let prefix = run.digest(position).words.0
            let table = RecentPages.table(of: prefix)
            if tables[table].takenCount * 2 >= tables[table].slots.count { makeRoom(table) }
            tables[table].insert(
                Slot(prefix: prefix, place: lastOrdinal << 32 | UInt64(position)))
        }
    }

    /// Selects the table of a prefix; other bits select the slot.
    private static func table(of prefix: UInt64) -> Int { Int(prefix >> UInt64(64 - tableBits)) }

    /// Records that all runs that a txn sees were read or were known.
    ///
    /// Runs are removed from the oldest on, so an earlier txn sees others only with lower numbers.
    mutating func didRead(_ seen: ClosedRange<UInt64>) {
        guard let known else {
            self.known = seen
            return
        }
        if seen.lowerBound <= known.upperBound + 1, known.lowerBound <= seen.upperBound + 1 {
            self.known =
                min(known.lowerBound, seen.lowerBound)...max(known.upperBound, seen.upperBound)
        } else if seen.lowerBound > known.upperBound {
            // In between, runs that an earlier txn sees may have been added and removed.
            self.known = seen
        }
    }

    /// Keeps runs from a number on until `endViewing`, even if they are removed from the index.
    mutating func beginViewing(from number: UInt64) { viewers[number, default: 0] += 1 }

    mutating func endViewing(from number: UInt64) {
        guard let count = viewers[number] else { return }
        viewers[number] = count > 1 ? count - 1 : nil
    }

    /// Forgets runs with lower numbers, unless they are being viewed.
    mutating func removeRuns(before number: UInt64) {
        let bound = viewers.keys.reduce(number) { min($0, $1) }
        guard oldest < bound else { return }
        // Their slots are freed when their tables are rebuilt.
        runs = runs.filter { $0.value >= bound }
        numbers = numbers.filter { $0 >= bound }
        oldest = numbers.min() ?? .max
        guard let known, known.lowerBound < bound else { return }
        self.known = known.upperBound < bound ? nil : bound...known.upperBound
    }

    /// Calls `body` with possible positions of a page, until it returns a value.
    func find<T>(
        _ digest: PageDigest, _ body: (RecentPlace) throws(IndexError) -> T?
    ) throws(IndexError) -> T? {
        let prefix = digest.words.0
        let table = RecentPages.table(of: prefix)
        guard !tables[table].slots.isEmpty else { return nil }
        let mask = tables[table].slots.count - 1
        var index = Int(truncatingIfNeeded: prefix) & mask
        while tables[table].slots[index].place != 0 {
            let slot = tables[table].slots[index]
            if slot.prefix == prefix, let run = runs[slot.place >> 32] {
                let position = Int(slot.place & 0xffff_ffff)
                let place = RecentPlace(run: run, position: position)
                if let found = try body(place) { return found }
            }
            index = (index + 1) & mask
        }
        return nil
    }

    /// Makes space in a table, and drops entries of runs that are gone.
    private mutating func makeRoom(_ table: Int) {
        let live = tables[table].slots.filter { $0.place != 0 && runs[$0.place >> 32] != nil }
        var size = 16
        while size < live.count * 3 { size *= 2 }
        tables[table] = Table(slots: Array(repeating: Slot(), count: size))
        for slot in live { tables[table].insert(slot) }
    }
}

/// When pages become a run, and how many pages may be in runs.
package struct RecentLimits {
    /// Minimum number of new pages in a transaction that become a run.
    ///
    /// Fewer go to the page table directly: each step of draining searches all runs.
    package var entryCountMin = 256
    /// If the new pages are at least this fraction of all pages, they also go to the table
    /// directly: a leaf takes as many of them as it would when runs are drained.
    ///
    /// 0: never.
    var bulkPart = 8
    /// Number of pages added while all runs are drained once: an eighth of all pages, which is
    /// about seven per leaf of their table, clamped to this range.
    ///
    /// At most twice as many are in runs; their hash tables take up to 100 bytes of memory each.
    var drainCounts = 1 << 15...1 << 19
    /// Entries of a checkpoint in one txn; nil: as many as memory allows.
    package var additionCountMax: Int?
}

/// What was read of the runs, shared by all lookups in them.
package final class SortedRuns: Sendable {
    private let pages = Mutex(RecentPages())
    private let limitsNow = Mutex(RecentLimits())

    /// For tests: to override `RecentLimits()`.
    package var limits: RecentLimits {
        get { limitsNow.withLock { $0 } }
        set { limitsNow.withLock { $0 = newValue } }
    }

    /// Runs `body` under the lock.
    func withPages<T>(
        _ body: (inout RecentPages) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try pages.withLock { (pages) throws(IndexError) -> T in try body(&pages) }
    }

    fileprivate func endViewing(from number: UInt64) {
        pages.withLock { $0.endViewing(from: number) }
    }
}

/// The runs that one txn sees.
package final class RecentWindow: Sendable {
    package let first: UInt64
    let last: UInt64
    let runs: SortedRuns

    /// - Parameter runs: viewing from the first one on has already begun there.
    init(_ numbers: ClosedRange<UInt64>, of runs: SortedRuns) {
        first = numbers.lowerBound
        last = numbers.upperBound
        self.runs = runs
    }

    deinit {
        runs.endViewing(from: first)
    }
}
