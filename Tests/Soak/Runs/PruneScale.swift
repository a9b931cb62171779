import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import PackStore
public import SystemPackage
import VarveTestSupport

/// What a prune after forgetting one checkpoint costs, in stores of several sizes.
public struct PruneScale: Sendable {
    /// A store.
    public struct Shape: Sendable {
        /// Checkpoints in it.
        public let checkpointCount: Int
        /// Pages of the guest.
        public let pageCount: Int
        /// Writes between two checkpoints: half of them to random pages, half of them among as
        /// many pages as there are writes.
        public let writeCount: Int

        /// Makes a shape.
        public init(checkpointCount: Int, pageCount: Int, writeCount: Int) {
            self.checkpointCount = checkpointCount
            self.pageCount = pageCount
            self.writeCount = writeCount
        }
    }

    /// What one prune cost.
    public struct Cost: Sendable {
        /// Milliseconds until the plan was there.
        public var planMilliseconds = 0.0
        /// Milliseconds to do what it says.
        public var executeMilliseconds = 0.0
        /// Milliseconds of processor time for both.
        public var processorMilliseconds = 0.0
        /// Bytes that were read of the repository's files for both, but for LMDB's.
        public var readByteCount = 0
        /// Pages that died.
        public var deadPageCount = 0
    }

    /// What a store came to.
    public struct Result: Sendable {
        /// Bytes of its packs.
        public var byteCount = 0
        /// Different pages in it.
        public var pageCount = 0
        /// One cost for each checkpoint that was forgotten, in the order of publication.
        public var costs: [Cost] = []
        /// Milliseconds of processor time to make the index anew.
        public var rebuildMilliseconds = 0.0
        /// Microseconds of processor time for each checkpoint to be taken.
        public var captureMicroseconds = 0.0

        /// The middle one of some costs.
        public func median(_ value: (Cost) -> Double) -> Double {
            costs.map(value).sorted()[costs.count / 2]
        }
    }

    private let path: FilePath
    private let shape: Shape
    private let seed: UInt64

    /// Prepares a store in a directory that is empty or does not exist.
    public init(at path: FilePath, _ shape: Shape, seed: UInt64) {
        self.path = path
        self.shape = shape
        self.seed = seed
    }

    /// Takes the checkpoints; then forgets one and prunes, several times.
    ///
    /// - Parameter roundCount: how many are forgotten, one after the other.
    public func run(roundCount: Int) throws -> Result {
        var result = try prune(roundCount: roundCount)
        // Nobody has the index open now.
        let files = PosixFiles(root: path)
        for name in try files.list("index") { try files.remove("index/\(name)") }
        let start = PruneScale.processorMilliseconds
        try Repository.open(at: path, .writing).close()
        result.rebuildMilliseconds = PruneScale.processorMilliseconds - start
        return result
    }

    private func prune(roundCount: Int) throws -> Result {
        try Repository.create(at: path).close()
        let files = CountingFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        var random = SeededGenerator(seed: seed)
        var result = Result()
        let start = PruneScale.processorMilliseconds
        try fill(repository, &random)
        result.captureMicroseconds =
            (PruneScale.processorMilliseconds - start) * 1e3 / Double(shape.checkpointCount)
        let statistics = try repository.statistics()
        result.byteCount = statistics.byteCount
        result.pageCount = statistics.uniquePageCount
        let all = try repository.checkpoints()
        for round in 1...roundCount {
            // Somewhere in each of as many stretches, and of all places in the series of page maps.
            let stretch = all.count / (roundCount + 2)
            let position = round * stretch + Int.random(in: 0..<stretch, using: &random)
            try repository.forget([all[position].id])
            result.costs.append(try cost(repository, files))
        }
        try repository.close()
        return result
    }

    private func fill(_ repository: Repository, _ random: inout SeededGenerator) throws {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: shape.pageCount))
        for frame in 0..<UInt64(shape.pageCount) { write(frame, guest, &random) }
        let session = try CaptureSession(of: guest, in: repository, lineage: "scale")
        for number in 0..<shape.checkpointCount {
            if number > 0 {
                // Half of the writes go to pages that are written all the time.
                for place in 0..<shape.writeCount {
                    let end = place % 2 == 0 ? shape.writeCount : shape.pageCount
                    write(UInt64.random(in: 0..<UInt64(end), using: &random), guest, &random)
                }
            }
            _ = try session.capture()
        }
        session.close()
    }

    /// Writes a page that does not compress.
    private func write(_ frame: UInt64, _ guest: SimulatedGuest, _ random: inout SeededGenerator) {
        let words = (0..<Page.byteCount / 8).map { _ in random.next() }
        guest.with { $0.write(frame, words.withUnsafeBytes { Array($0) }) }
    }

    private func cost(_ repository: Repository, _ files: CountingFiles) throws -> Cost {
        var cost = Cost()
        let before = files.tally
        let start = ContinuousClock.now
        let busy = PruneScale.processorMilliseconds
        let plan = try repository.planPrune()
        let planned = ContinuousClock.now
        try plan.execute()
        cost.planMilliseconds = (planned - start) / .milliseconds(1)
        cost.executeMilliseconds = (ContinuousClock.now - planned) / .milliseconds(1)
        cost.processorMilliseconds = PruneScale.processorMilliseconds - busy
        cost.readByteCount = (files.tally - before).readBytes
        cost.deadPageCount = plan.deadPageCount
        return cost
    }

    /// Processor time of this process: what others do on the machine is not in it.
    private static var processorMilliseconds: Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) * 1e3 + Double(time.tv_nsec) / 1e6
    }
}
