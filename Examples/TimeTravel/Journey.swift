import Dispatch
import Glibc
import VarveCore

/// The demonstration from beginning to end.
final class Journey {
    private let options: TimeTravel
    private let place: StorePlace
    private let files: DatabaseFiles?
    private let repository: Repository
    private let bank: Bank
    private let memory: ProcessMemory
    private let session: CaptureSession
    private var random: SeededChoices
    private var results: [CaptureResult] = []
    private var parents: [CheckpointID: CheckpointID] = [:]
    private var proofCount = 0

    init(_ options: TimeTravel) throws {
        self.options = options
        let seed = options.seed ?? UInt64.random(in: 1...999_999_999)
        Report.line("seed \(seed) (repeat the run's choices with --seed \(seed))")
        random = SeededChoices(seed: seed)
        if let store = options.store {
            place = StorePlace(keeping: store)
        } else {
            place = try StorePlace(temporaryIn: nil)
        }
        repository = try Repository.create(at: place.path)
        files = try DatabaseFiles(in: options.database)
        let gate = BankGate()
        memory = ProcessMemory(
            hold: { gate.bank?.hold() }, release: { gate.bank?.release() },
            saveState: { gate.bank?.saveState() ?? GuestState() },
            restoreState: { try gate.bank?.restoreState($0) })
        let ledger = try memory.allocate(byteCount: Bank.ledgerByteCount)
        if files == nil {
            let region = try memory.allocate(byteCount: options.regionMib << 20)
            try MemoryVFS.register(DatabaseImage(region.bytes))
        }
        bank = Bank(
            in: files.map { .file($0.path) } ?? .memory, ledger: ledger.bytes,
            random: SeededChoices(seed: seed ^ 1))
        gate.bank = bank
        try bank.prepare()
        session = try CaptureSession(
            of: memory, in: repository, lineage: "bank", disks: files?.group)
    }

    /// Bytes of a copy of all that is checkpointed.
    private func fullByteCount(_ checkpoint: Checkpoint) -> Int {
        checkpoint.volumes.reduce(0) { $0 + Int($1.byteCount) }
    }

    func run() throws {
        let worker = DispatchQueue(label: "bank")
        let ended = DispatchSemaphore(value: 0)
        worker.async { [bank] in
            bank.work()
            ended.signal()
        }
        do {
            try takeCheckpoints()
            Report.table(results, fullByteCount: results.map { fullByteCount($0.checkpoint) })
            try travel()
        } catch {
            try? bank.stop()
            ended.wait()
            throw error
        }
        try bank.stop()
        ended.wait()
        session.close()
        try repository.close()
        try conclude()
    }

    // MARK: - Checkpoints

    private func takeCheckpoints() throws {
        let count = max(1, Int(options.seconds * options.rate))
        let interval = Duration.seconds(1 / options.rate)
        Report.line(
            (files.map { "a SQLite database in the file \($0.path), reverted with memory; " }
                ?? "a SQLite database in \(options.regionMib) MiB of tracked memory; ")
                + "\(count) checkpoints, \(options.rate) a second")
        let start = ContinuousClock.now
        var pending: PendingCapture?
        for number in 0..<count {
            let due = start + interval * number
            while ContinuousClock.now < due { usleep(500) }
            // The previous checkpoint is encoded and written while this one is taken.
            let next = try session.begin()
            try collect(pending)
            pending = next
            if let last = results.last {
                Report.progress(
                    "checkpoint \(number + 1) of \(count): \(last.dirtyPageCount) dirty pages, "
                        + "pause \(Report.microseconds(last.pause)) us")
            }
        }
        try collect(pending)
        let elapsed = ContinuousClock.now - start
        let reached = Double(count) / (Double(Report.microseconds(elapsed)) / 1e6)
        let rate = Int(reached * 10 + 0.5)
        Report.line(
            "\(rate / 10).\(rate % 10) checkpoints a second reached, \(options.rate) requested; "
                + Report.pauses(results))
    }

    private func capture() throws {
        try collect(try session.begin())
    }

