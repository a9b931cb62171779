import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

/// A long chain: a restore costs the same anywhere in it, and metadata stays small.
@Suite(.serialized) struct ChainTests {
    private struct Chain {
        let directory = TemporaryDirectory()
        let repository: Repository
        var checkpoints: [Checkpoint] = []

        /// Takes `count` checkpoints of a guest of `pageCount` pages; before each, `dirtyCount`
        /// random pages are dirtied, all within every `spread`-th run of four pages.
        init(count: Int, pageCount: Int, dirtyCount: Int, spread: Int = 1) throws {
            repository = try Repository.create(at: directory.path.appending("store"))
            let memory = ProcessMemory()
            let region = try memory.allocate(byteCount: pageCount * Page.byteCount)
            var random = TestSeed.generator(400)
            for page in 0..<pageCount { ChainTests.fill(region, page, &random) }
            let session = try CaptureSession(of: memory, in: repository, lineage: "chain")
            checkpoints.append(try session.capture().checkpoint)
            var pending: PendingCapture?
            for _ in 1..<count {
                for _ in 0..<dirtyCount {
                    let hot = Int.random(in: 0..<pageCount / spread, using: &random)
                    ChainTests.fill(region, hot / 4 * 4 * spread + hot % 4, &random)
                }
                let next = try session.begin()
                if let result = try pending?.wait() { checkpoints.append(result.checkpoint) }
                pending = next
            }
            if let result = try pending?.wait() { checkpoints.append(result.checkpoint) }
        }

        /// Restores a checkpoint, and returns the cost.
        func restore(_ checkpoint: Checkpoint) throws -> (RestoreResult, Duration) {
            let memory = ProcessMemory(tracking: .compareAll)
            _ = try memory.allocate(byteCount: checkpoint.pageCount * Page.byteCount)
            let start = ContinuousClock.now
            let result = try repository.restore(checkpoint, into: memory)
            let time = ContinuousClock.now - start
            #expect(try memory.memoryRoot() == checkpoint.memory.root)
            return (result, time)
        }
    }

    /// Half of the page random, half of it the same byte: it compresses to about half.
    private static func fill(
        _ region: MemoryRegion, _ page: Int, _ random: inout SeededGenerator
    ) {
        let start = page * Page.byteCount
        for offset in stride(from: start, to: start + Page.byteCount / 2, by: 8) {
            region.bytes.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
    }

    /// The cost of a plan, and what it frees, for one checkpoint of many and for almost all.
    @Test(.enabled(if: tracksWrites), arguments: [100, 1000])
    func pruneIsPlannedInTheTimeOfTheMaps(count: Int) throws {
        let chain = try Chain(
            count: count, pageCount: TestSeed.isLong ? 65_536 : 4096,
            dirtyCount: TestSeed.isLong ? 1000 : 100)
        let repository = chain.repository
        for victims in [[count / 2], Array(0..<count - 10)] {
            let live = try repository.checkpoints().map(\.id)
            try repository.forget(
                victims.map { chain.checkpoints[$0].id }.filter { live.contains($0) })
            let start = ContinuousClock.now
            let plan = try repository.planPrune(PruneOptions(unusedPercentMax: 0))
            let planned = ContinuousClock.now
            try plan.execute()
            print(
                "\(count) checkpoints, \(victims.count) forgotten: planned in \(planned - start), "
                    + "done in \(ContinuousClock.now - planned); \(plan.deadPageCount) pages, "
                    + "\(plan.freedByteCount) of \(plan.byteCount) bytes freed, "
                    + "\(plan.copiedByteCount) copied")
        }
        for checkpoint in try repository.checkpoints() { _ = try chain.restore(checkpoint) }
        #expect(try repository.verify().isClean)
    }

    /// Writes all over the guest are the worst case: late in the chain every page is a run of its
    /// own.
    ///
    /// A working set of a sixteenth of the guest is typical.
    @Test(.enabled(if: tracksWrites), arguments: [16, 1])
    func firstAndLastOfAThousandCostTheSame(spread: Int) throws {
        let pageCount = TestSeed.isLong ? 65_536 : 4096
        let dirtyCount = TestSeed.isLong ? 1000 : 100
        let chain = try Chain(
            count: 1000, pageCount: pageCount, dirtyCount: dirtyCount, spread: spread)
        let first = chain.checkpoints[0]
        let last = chain.checkpoints[999]
        var times: [Duration] = []
        var results: [RestoreResult] = []
        for checkpoint in [first, last, first, last, first, last] {
            let (result, time) = try chain.restore(checkpoint)
            results.append(result)
            times.append(time)
        }
        let (one, thousand) = (results[4], results[5])
        print(
            "writes to 1/\(spread) of the guest; restore of checkpoint 1: \(one.mapsRead) maps, "
                + "\(one.bytesRead) bytes, \(times[4]); of checkpoint 1000: "
                + "\(thousand.mapsRead) maps, \(thousand.bytesRead) bytes, \(times[5])")
        let ratio = Double(thousand.bytesRead) / Double(one.bytesRead)
        #expect(ratio > 0.9 && ratio < 1.1, "bytes read, last over first")
        // At most 3 log4(n) + 1 maps.
        for checkpoint in chain.checkpoints where checkpoint.id.digest.words.0 % 50 == 0 {
            let mapsRead = try chain.repository.pageMap(of: checkpoint).mapsRead
            #expect(mapsRead <= 16)
        }
    }

    @Test(.enabled(if: tracksWrites))
    func metadataStaysSmall() throws {
        let chain = try Chain(count: 130, pageCount: 1 << 17, dirtyCount: 1000)
        let deltas = chain.checkpoints.dropFirst()
        let plain = deltas.filter { $0.manifest.mapPosition % 4 != 0 && !$0.hasBaseMap }
        func perPage(_ checkpoints: some Collection<Checkpoint>) -> Double {
            let bytes = checkpoints.reduce(0) { $0 + $1.metadataByteCount }
            return Double(bytes) / Double(checkpoints.reduce(0) { $0 + $1.changedPageCount })
        }
        let statistics = try chain.repository.statistics()
        print(
            "metadata a changed page, 1000 random pages of 131072: plain delta \(perPage(plain)), "
                + "all deltas \(perPage(deltas)), whole repository "
                + "\(statistics.metadataBytesPerChangedPage)")
        #expect(perPage(plain) <= 48)
        #expect(perPage(deltas) <= 150)
    }
}

/// True if this kernel can track writes; otherwise prints the reason, once.
let tracksWrites: Bool = {
    do throws(GuestError) {
        try ProcessMemory.checkSupport()
        return true
    } catch {
        noteSkipped("skipped, tracking of writes: \(error.message)")
        return false
    }
}()
