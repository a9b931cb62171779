import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import VarveTestSupport

// A random walk of a guest, a store and a failing disk, tested against a naive oracle: a full copy
// of the guest for each checkpoint. The seed determines everything, so a walk can be repeated;
// threads do not matter, because one capture is in progress at a time and each has one worker.
//
// Conditions after each crash and at the end:
//   - every acknowledged checkpoint that was not forgotten exists, and is restored bit for bit;
//   - no forgotten one exists;
//   - every other one that exists is a whole checkpoint whose capture had begun;
//   - verify is clean, and finds each bit that was flipped.

/// A seeded random walk.
public struct RandomWalk {
    /// A violation of a rule.
    public struct Violation: Error, CustomStringConvertible {
        /// The rule, the seed and the step.
        public let description: String
    }

    /// The kinds of steps.
    enum Step: String, CaseIterable {
        case write, capture, label, branch, revert, forget, prune, reopen, kill, powerCut
        case failCall, fillDisk, flipBit

        /// Its share of all steps, relative to the others' weights.
        var weight: Int {
            switch self {
            case .write: 30
            case .capture: 30
            case .label: 3
            case .branch: 3
            case .revert: 4
            case .forget: 6
            case .prune: 2
            case .reopen: 3
            case .kill: 3
            case .powerCut: 4
            case .failCall: 8
            case .fillDisk: 2
            case .flipBit: 1
            }
        }
    }

    struct Copy {
        let lineage: String
        let pages: [UInt64: [UInt8]]
    }

    static let packByteCountMax = 512 << 10
    static let pageCount = 32
    static let checkpointCountMax = 40

    let seed: UInt64
    var random: SeededGenerator
    let directory = TemporaryDirectory(inMemory: true)
    let disk: SimulatedDisk
    var repository: Repository?
    var session: CaptureSession?
    let guest: SimulatedGuest
    var lineage: LineageName = "a"
    var copies: [CheckpointID: Copy] = [:]
    var order: [CheckpointID] = []
    /// Guests of captures that began since the last crash and were not acknowledged.
    var attempts: [Copy] = []
    /// Checkpoints that a failed call may or may not have forgotten.
    var uncertain: Set<CheckpointID> = []
    /// Steps done.
    public private(set) var stepCount = 0
    /// Steps of each kind.
    var counts: [Step: Int] = [:]
    private static let weights = Step.allCases.flatMap { Array(repeating: $0, count: $0.weight) }

    /// Creates a store and a guest.
    public init(seed: UInt64) throws {
        self.seed = seed
        random = SeededGenerator(seed: seed)
        disk = SimulatedDisk(indexRoot: directory.path, seed: seed)
        guest = SimulatedGuest(layout: GuestLayout(pageCount: RandomWalk.pageCount))
        repository = try Repository.create(
            at: disk.indexRoot, files: disk.boot(),
            packByteCountMax: RandomWalk.packByteCountMax)
    }

    /// A summary in one line.
    public var summary: String {
        let parts = Step.allCases.map { "\($0.rawValue) \(counts[$0] ?? 0)" }
        return "\(stepCount) steps, seed \(seed): " + parts.joined(separator: ", ")
    }

    func violation(_ text: String) -> Violation {
        Violation(description: "\(text) (seed \(seed), step \(stepCount))")
    }

    /// Takes one step.
    public mutating func step() throws {
        stepCount += 1
        let step = RandomWalk.weights.randomElement(using: &random) ?? .write
        counts[step, default: 0] += 1
        switch step {
        case .write: write()
        case .capture: try capture(label: nil)
        case .label:
            // Lineages do not share labels.
            try capture(label: Label("\(lineage)-label\(Int.random(in: 0..<5, using: &random))"))
        case .branch: try branch()
        case .revert: try revert()
        case .forget: try forget()
        case .prune: try prune()
        case .reopen: try reopen()
        case .kill: try crash { disk, _ in disk.kill() }
        case .powerCut: try crash { disk, random in disk.cutPower(&random) }
        case .failCall: try failCall()
        case .fillDisk: try fillDisk()
        case .flipBit: try flipBit()
        }
        if guest.pausesOpen != 0 { throw violation("the guest was not resumed") }
        if stepCount % 10 == 0, let repository {
            let broken = try repository.brokenIndexRelations()
            guard broken.isEmpty else { throw violation("the index: \(broken)") }
        }
        if stepCount % 1000 == 0 { try checkAll() }
    }