    /// Waits until a checkpoint exists, and records it.
    private func collect(_ pending: PendingCapture?) throws {
        guard let result = try pending?.wait() else { return }
        results.append(result)
        if let parent = result.checkpoint.parent { parents[result.checkpoint.id] = parent }
    }

    // MARK: - Reverts

    private func travel() throws {
        var here = results[results.count - 1].checkpoint
        for number in 0..<options.reverts {
            let target = choose(number)
            try revert(to: target, from: here)
            here = target
            bank.unpark()
            usleep(30_000)
            // A third of the way through, history branches: checkpoints that follow an old one.
            if number == options.reverts / 3 {
                for _ in 0..<4 {
                    try capture()
                    usleep(30_000)
                }
                here = results[results.count - 1].checkpoint
                Report.line("branched: took 4 checkpoints that follow \(target.id.short)")
            }
        }
    }

    /// An arbitrary point; after the branch, alternately on the branch and the main line.
    private func choose(_ number: Int) -> Checkpoint {
        let mainCount = max(1, Int(options.seconds * options.rate))
        let branch = results[mainCount...]
        if number > options.reverts / 3, number % 2 == 0,
            let result = branch.randomElement(using: &random)
        {
            return result.checkpoint
        }
        return results[Int.random(in: 0..<mainCount, using: &random)].checkpoint
    }

    private func revert(to target: Checkpoint, from here: Checkpoint) throws {
        bank.park()
        let result = try session.revert(to: target)
        bank.hold()
        defer { bank.release() }
        let root = try memory.memoryRoot()
        let expected = try Bank.counters(of: try repository.state(of: target))
        let (integrity, rows, agrees) = try bank.inspect()
        guard root == target.memory.root else {
            throw DemoError("after the revert to \(target.id.short) the memory's root is \(root)")
        }
        guard integrity == "ok" else {
            throw DemoError("after the revert to \(target.id.short) SQLite says: \(integrity)")
        }
        guard rows == expected.rows, bank.counters == expected else {
            throw DemoError(
                "after the revert to \(target.id.short) there are \(rows) rows, but the checkpoint "
                    + "recorded \(expected.rows)")
        }
        guard agrees else {
            throw DemoError(
                "after the revert to \(target.id.short) the ledger in memory and the database "
                    + "disagree")
        }
        proofCount += 1
        let written =
            "\(result.writtenPageCount) pages"
            + (files == nil ? "" : " and \(result.writtenBlockCount) blocks of the file")
        Report.line(
            "proof \(Report.pad("\(proofCount)", 2)): \(here.id.short) -> \(target.id.short) "
                + "(\(direction(from: here, to: target))), \(written) "
                + "written in \(Report.microseconds(result.pause)) us; integrity ok, \(rows) rows "
                + "as recorded, ledger and root equal")
    }

    private func direction(from here: Checkpoint, to target: Checkpoint) -> String {
        if here.id == target.id { return "same" }
        if isAncestor(target.id, of: here.id) { return "back" }
        return isAncestor(here.id, of: target.id) ? "forward" : "across a branch"
    }

    private func isAncestor(_ ancestor: CheckpointID, of checkpoint: CheckpointID) -> Bool {
        var current: CheckpointID? = checkpoint
        while let id = current {
            if id == ancestor { return true }
            current = parents[id]
        }
        return false
    }

    private func conclude() throws {
        let reader = try Repository.open(at: place.path, .reading)
        let report = try reader.verify()
        guard report.isClean else {
            throw DemoError("the repository is damaged: \(report.corruptions)")
        }
        let statistics = try reader.statistics()
        let full = results.reduce(0) { $0 + fullByteCount($1.checkpoint) }
        let metadata = Int(statistics.metadataBytesPerChangedPage + 0.5)
        Report.line(
            "verified: \(report.checkpointCount) checkpoints in "
                + "\(Report.mebibytes(report.byteCount)), \(report.pageCount) pages, "
                + "nothing damaged; full copies would take \(Report.mebibytes(full)); "
                + "\(metadata) bytes of metadata a changed page")
        Report.line("\(proofCount) of \(options.reverts) reverts proved")
    }
}
