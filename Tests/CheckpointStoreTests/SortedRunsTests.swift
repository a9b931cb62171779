import CheckpointEngine
import CheckpointFormat
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import LMDBTables
@testable import PackStore

/// Pages are found at every stage of their move from sorted runs to the table of pages.
@Suite struct SortedRunsTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private func open(_ limits: RecentLimits) throws -> Index {
        let index = try Index.open(in: OpenDirectory(directory.path.string), .writing)
        index.recent.limits = limits
        index.recent.limits.entryCountMin = 1
        index.recent.limits.bulkPart = 0
        return index
    }

    /// Runs `body`, which may fail in other ways than the index, in a read txn.
    private func reading(
        _ index: Index, _ body: (borrowing LMDBTxn) throws -> Void
    ) throws {
        let result = try index.environment.read { (txn) throws(IndexError) in
            Result { try body(txn) }
        }
        try result.get()
    }

    /// Additions, drains and deletions compared with a dictionary, as seen by the writer, by
    /// another user of the index, and in older snapshots.
    @Test(arguments: 0..<(TestSeed.isLong ? 200 : 12 as UInt64))
    func everyoneSeesWhatADictionaryHolds(round: UInt64) throws {
        var random = TestSeed.generator(7_300 + round)
        let most = Int.random(in: 8...400, using: &random)
        let index = try open(RecentLimits(drainCounts: 4...most))
        let other = try open(RecentLimits())
        // The writer has a filter from some point on; the others have none.
        index.filter.begin()
        let start = Int.random(in: 0..<60, using: &random)
        var model = PageModel()
        for step in 0..<120 {
            switch Int.random(in: 0..<10, using: &random) {
            case 0..<6: try model.add(Int.random(in: 1...60, using: &random), index, &random)
            case 6: try model.replace(index, &random)
            case 7..<9: try model.delete(Int.random(in: 1...80, using: &random), index, &random)
            default: try model.deleteElsewhere(index, &random)
            }
            if step == start {
                try index.environment.write { (txn) throws(IndexError) in try index.makeFilter(txn)
                }
            }
            if step % 10 == 3 { try model.check(other, &random) }
            try model.check(index, &random)
        }
        #expect(try index.pageCount() == model.pages.count)
        #expect(try other.pageCount() == model.pages.count)
        try model.checkAll(other)
        #expect(model.drainCount > 0, "some run was drained to its end")
    }

    /// A txn sees its own snapshot, whatever others add, drain and delete in the meantime, and
    /// whether it or they read first.
    @Test(arguments: [true, false], 0..<6 as Range<UInt64>)
    func aMomentThatHasPassedIsSeenAsItWas(asksEarly: Bool, round: UInt64) throws {
        var random = TestSeed.generator(7_600 + round)
        let index = try open(RecentLimits(drainCounts: 16...16))
        var model = PageModel()
        for _ in 0..<20 { try model.add(9, index, &random) }
        let old = model
        try reading(index) { txn in
            let early = asksEarly ? try index.recentWindow(txn) : nil
            for _ in 0..<40 {
                try model.add(7, index, &random)
                try model.delete(3, index, &random)
                try model.check(index, &random)
            }
            let window = try early ?? index.recentWindow(txn)
            for (digest, location) in old.pages {
                #expect(try index.location(digest, in: window, txn) == location)
            }
            for digest in model.pages.keys where old.pages[digest] == nil {
                #expect(try index.location(digest, in: window, txn) == nil)
            }
        }
        try model.check(index, &random)
        #expect(model.drainCount > 1)
    }

    /// One thread adds and drains; its additions are visible to all others at every moment.
    @Test func whatIsThereIsFoundWhileItMoves() throws {
        let index = try open(RecentLimits(drainCounts: 64...64))
        var random = TestSeed.generator(7_900)
        let known = Mutex<[PageDigest]>([])
        let isDone = Atomic<Bool>(false)
        let missed = Atomic<Int>(0)
        let looked = Atomic<Int>(0)
        var model = PageModel()
        let seeds = (0..<3).map { _ in random.next() }
        let readers = try seeds.map { seed in
            try Threads.Thread {
                var random = SeededGenerator(seed: seed)
                while !isDone.load(ordering: .acquiring) {
                    let digests = known.withLock { $0.shuffled(using: &random).prefix(40) }
                    let batch = Array(digests)
                    do {
                        try index.locations(of: batch.span) { _, location in
                            looked.add(1, ordering: .relaxed)
                            if location == nil { missed.add(1, ordering: .relaxed) }
                        }
                    } catch {
                        missed.add(1, ordering: .relaxed)
                    }
                }
            }
        }
        for _ in 0..<400 {
            try model.add(10, index, &random)
            known.withLock { $0 = Array(model.pages.keys) }
        }
        isDone.store(true, ordering: .releasing)
        for reader in readers { reader.join() }
        #expect(missed.load(ordering: .relaxed) == 0)
        #expect(looked.load(ordering: .relaxed) > 1000)
        #expect(model.drainCount > 10)
    }

    /// Few new pages, and those that are a large share of all pages, go directly to the table.
    @Test func whatBecomesARunIsNeitherFewNorMost() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        try repository.withIndex { $0.recent.limits.entryCountMin = 4 }
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 128))
        let session = try CaptureSession(of: guest, in: repository, lineage: "a")
        var random = TestSeed.generator(7_970)
        // 64 when there are none; 3 are few; 7 are less than an eighth of 67; 20 are more than
        // that.
        var inRuns: [Int] = []
        for count in [64, 3, 7, 20] as [UInt64] {
            for frame in 0..<count {
                let page = (0..<Page.byteCount / 8).flatMap { _ in
                    withUnsafeBytes(of: random.next()) { Array($0) }
                }
                guest.with { $0.write(frame, page) }
            }
            _ = try session.capture()
            inRuns.append(
                try repository.withIndex { index in
                    try index.environment.read { (txn) throws(IndexError) in
                        try index.pagesInRuns(txn).count
                    }
                })
        }
        #expect(inRuns == [0, 0, 7, 7])
        session.close()
        #expect(try repository.verify().isClean)
    }

    /// The structures for finding pages in runs stay small.
    @Test func aBoundedNumberOfPagesIsInRuns() throws {
        let index = try open(RecentLimits(drainCounts: 2000...2000))
        var random = TestSeed.generator(7_950)
        var model = PageModel()
        var most = 0
        for _ in 0..<200 {
            try model.add(100, index, &random)
            let inRuns = try index.environment.read { (txn) throws(IndexError) in
                try index.pagesInRuns(txn).count
            }
            most = max(most, inRuns)
        }
        // The pages of the last sweep, and those since.
        #expect(most <= 4100)
        #expect(most > 1900)
    }
}

