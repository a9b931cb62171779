import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import PackStore
public import SystemPackage
import VarveTestSupport

/// The cost of a prune after one checkpoint was forgotten, in stores of several sizes.
public struct PruneScale: Sendable {
    /// A store.
    public struct Shape: Sendable {
        /// Checkpoints in it.
        public let checkpointCount: Int
        /// Pages of the guest.
        public let pageCount: Int
        /// Writes between two checkpoints: half of them to random pages, half of them among as many
        /// pages as there are writes.
        public let writeCount: Int

        /// Creates a shape.
        public init(checkpointCount: Int, pageCount: Int, writeCount: Int) {
            self.checkpointCount = checkpointCount
            self.pageCount = pageCount
            self.writeCount = writeCount
        }
    }

    /// The cost of one prune.
    public struct Cost: Sendable {
        /// Milliseconds until the plan was complete.
        public var planMilliseconds = 0.0
        /// Milliseconds to execute the plan.
        public var executeMilliseconds = 0.0
        /// Milliseconds of processor time for both.
        public var processorMilliseconds = 0.0
        /// Bytes that both read of the repository's files, without LMDB's.
        public var readByteCount = 0
        /// Pages that died.
        public var deadPageCount = 0
    }

    /// The results for a store.
    public struct Result: Sendable {
        /// Bytes of its packs.
        public var byteCount = 0
        /// Distinct pages in it.
        public var pageCount = 0
        /// One cost for each checkpoint that was forgotten, in the order of publication.
        public var costs: [Cost] = []
        /// Milliseconds of processor time to rebuild the index.
        public var rebuildMilliseconds = 0.0
        /// Microseconds of processor time to take each checkpoint.
        public var captureMicroseconds = 0.0

        /// The median of some costs.
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
    /// - Parameter roundCount: the number of checkpoints forgotten, one after the other.
    public func run(roundCount: Int) throws -> Result {
        var result = try prune(roundCount: roundCount)
        // No process has the index open now.
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
            // At a random place in each of as many stretches, at every position in the chain of
            // page maps.
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

    /// Writes an incompressible page.
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

    /// Processor time of this process, which other work on the machine does not affect.
    private static var processorMilliseconds: Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) * 1e3 + Double(time.tv_nsec) / 1e6
    }
}
