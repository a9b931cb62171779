import CAllocations
import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import LinuxGuest
import PackStore
import Synchronization
import SystemPackage
import VarveTestSupport

// Counts allocations, disk calls and bytes of captures, imports, restores and reverts, and fails if
// a count is over its budget. Time is not measured.
//
//   varve-counts           a line for each count; exit status 1 if one is over its budget
//   varve-counts --json    the same as one JSON object
//   varve-counts --disk SIZE HELD    memory, bytes read and time for a disk of SIZE GiB of which
//                          HELD GiB are not zero

@main
struct CountsCommand {
    private static let pageCount = 16_384
    private static let dirtyCount = 1000

    static func main() throws {
        if CommandLine.arguments.contains("--disk") { return try countDisk() }
        var budgets = Budgets()
        let subject = try CountedGuest(pageCount: pageCount)
        try subject.countImport(&budgets)
        try subject.countCaptures(dirtyCount: dirtyCount, &budgets)
        try subject.countRestore(&budgets)
        try subject.countRevert(dirtyCount: dirtyCount, &budgets)
        try DiskCounts.count(&budgets)
        if CommandLine.arguments.contains("--json") {
            printJSON(budgets)
        } else {
            printTable(budgets)
        }
        if !budgets.isWithin { exit(1) }
    }

    private static func countDisk() throws {
        let numbers = CommandLine.arguments.dropFirst(2).compactMap { UInt64($0) }
        guard CommandLine.arguments.count == 4, numbers.count == 2,
            numbers[1] >= 1, numbers[1] <= numbers[0], numbers[0] <= 16 << 10
        else {
            print("usage: varve-counts --disk SIZE HELD, in GiB: 1 <= HELD <= SIZE <= 16384")
            exit(2)
        }
        print(try DiskCounts(byteCount: numbers[0] << 30, heldByteCount: numbers[1] << 30).line)
    }

    private static func printTable(_ budgets: Budgets) {
        for count in budgets.counts {
            let mark = count.isWithin ? "ok  " : "OVER"
            print("\(mark) \(count.name): \(count.value.short), at most \(count.budget.short)")
        }
        print(
            budgets.isWithin
                ? "all \(budgets.counts.count) counts are within their budgets"
                : "counts are over their budgets")
    }

    private static func printJSON(_ budgets: Budgets) {
        let lines = budgets.counts.map { count in
            "{\"name\":\"\(count.name)\",\"value\":\(count.value.short),"
                + "\"budget\":\(count.budget.short)}"
        }
        print("[" + lines.joined(separator: ",\n") + "]")
    }
}

extension Double {
    /// With at most three places after the point.
    fileprivate var short: String {
        let rounded = (self * 1000).rounded() / 1000
        return rounded == rounded.rounded() ? "\(Int(rounded))" : "\(rounded)"
    }
}

/// The work of the pausing thread until the guest runs again.
private final class PauseCounts: Sendable {
    private let start = Atomic(0)
    private let diskStart = Atomic(0)
    private let sum = Atomic(0)
    private let diskSum = Atomic(0)
    private let disk: @Sendable () -> Int

    /// - Parameter disk: disk calls so far.
    init(disk: @escaping @Sendable () -> Int) {
        self.disk = disk
    }

    func pause() {
        diskStart.store(disk(), ordering: .relaxed)
        start.store(Int(callocations_thread_count()), ordering: .relaxed)
    }

    func resume() {
        let count = Int(callocations_thread_count()) - start.load(ordering: .relaxed)
        sum.add(count, ordering: .relaxed)
        diskSum.add(disk() - diskStart.load(ordering: .relaxed), ordering: .relaxed)
    }

    /// Allocations and disk calls since the previous call of this function.
    func take() -> (allocations: Int, disk: Int) {
        (sum.exchange(0, ordering: .relaxed), diskSum.exchange(0, ordering: .relaxed))
    }
}

/// A guest in this process, captured into a repository whose disk calls are counted.
private final class CountedGuest {
    private let directory = TemporaryDirectory()
    private let pageCount: Int
    private let files: CountingFiles
    private let repository: Repository
    private let memory: ProcessMemory
    private let pauses: PauseCounts
    private let region: MemoryRegion
    private let session: CaptureSession
    private var checkpoints: [Checkpoint] = []
    private var random = SeededGenerator(seed: 1)
    private var dirtied = 0

    init(pageCount: Int) throws {
        self.pageCount = pageCount
        let path = directory.path.appending("store")
        files = CountingFiles(PosixFiles(root: path))
        repository = try Repository.create(at: path, files: files)
        let pauses = PauseCounts { [files] in files.callsOfThisThread }
        self.pauses = pauses
        memory = ProcessMemory(hold: pauses.pause, release: pauses.resume)
        region = try memory.allocate(byteCount: pageCount * Page.byteCount)
        for page in 0..<pageCount { CountedGuest.fill(region, page, &random) }
        var options = CaptureOptions()
        // Independent of the machine: counts must be equal everywhere.
        options.workerCount = 2
        session = try CaptureSession(
            of: memory, in: repository, lineage: "counted", options: options)
    }