    // MARK: - The guest

    private mutating func write() {
        for _ in 0..<Int.random(in: 1...6, using: &random) {
            let frame = UInt64.random(in: 0..<UInt64(RandomWalk.pageCount), using: &random)
            let value = UInt8.random(in: 0...9, using: &random)
            // Some are zero, some are equal, some are new.
            var page = [UInt8](repeating: value / 3, count: Page.byteCount)
            if value > 4 {
                for index in 0..<64 { page[index * 61] = .random(in: 0...255, using: &random) }
            }
            guest.with { $0.write(frame, page) }
        }
    }

    private mutating func open() throws -> CaptureSession {
        if let session { return session }
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        options.auditPageCount = 4
        let new = try CaptureSession(
            of: guest, in: try openRepository(), lineage: lineage, options: options)
        session = new
        return new
    }

    mutating func openRepository() throws -> Repository {
        if let repository { return repository }
        let new = try Repository.open(
            at: disk.indexRoot, .writing, files: disk.boot(),
            packByteCountMax: RandomWalk.packByteCountMax)
        repository = new
        return new
    }

    /// Takes a checkpoint.
    ///
    /// - Returns: false if it failed, which is correct if a failure was injected.
    @discardableResult
    mutating func capture(label: Label?, mayFail: Bool = false) throws -> Bool {
        let copy = Copy(lineage: lineage.text, pages: guest.with { $0.pages })
        do {
            let checkpoint = try open().capture(label: label).checkpoint
            copies[checkpoint.id] = copy
            order.append(checkpoint.id)
            return true
        } catch {
            attempts.append(copy)
            guard mayFail else { throw violation("a capture failed: \(error)") }
            return false
        }
    }

    // MARK: - History

    private mutating func branch() throws {
        let parent = try someCheckpoint()
        session?.close()
        session = nil
        lineage = ["a", "b", "c", "d"].randomElement(using: &random) ?? "a"
        guard let parent else { return }
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        session = try CaptureSession(
            of: guest, in: try openRepository(), lineage: lineage, parent: parent,
            options: options)
        try capture(label: nil)
    }

    private mutating func someCheckpoint() throws -> Checkpoint? {
        let known = order.filter { !uncertain.contains($0) }
        guard let id = known.randomElement(using: &random) else { return nil }
        return try openRepository().checkpoint(id: id)
    }

    private mutating func revert() throws {
        guard let target = try someCheckpoint(), let copy = copies[target.id] else { return }
        try open().revert(to: target)
        guard guest.with({ $0.pages }) == copy.pages else {
            throw violation("a revert to \(target.id.short) gave something else")
        }
    }

    private mutating func forget(mayFail: Bool = false) throws {
        let excess = max(0, order.count - RandomWalk.checkpointCountMax)
        let count = excess + Int.random(in: 0...2, using: &random)
        let ids = Array(
            order.filter { !uncertain.contains($0) }.shuffled(using: &random)
                .prefix(count))
        guard !ids.isEmpty else { return }
        do {
            try openRepository().forget(ids)
            for id in ids { copies[id] = nil }
            order.removeAll { ids.contains($0) }
        } catch {
            guard mayFail else { throw violation("forgetting failed: \(error)") }
            uncertain.formUnion(ids)
        }
    }

    private mutating func prune(mayFail: Bool = false) throws {
        let percent = Double([0, 5, 20].randomElement(using: &random) ?? 5)
        do {
            try openRepository().planPrune(PruneOptions(unusedPercentMax: percent)).execute()
        } catch {
            guard mayFail else { throw violation("a prune failed: \(error)") }
        }
    }

    // MARK: - Crashes and failures

    private mutating func reopen() throws {
        session?.close()
        session = nil
        try repository?.close()
        repository = nil
        try settle()
    }

    /// Ends the process or the machine, and checks what is left.
    private mutating func crash(
        _ body: (SimulatedDisk, inout SeededGenerator) -> Void
    ) throws {
        body(disk, &random)
        session = nil
        repository = nil
        // The index of a machine that lost power is not trusted, whatever its contents.
        if Int.random(in: 0..<4, using: &random) == 0 {
            let files = PosixFiles(root: disk.indexRoot)
            for name in try files.list("index") { try files.remove("index/\(name)") }
        }
        try settle()
    }