/// The filter that tells for most absent pages that they are absent.
@Suite struct PageFilterTests {
    @Test func itForgetsNoneAndKnowsMostOthers() {
        var random = TestSeed.generator(8_100)
        let filter = WriterFilter()
        filter.begin()
        filter.set(PageFilter(count: 0))
        func digests(_ count: Int) -> [PageDigest] {
            (0..<count).map { _ in
                PageDigest(words: (random.next(), random.next(), random.next(), random.next()))
            }
        }
        // Exceeds the first filter's capacity, and the second's.
        let known = digests(400_000)
        filter.insert(known)
        let unknown = digests(100_000)
        func candidates(_ digests: [PageDigest]) -> Int {
            var count = 0
            filter.forEachCandidate(
                Array(digests.indices), { digests[$0] },
                { _ in
                    count += 1
                    return true
                })
            return count
        }
        #expect(candidates(known) == known.count)
        #expect(candidates(unknown) < unknown.count / 10)
        // Others may have written in the meantime.
        filter.end()
        filter.set(PageFilter(count: 0))
        #expect(candidates(unknown) == unknown.count)
    }

    @Test func itIsMadeWhenEnoughWasMissed() {
        let filter = WriterFilter()
        let digests = (0..<20_000 as Range<UInt64>).map { PageDigest(words: ($0, $0, $0, $0)) }
        func miss() {
            filter.forEachCandidate(Array(digests.indices), { digests[$0] }, { _ in false })
        }
        miss()
        #expect(!filter.isDue(1000), "nobody writes")
        filter.begin()
        #expect(filter.isDue(1000))
        #expect(!filter.isDue(1_000_000))
        filter.set(PageFilter(count: 1000))
        #expect(!filter.isDue(1000))
        filter.clear()
        #expect(!filter.isDue(1000))
    }
}

