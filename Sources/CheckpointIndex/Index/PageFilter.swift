import GuestModel
import Synchronization

/// Rules out, for most pages absent from the page table, that they are in it, without a lookup.
///
/// A lookup causes several cache misses, and most of the pages that a guest wrote are new.
///
/// A blocked Bloom filter (F. Putze, P. Sanders, J. Singler, "Cache-, Hash- and Space-Efficient
/// Bloom Filters", WEA 2007): four bits of one 64-bit word per page, and twelve bits per page when
/// full; the false positive rate is then a few percent.
package struct PageFilter: Sendable {
    private static let bitsPerPage = 12

    private var words: [UInt64]
    /// Number of pages for which it has capacity.
    private let capacity: Int
    private(set) var count = 0

    /// Creates an empty filter for `count` pages and half as many again.
    package init(count: Int) {
        capacity = max(count + count / 2, 1 << 16)
        words = Array(repeating: 0, count: capacity * PageFilter.bitsPerPage / 64)
    }

    var isFull: Bool { count >= capacity }

    mutating func insert(_ digest: PageDigest) {
        words[position(digest)] |= PageFilter.bits(digest)
        count += 1
    }

    /// False: the digest was never inserted.
    func mayContain(_ digest: PageDigest) -> Bool {
        let bits = PageFilter.bits(digest)
        return words[position(digest)] & bits == bits
    }

    private func position(_ digest: PageDigest) -> Int {
        Int(digest.words.1.multipliedFullWidth(by: UInt64(words.count)).high)
    }

    private static func bits(_ digest: PageDigest) -> UInt64 {
        let number = digest.words.2
        return 1 << (number & 63) | 1 << (number >> 6 & 63) | 1 << (number >> 12 & 63)
            | 1 << (number >> 18 & 63)
    }
}

/// The filter of the index's writer.
///
/// It contains every page of the page table: it is built in a write txn, each page is inserted
/// before the txn that adds it to the table is committed, and removed pages stay in it. No other
/// process may write meanwhile.
package final class WriterFilter: Sendable {
    private struct State {
        /// New pages are inserted into the last one; each is twice as large as all before it
        /// together, so that the table need not be read again.
        var filters: [PageFilter] = []
        var isWriter = false
    }

    private let state = Mutex(State())
    /// Number of lookups of absent pages in the table since there was no filter.
    private let missCount = Atomic<Int>(0)

    /// Minimum number of misses that justifies reading all pages to build a filter.
    private static func missCountMin(_ pageCount: Int) -> Int { max(pageCount / 8, 1 << 14) }

    /// Call when no other process can write.
    package func begin() { state.withLock { $0.isWriter = true } }

    /// Call when others may write again.
    package func end() { state.withLock { $0 = State() } }

    /// True if a filter should be built for a table of `pageCount` pages.
    func isDue(_ pageCount: Int) -> Bool {
        state.withLock { state in
            guard state.isWriter, state.filters.isEmpty else { return false }
            return missCount.load(ordering: .relaxed) >= WriterFilter.missCountMin(pageCount)
        }
    }

    func set(_ filter: PageFilter) {
        state.withLock { state in
            if state.isWriter { state.filters = [filter] }
        }
    }

    /// Forgets all pages, because the table is emptied.
    func clear() {
        state.withLock { $0.filters = [] }
        missCount.store(0, ordering: .relaxed)
    }

    /// Inserts pages that are being added to the table.
    func insert(_ digests: some Sequence<PageDigest>) {
        state.withLock { state in
            guard !state.filters.isEmpty else { return }
            for digest in digests {
                if state.filters[state.filters.count - 1].isFull {
                    let count = state.filters.reduce(0) { $0 + $1.count }
                    state.filters.append(PageFilter(count: count * 4 / 3))
                }
                state.filters[state.filters.count - 1].insert(digest)
            }
        }
    }

    /// Calls `body` with the indexes of those that may be in the table.
    func forEachCandidate<E: Error>(
        _ order: [Int], _ digest: (Int) -> PageDigest, _ body: (Int) throws(E) -> Bool
    ) throws(E) {
        // Query the filter first, so that the lock is not held during lookups in the table.
        let candidates = state.withLock { state in
            let filters = state.filters
            guard !filters.isEmpty else { return [Int]?.none }
            return order.filter { position in
                let digest = digest(position)
                return filters.contains { $0.mayContain(digest) }
            }
        }
        var misses = 0
        for position in candidates ?? order where !(try body(position)) { misses += 1 }
        if candidates == nil { missCount.add(misses, ordering: .relaxed) }
    }
}