    /// Half of the page random, half of it zero: it compresses to about half.
    private static func fill(
        _ region: MemoryRegion, _ page: Int, _ random: inout SeededGenerator
    ) {
        let start = page * Page.byteCount
        for offset in stride(from: start, to: start + Page.byteCount / 2, by: 8) {
            region.bytes.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
    }

    /// Dirties pages far from each other; different ones each time.
    private func dirty(_ count: Int) {
        for _ in 0..<count {
            dirtied += 1
            CountedGuest.fill(region, dirtied * 7919 % pageCount, &random)
        }
    }

    /// The first capture: every page is new.
    func countImport(_ budgets: inout Budgets) throws {
        let allocations = callocations_count()
        let before = files.tally
        checkpoints.append(try session.capture().checkpoint)
        let pages = Double(pageCount)
        let tally = files.tally - before
        budgets.add(
            "first capture: allocations a page",
            Double(callocations_count() - allocations) / pages, atMost: 0.4)
        budgets.add("first capture: writes a MiB", Double(tally.writes) / (pages / 256), atMost: 4)
        budgets.add("first capture: reads", tally.reads, atMost: 8)
    }

    /// Captures of scattered dirty pages, after a first one that grows the buffers.
    func countCaptures(dirtyCount: Int, _ budgets: inout Budgets) throws {
        dirty(dirtyCount)
        checkpoints.append(try session.capture().checkpoint)
        let rounds = 62
        _ = pauses.take()
        let allocations = callocations_count()
        let before = files.tally
        var metadata = 0
        var plain = Int.max
        for _ in 0..<rounds {
            dirty(dirtyCount)
            let checkpoint = try session.capture().checkpoint
            checkpoints.append(checkpoint)
            metadata += checkpoint.metadataByteCount
            plain = min(plain, checkpoint.metadataByteCount)
        }
        let tally = files.tally - before
        let paused = pauses.take()
        budgets.add("capture: allocations in 62 pauses", paused.allocations, atMost: 0)
        budgets.add("capture: calls of the disk in 62 pauses", paused.disk, atMost: 0)
        let pages = Double(rounds * dirtyCount)
        let captures = Double(rounds)
        budgets.add(
            "capture: allocations a dirty page",
            Double(callocations_count() - allocations) / pages, atMost: 1)
        // One for each checkpoint, and one more for each sealed pack.
        budgets.add("capture: syncs a checkpoint", Double(tally.syncs) / captures, atMost: 1.2)
        budgets.add("capture: writes a checkpoint", Double(tally.writes) / captures, atMost: 12)
        budgets.add("capture: reads a checkpoint", Double(tally.reads) / captures, atMost: 12)
        budgets.add(
            // Two of them check whether the store is still at its path.
            "capture: other calls of the disk a checkpoint", Double(tally.others) / captures,
            atMost: 4)
        budgets.add(
            "capture: metadata bytes a dirty page, a plain delta",
            Double(plain) / Double(dirtyCount), atMost: 48)
        budgets.add(
            "capture: metadata bytes a dirty page, on average", Double(metadata) / pages,
            atMost: 150)
    }

    /// Restores the first and the last of 64 checkpoints into a new guest.
    func countRestore(_ budgets: inout Budgets) throws {
        for (name, checkpoint) in [("first", checkpoints[0]), ("64th", checkpoints[63])] {
            let target = ProcessMemory(tracking: .compareAll)
            _ = try target.allocate(byteCount: pageCount * Page.byteCount)
            let allocations = callocations_count()
            let before = files.tally
            let result = try repository.restore(checkpoint, into: target)
            let tally = files.tally - before
            guard try target.memoryRoot() == checkpoint.memory.root else {
                throw CountFailure("the \(name) checkpoint came back different")
            }
            // Skip deltas to base 4: three maps for each digit of the 63 before it, and the base
            // map.
            budgets.add("restore of the \(name): maps read", result.mapsRead, atMost: 10)
            budgets.add(
                "restore of the \(name): allocations a page",
                Double(callocations_count() - allocations) / Double(pageCount), atMost: 1)
            budgets.add(
                "restore of the \(name): reads a MiB",
                Double(tally.reads) / Double(pageCount / 256), atMost: 8)
            budgets.add(
                "restore of the \(name): bytes read over bytes of memory",
                Double(tally.readBytes) / Double(pageCount * Page.byteCount), atMost: 1)
        }
    }

    /// A revert in place: only pages that differ are written.
    func countRevert(dirtyCount: Int, _ budgets: inout Budgets) throws {
        guard let newest = checkpoints.last else { return }
        dirty(dirtyCount)
        let before = files.tally
        _ = pauses.take()
        let result = try session.revert(to: newest)
        let paused = pauses.take()
        let tally = files.tally - before
        budgets.add("revert: allocations in the pause", paused.allocations, atMost: 0)
        budgets.add("revert: calls of the disk in the pause", paused.disk, atMost: 0)
        guard result.writtenPageCount == dirtyCount else {
            throw CountFailure("the revert wrote \(result.writtenPageCount) pages")
        }
        budgets.add(
            "revert: pages compared a differing page",
            Double(result.comparedPageCount) / Double(dirtyCount), atMost: 1)
        budgets.add("revert: writes to the disk", tally.writes, atMost: 0)
        session.close()
    }
}

/// A count that is meaningless because the work was not done.
private struct CountFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}
