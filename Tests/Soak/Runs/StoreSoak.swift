import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import PackStore
import Synchronization
public import SystemPackage
import VarveTestSupport

/// Takes checkpoints into a store on a real disk, while others are forgotten and pruned.
public final class StoreSoak: Sendable {
    /// The results.
    public struct Result: Sendable {
        /// One line for each sample of the store: checkpoints taken, seconds, bytes of packs,
        /// checkpoints kept.
        public var lines: [String] = ["checkpoints,seconds,bytes,kept"]
        /// Checkpoints that were restored and compared.
        public var restoredCount = 0
        /// Prunes that ran.
        public var pruneCount = 0
        /// The largest size that was seen.
        public var byteCountMax = 0
    }

    /// A violation of a rule.
    public struct Violation: Error, CustomStringConvertible {
        /// The rule.
        public let description: String
    }

    private static let pageCount = 2000
    private static let writesPerCheckpoint = 20
    /// How many of the newest are kept, and the interval of the older ones that are kept.
    private static let keptCount = 200
    private static let keptStride = 50

    private let repository: Repository
    private let checkpointCount: Int
    private let seed: UInt64
    private let isDone = Atomic(false)
    private let takenCount = Atomic(0)
    private let result = Mutex(Result())
    private let failure = Mutex<String?>(nil)
    private let copies = Mutex<[CheckpointID: [UInt64: [UInt8]]]>([:])
    private let start = ContinuousClock.now

    /// Creates a store in a directory that is empty or does not exist.
    public init(at path: FilePath, checkpointCount: Int, seed: UInt64) throws {
        try Repository.create(at: path).close()
        repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 2 << 20)
        self.checkpointCount = checkpointCount
        self.seed = seed
    }

    /// Runs until the end.
    public func run() throws -> Result {
        let pruner = try Threads.Thread { self.pruneUntilDone() }
        let outcome = Swift.Result { try self.captureAll() }
        isDone.store(true, ordering: .releasing)
        pruner.join()
        try outcome.get()
        if let text = failure.withLock({ $0 }) { throw Violation(description: text) }
        try restoreKept()
        try forgetOld()
        try repository.planPrune().execute()
        note()
        let report = try repository.verify()
        guard report.isClean else {
            throw Violation(description: "verify: \(report.corruptions)")
        }
        try repository.close()
        return result.withLock { $0 }
    }

    private func captureAll() throws {
        var random = SeededGenerator(seed: seed)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: StoreSoak.pageCount))
        var options = CaptureOptions()
        options.poolByteCount = 16 << 20
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "soak", options: options)
        for number in 1...checkpointCount {
            for _ in 0..<StoreSoak.writesPerCheckpoint {
                let frame = UInt64.random(in: 0..<UInt64(StoreSoak.pageCount), using: &random)
                let page = (0..<Page.byteCount / 8).flatMap { _ in
                    withUnsafeBytes(of: random.next() & 0xff_ffff) { Array($0) }
                }
                guest.with { $0.write(frame, page) }
            }
            let checkpoint = try session.capture().checkpoint
            takenCount.store(number, ordering: .relaxed)
            if number % 10 == 0 {
                let pages = guest.with { $0.pages }
                try check(checkpoint, pages)
                copies.withLock { $0[checkpoint.id] = pages }
            }
            if number % 100 == 0 { note() }
        }
        session.close()
    }

    private func check(_ checkpoint: Checkpoint, _ pages: [UInt64: [UInt8]]) throws {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        guard restored.with({ $0.pages }) == pages else {
            throw Violation(description: "\(checkpoint.id.short) is not what was captured")
        }
        result.withLock { $0.restoredCount += 1 }
    }

    /// Restores every tenth remaining checkpoint once more.
    private func restoreKept() throws {
        let copies = copies.withLock { $0 }
        for checkpoint in try repository.checkpoints() {
            if let pages = copies[checkpoint.id] { try check(checkpoint, pages) }
        }
    }

    // MARK: - In parallel

    private func pruneUntilDone() {
        while !isDone.load(ordering: .acquiring) {
            do {
                guard try forgetOld() else {
                    usleep(20_000)
                    continue
                }
                try repository.planPrune().execute()
                // Beside captures.
                let broken = try repository.brokenIndexRelations()
                guard broken.isEmpty else {
                    throw Violation(description: "the index: \(broken)")
                }
                result.withLock { $0.pruneCount += 1 }
                note()
            } catch {
                failure.withLock { $0 = "prune: \(error)" }
                return
            }
        }
    }

    /// Forgets all but the newest, and some of the older ones.
    ///
    /// - Returns: false if there are too few to be worth it.
    @discardableResult
    private func forgetOld() throws -> Bool {
        let all = try repository.checkpoints()
        let old = all.dropLast(StoreSoak.keptCount)
        let gone = old.enumerated().filter { $0.offset % StoreSoak.keptStride != 0 }.map(\.element)
        guard gone.count >= StoreSoak.keptStride else { return false }
        try repository.forget(gone.map(\.id))
        copies.withLock { copies in
            for checkpoint in gone { copies[checkpoint.id] = nil }
        }
        return true
    }

    private func note() {
        guard let statistics = try? repository.statistics() else { return }
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        let taken = takenCount.load(ordering: .relaxed)
        result.withLock { result in
            result.byteCountMax = max(result.byteCountMax, statistics.byteCount)
            result.lines.append(
                "\(taken),\((seconds * 100).rounded() / 100),\(statistics.byteCount),"
                    + "\(statistics.checkpointCount)")
        }
    }
}