/// The expected contents of the index.
private struct PageModel {
    var pages: [PageDigest: PageLocation] = [:]
    private var lastLimit: UInt64 = 0
    private(set) var drainCount = 0

    /// In an order that is repeatable by seed.
    private var digests: [PageDigest] { pages.keys.sorted { $0.precedes($1) } }

    private static func digest(_ random: inout SeededGenerator) -> PageDigest {
        // Few first bytes, so that neighbours and equal ones occur.
        let first = UInt64.random(in: 0..<4, using: &random)
        return PageDigest(
            words: (
                first == 0 ? random.next() & 0xff : random.next(), random.next(), random.next(),
                random.next()
            ))
    }

    private static func location(_ random: inout SeededGenerator) -> PageLocation {
        PageLocation(
            pack: UInt32.random(in: 1...9, using: &random),
            blockOffset: UInt32.random(in: 0...1 << 26, using: &random),
            blockByteCount: 4096, blockPageCount: 1, slot: 0)
    }

    /// Adds new pages as one run.
    mutating func add(_ count: Int, _ index: Index, _ random: inout SeededGenerator) throws {
        var new: [PlacedPage] = []
        for _ in 0..<count {
            new.append(
                PlacedPage(
                    digest: PageModel.digest(&random), location: PageModel.location(&random)))
        }
        new.sort { $0.digest.precedes($1.digest) }
        for page in new { pages[page.digest] = page.location }
        let before = try index.environment.read { (txn) throws(IndexError) in
            try index.recentWindow(txn)?.first
        }
        try index.environment.write { (txn) throws(IndexError) in
            for page in new { try index.placeUnreferenced(page.digest, txn) }
            try index.add(new, txn)
        }
        let after = try index.environment.read { (txn) throws(IndexError) in
            try index.recentWindow(txn)?.first
        }
        if let before, before != after { drainCount += 1 }
    }

    /// Stores a page at another location.
    mutating func replace(_ index: Index, _ random: inout SeededGenerator) throws {
        guard let digest = digests.randomElement(using: &random) else { return }
        let location = PageModel.location(&random)
        try index.environment.write { (txn) throws(IndexError) in
            try index.setLocation(location, of: digest, txn)
        }
        pages[digest] = location
    }

    mutating func delete(_ count: Int, _ index: Index, _ random: inout SeededGenerator) throws {
        let dead = Set(digests.shuffled(using: &random).prefix(count))
        #expect(try index.deletePages(pages.filter { dead.contains($0.key) }))
        for digest in dead { pages[digest] = nil }
    }

    /// Asks to delete pages at wrong locations: they are kept.
    func deleteElsewhere(_ index: Index, _ random: inout SeededGenerator) throws {
        var wrong: [PageDigest: PageLocation] = [:]
        for digest in digests.shuffled(using: &random).prefix(5) {
            wrong[digest] = PageLocation(
                pack: 77, blockOffset: 0, blockByteCount: 4096, blockPageCount: 1, slot: 0)
        }
        #expect(try index.deletePages(wrong))
    }

    /// Looks up some pages, and some absent ones.
    func check(_ index: Index, _ random: inout SeededGenerator) throws {
        var digests = Array(self.digests.shuffled(using: &random).prefix(50))
        for _ in 0..<10 { digests.append(PageModel.digest(&random)) }
        digests.shuffle(using: &random)
        var wrong = 0
        try index.locations(of: digests.span) { position, location in
            if location != pages[digests[position]] { wrong += 1 }
        }
        #expect(wrong == 0, "of \(digests.count)")
    }

    /// All pages, in the order of digests.
    func checkAll(_ index: Index) throws {
        var found: [PageDigest: PageLocation] = [:]
        var last: PageDigest?
        try index.forEachPage { digest, location in
            if let last { #expect(last.precedes(digest)) }
            last = digest
            found[digest] = location
        }
        let isSame = found == pages
        #expect(isSame, "\(found.count) of \(pages.count)")
    }
}
