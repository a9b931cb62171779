import GuestModel
import Synchronization

/// Says of most pages that are not in the table of pages that they are not, without a look at it.
///
/// A look costs some cold lines of memory, and most of the pages that a guest wrote are new.
///
/// A Bloom filter whose bits of one page lie in one word (F. Putze, P. Sanders, J. Singler,
/// "Cache-, Hash- and Space-Efficient Bloom Filters", WEA 2007): four of 64, and twelve bits a page
/// when it is full; some few of a hundred absent pages are not known to be so then.
package struct PageFilter: Sendable {
    private static let bitsPerPage = 12

    private var words: [UInt64]
    /// Pages that it takes.
    private let capacity: Int
    private(set) var count = 0

    /// An empty one with room for so many pages, and half of that again.
    package init(count: Int) {
        capacity = max(count + count / 2, 1 << 16)
        words = Array(repeating: 0, count: capacity * PageFilter.bitsPerPage / 64)
    }

    var isFull: Bool { count >= capacity }

    mutating func insert(_ digest: PageDigest) {
        words[position(digest)] |= PageFilter.bits(digest)
        count += 1
    }

    /// False: it was never inserted.
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

/// The filter of the one who writes the index.
///
/// It holds every page of the table of pages: it is made in a write transaction, each page is
/// inserted before the transaction that puts it there is committed, and pages that go stay in it.
/// Nobody else may write meanwhile.
package final class WriterFilter: Sendable {
    private struct State {
        /// The last one takes what is inserted; each twice as large as all before it, so that what
        /// is in the table need not be read again.
        var filters: [PageFilter] = []
        var isWriter = false
    }

    private let state = Mutex(State())
    /// Pages that were looked for in the table, and not there, since there was no filter.
    private let missCount = Atomic<Int>(0)

    /// Misses from which on a filter of some pages is worth the reading of all of them.
    private static func missCountMin(_ pageCount: Int) -> Int { max(pageCount / 8, 1 << 14) }

    /// From now on nobody else writes.
    package func begin() { state.withLock { $0.isWriter = true } }

    /// From now on others may write.
    package func end() { state.withLock { $0 = State() } }

    /// True if it is to be made for a table of so many pages.
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

    /// Notes pages that are being put into the table.
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

    /// Calls `body` with the positions of those that may be in the table.
    func forEachCandidate<E: Error>(
        _ order: [Int], _ digest: (Int) -> PageDigest, _ body: (Int) throws(E) -> Bool
    ) throws(E) {
        // The answers first, so that nobody waits for a look at the table.
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
