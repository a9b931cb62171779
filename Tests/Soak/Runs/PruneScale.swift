import CheckpointEngine
import CheckpointStore
import GuestModel
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
        /// Writes to random pages between two checkpoints.
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
        /// Microseconds for each checkpoint to be taken.
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
        try Repository.create(at: path).close()
        let files = CountingFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        var random = SeededGenerator(seed: seed)
        var result = Result()
        let start = ContinuousClock.now
        try fill(repository, &random)
        result.captureMicroseconds =
            (ContinuousClock.now - start) / .microseconds(1) / Double(shape.checkpointCount)
        let statistics = try repository.statistics()
        result.byteCount = statistics.byteCount
        result.pageCount = statistics.uniquePageCount
        let all = try repository.checkpoints()
        for round in 1...roundCount {
            // Somewhere in each of as many stretches, and of all places in the series of page maps.
            let stretch = all.count / (roundCount + 2)
            let position = round * stretch + Int.random(in: 0..<stretch, using: &random)
            try repository.forget([all[position].id])
            _ = files.take()
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
                for _ in 0..<shape.writeCount {
                    let frame = UInt64.random(in: 0..<UInt64(shape.pageCount), using: &random)
                    write(frame, guest, &random)
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
        let start = ContinuousClock.now
        let plan = try repository.planPrune()
        let planned = ContinuousClock.now
        try plan.execute()
        cost.planMilliseconds = (planned - start) / .milliseconds(1)
        cost.executeMilliseconds = (ContinuousClock.now - planned) / .milliseconds(1)
        cost.readByteCount = files.take().byteCount
        cost.deadPageCount = plan.deadPageCount
        return cost
    }
}
