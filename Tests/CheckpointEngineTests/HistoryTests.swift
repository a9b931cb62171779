import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointStore

/// Tests the engine and the store against a naive oracle: a full copy of the guest for each
/// checkpoint.
///
/// Random histories of writes, captures, failed captures, branches, reverts, restores, forgetting,
/// prunes and lost indexes. Every acknowledged checkpoint must be restored bit for bit at every
/// later moment, and every forgotten one must be gone.
@Suite struct HistoryTests {
    @Test(arguments: 0..<(TestSeed.isLong ? 200 : 12))
    func everyCheckpointComesBack(round: Int) throws {
        var history = try History(round: round)
        for _ in 0..<40 { try history.step() }
        try history.checkAll()
    }
}

/// One random history and its expected state.
private struct History {
    private struct Copy {
        let pages: [UInt64: [UInt8]]
        let state: GuestState
    }

    private var random: SeededGenerator
    private let directory = TemporaryDirectory()
    private let files: FaultyFiles
    private let path: FilePath
    private var repository: Repository
    private let guest: SimulatedGuest
    private var session: CaptureSession
    private var oracle: [CheckpointID: Copy] = [:]
    private var checkpoints: [Checkpoint] = []
    private var forgotten: [Checkpoint] = []
    private var branchCount = 0
    /// The kinds of steps so far, for failure messages.
    private var steps: [Int] = []

    init(round: Int) throws {
        random = TestSeed.generator(UInt64(round))
        path = directory.path.appending("store")
        try Repository.create(at: path).close()
        files = FaultyFiles(PosixFiles(root: path))
        repository = try History.open(path, files)
        let first = UInt64.random(in: 0..<200, using: &random)
        let layout = GuestLayout(runs: [
            PageRange(first: PageFrameNumber(first), count: .random(in: 1...700, using: &random)),
            PageRange(first: PageFrameNumber(5000), count: .random(in: 1...100, using: &random)),
        ])
        guest = SimulatedGuest(layout: layout, hasLog: round % 4 != 3)
        session = try History.session(guest, repository, parent: nil, branch: 0, &random)
    }

    private static func open(_ path: FilePath, _ files: FaultyFiles) throws -> Repository {
        // Packs of 1 MiB, so that histories span many; and an index that adds a checkpoint a few
        // entries at a time, so that a failed disk call finds some of them added.
        let repository = try Repository.open(
            at: path, .writing, files: files, packByteCountMax: 1 << 20)
        try repository.withIndex { $0.recent.limits.additionCountMax = 8 }
        return repository
    }

    private static func session(
        _ guest: SimulatedGuest, _ repository: Repository, parent: Checkpoint?, branch: Int,
        _ random: inout SeededGenerator
    ) throws -> CaptureSession {
        var options = CaptureOptions()
        options.poolByteCount = 8 << 20
        options.workerCount = .random(in: 1...3, using: &random)
        options.pauseBudget = .microseconds(.random(in: 1...200, using: &random))
        return try CaptureSession(
            of: guest, in: repository, lineage: LineageName("branch\(branch)"), parent: parent,
            options: options)
    }

    mutating func step() throws {
        let kind = Int.random(in: 0..<25, using: &random)
        steps.append(kind)
        switch kind {
        case 0..<7: write()
        case 7..<13: try capture()
        case 13: try failGuestCall()
        case 14: try failDiskCall()
        case 15, 16: try revert()
        case 17: try reopen()
        case 18: guest.with { $0.knowledge = .unknown }
        case 19: balloon()
        case 20, 21, 22: try forget()
        default: try prune()
        }
        #expect(guest.pausesOpen == 0)
    }

    // MARK: - Steps

    private mutating func page() -> [UInt8] {
        switch Int.random(in: 0..<5, using: &random) {
        case 0: return [UInt8](repeating: 0, count: Page.byteCount)
        case 1: return [UInt8](repeating: .random(in: 1...3, using: &random), count: Page.byteCount)
        case 2:
            return (0..<Page.byteCount).map { _ in UInt8.random(in: 0...255, using: &random) }
        default:
            var page = [UInt8](repeating: 7, count: Page.byteCount)
            page[Int.random(in: 0..<Page.byteCount, using: &random)] = .random(
                in: 0...255, using: &random)
            return page
        }
    }

    private mutating func write() {
        let frames = guest.with { $0.pages.keys.sorted() }
        for _ in 0..<Int.random(in: 1...60, using: &random) {
            guard let frame = frames.randomElement(using: &random) else { return }
            let content = page()
            guest.with { $0.write(frame, content) }
        }
        // Sometimes it continues writing while it is copied.
        let seed = random.next()
        let isLive = Bool.random(using: &random)
        let live: @Sendable (inout SimulatedGuest.State) -> Void = { state in
            History.writeOne(&state, seed: seed)
        }
        guest.setLive(isLive ? live : nil)
    }

    private static func writeOne(_ state: inout SimulatedGuest.State, seed: UInt64) {
        var random = SeededGenerator(seed: seed ^ UInt64(state.pages.count))
        guard let frame = state.pages.keys.sorted().randomElement(using: &random) else { return }
        let value = UInt8.random(in: 0...255, using: &random)
        state.write(frame, [UInt8](repeating: value, count: Page.byteCount))
    }

    private mutating func balloon() {
        let frame = UInt64.random(in: 0..<6000, using: &random)
        let content = page()
        guest.with { state in
            if state.pages[frame] == nil {
                state.write(frame, content)
            } else if state.pages.count > 1 {
                state.pages[frame] = nil
            }
        }
    }