    /// After a crash: every checkpoint that must exist does, and every other one is whole.
    mutating func settle() throws {
        let repository = try openRepository()
        let found = try repository.checkpoints()
        let present = Set(found.map(\.id))
        for id in order where !present.contains(id) {
            guard uncertain.contains(id) else { throw violation("\(id.short) is gone") }
            copies[id] = nil
        }
        for checkpoint in found where copies[checkpoint.id] == nil {
            let pages = try restore(checkpoint)
            guard let copy = attempts.first(where: { $0.pages == pages }) else {
                throw violation("\(checkpoint.id.short) is half there, or was forgotten")
            }
            copies[checkpoint.id] = copy
        }
        order = found.map(\.id)
        uncertain = []
        attempts = []
        for checkpoint in found.shuffled(using: &random).prefix(2) { try check(checkpoint) }
    }

    private mutating func failCall() throws {
        let call = Int.random(in: 0..<14, using: &random)
        let errno: Int32 = [5, 28, 4].randomElement(using: &random) ?? 5
        disk.failCall(
            call, SimulatedDisk.Failure(errno: errno, leavesPart: Bool.random(using: &random)))
        switch Int.random(in: 0..<6, using: &random) {
        case 0: try forget(mayFail: true)
        case 1: try prune(mayFail: true)
        default: try capture(label: nil, mayFail: true)
        }
        disk.failCall(nil)
        if !uncertain.isEmpty { return try reopen() }
        try capture(label: nil)
    }

    private mutating func fillDisk() throws {
        disk.limit(byteCount: disk.image.byteCount + Int.random(in: 0..<20_000, using: &random))
        write()
        try capture(label: nil, mayFail: true)
        disk.limit(byteCount: nil)
        try capture(label: nil)
    }

    /// A bit flips, verify finds it, and the bit flips back.
    private mutating func flipBit() throws {
        let repository = try openRepository()
        // Bytes after the last checkpoint belong to none.
        guard try repository.statistics().abandonedByteCount == 0 else { return }
        let before = disk.image
        let packs = (before.names("packs") ?? []).sorted()
        guard let pack = packs.randomElement(using: &random),
            let bytes = before.contents("packs/\(pack)"), !bytes.isEmpty
        else { return }
        var image = before
        let byte = Int.random(in: 0..<bytes.count, using: &random)
        _ = image.flipBit("packs/\(pack)", byte: byte, bit: Int.random(in: 0..<8, using: &random))
        disk.image = image
        let report = try repository.verify()
        disk.image = before
        guard !report.isClean else {
            let name = String(pack.prefix { $0 != "." })
            let scan = try PackScan.scan(
                repository.reader, pack: UInt32(name, radix: 16) ?? 0,
                isNewest: pack == packs.last)
            let record = scan.entries.last { $0.offset <= byte }
            throw violation(
                "byte \(byte) of the \(bytes.count) of \(pack) rotted unseen: of "
                    + "\(packs.count) packs up to \(packs.last ?? ""), sealed: \(scan.isSealed), "
                    + "valid to \(scan.validEnd), in \(String(describing: record))")
        }
        guard try repository.verify().isClean else { throw violation("verify is not clean") }
    }

    // MARK: - Checks

    private func restore(_ checkpoint: Checkpoint) throws -> [UInt64: [UInt8]] {
        guard let repository else { throw violation("nothing is open") }
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        return restored.with { $0.pages }
    }

    private func check(_ checkpoint: Checkpoint) throws {
        guard try restore(checkpoint) == copies[checkpoint.id]?.pages else {
            throw violation("\(checkpoint.id.short) is not what was captured")
        }
    }

    /// Checks everything.
    public mutating func checkAll() throws {
        let repository = try openRepository()
        let found = try repository.checkpoints()
        guard found.map(\.id) == order else { throw violation("other checkpoints are there") }
        for checkpoint in found { try check(checkpoint) }
        try prune()
        let report = try repository.verify()
        guard report.isClean else { throw violation("verify: \(report.corruptions)") }
        // Live pages, the other data of each checkpoint, and one open pack.
        let statistics = try repository.statistics()
        let limit = statistics.uniquePageCount * 5000 + order.count * 8000 + (1 << 20)
        guard disk.image.byteCount < limit else {
            throw violation("\(disk.image.byteCount) bytes are kept, over \(limit)")
        }
    }
}