    private mutating func capture() throws {
        let tag = UInt8.random(in: 0...255, using: &random)
        let state = GuestState(records: [GuestState.Record(kind: "tag", bytes: [tag, 1, 2])])
        guest.with { $0.state = state }
        let result = try session.capture()
        remember(result.checkpoint)
    }

    /// Notes the guest's pages at the moment it resumed, as the expected contents of a checkpoint.
    private mutating func remember(_ checkpoint: Checkpoint) {
        oracle[checkpoint.id] = guest.with { Copy(pages: $0.resumedPages, state: $0.state) }
        checkpoints.append(checkpoint)
    }

    private mutating func failGuestCall() throws {
        guest.failCall(.random(in: 0..<12, using: &random))
        defer { guest.failCall(nil) }
        if let result = try? session.capture() { remember(result.checkpoint) }
    }

    private mutating func failDiskCall() throws {
        files.failCall(
            .random(in: 0..<6, using: &random), errno: Bool.random(using: &random) ? 5 : 28)
        defer { files.failCall(nil, errno: 0) }
        if let result = try? session.capture() { remember(result.checkpoint) }
    }

    private mutating func revert() throws {
        guard let target = checkpoints.randomElement(using: &random) else { return }
        try session.revert(to: target)
        let (resumed, pages, state) = guest.with { ($0.resumedPages, $0.pages, $0.state) }
        try check(resumed, state, target)
        // The root of a guest that writes during the revert is meaningless.
        guest.setLive(nil)
        if pages == resumed { #expect(try guest.memoryRoot() == target.memory.root) }
    }

    private mutating func forget() throws {
        let count = min(checkpoints.count, .random(in: 0...5, using: &random))
        let chosen = Set(checkpoints.shuffled(using: &random).prefix(count))
        if Int.random(in: 0..<3, using: &random) == 0 {
            files.failCall(.random(in: 0..<4, using: &random), errno: 28)
        }
        defer { files.failCall(nil, errno: 0) }
        do {
            try repository.forget(chosen.map(\.id))
        } catch {
            // Nothing was forgotten, and the next step repairs the pack.
            return
        }
        checkpoints.removeAll { chosen.contains($0) }
        forgotten += chosen
    }

    private mutating func prune() throws {
        if Int.random(in: 0..<3, using: &random) == 0 {
            files.failCall(.random(in: 0..<12, using: &random), errno: 28)
        }
        defer { files.failCall(nil, errno: 0) }
        let percents: [Double] = [0, 5, 50]
        let percent = percents.randomElement(using: &random) ?? 0
        do {
            try repository.planPrune(PruneOptions(unusedPercentMax: percent)).execute()
        } catch {
            // Completed steps remain, and nothing that is needed is lost.
            return
        }
    }

    private mutating func reopen() throws {
        session.close()
        let parent = Bool.random(using: &random) ? checkpoints.randomElement(using: &random) : nil
        if Bool.random(using: &random) {
            try repository.close()
            if Bool.random(using: &random) {
                try FileManager.default.removeItem(atPath: path.appending("index").string)
            }
            repository = try History.open(path, files)
        }
        branchCount += 1
        session = try History.session(
            guest, repository, parent: parent, branch: branchCount, &random)
    }

    // MARK: - Checks

    private func check(_ guest: SimulatedGuest, _ checkpoint: Checkpoint) throws {
        let (pages, state) = guest.with { ($0.pages, $0.state) }
        try check(pages, state, checkpoint)
    }

    private func check(
        _ pages: [UInt64: [UInt8]], _ state: GuestState, _ checkpoint: Checkpoint
    ) throws {
        let expected = try #require(oracle[checkpoint.id])
        let frames = Set(pages.keys).union(expected.pages.keys)
        let wrong = frames.filter { pages[$0] != expected.pages[$0] }.sorted()
        #expect(
            wrong.isEmpty && state == expected.state,
            "checkpoint \(checkpoint.id.short), frames \(wrong), after steps \(steps)"
        )
    }

    mutating func checkAll() throws {
        session.close()
        try repository.close()
        try checkLive()
        // When this process holds no references, all forgotten checkpoints are removed.
        repository = try History.open(path, files)
        // The second prune removes forget records of checkpoints that the first one removed.
        for _ in 0..<2 { try repository.planPrune(.everything).execute() }
        let rest = try repository.planPrune(.everything)
        #expect(rest.isEmpty && rest.unusedByteCount == 0 && rest.deadPageCount == 0)
        try repository.close()
        try checkLive()
        try FileManager.default.removeItem(atPath: path.appending("index").string)
        try checkLive()
    }

    private mutating func checkLive() throws {
        let reader = try Repository.open(at: path, .reading)
        #expect(try reader.checkpoints().map(\.id) == checkpoints.map(\.id))
        for checkpoint in forgotten {
            #expect(throws: RepositoryError.self) { try reader.checkpoint(id: checkpoint.id) }
        }
        for checkpoint in checkpoints {
            let restored = SimulatedGuest(layout: .empty)
            let result = try reader.restore(checkpoint, into: restored)
            try check(restored, checkpoint)
            #expect(result.root == checkpoint.memory.root)
            #expect(try restored.memoryRoot() == checkpoint.memory.root)
        }
        let report = try reader.verify()
        #expect(report.isClean, "\(report.corruptions)")
        #expect(report.checkpointCount == checkpoints.count)
    }
}
