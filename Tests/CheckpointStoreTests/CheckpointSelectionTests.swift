import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// Lists of a part of the checkpoints.
@Suite struct CheckpointSelectionTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    /// Checkpoints of several lineages in turn; each lineage's label moves from one to the next.
    private func make(
        _ count: Int, lineages: [String] = ["web", "w", "we", "db"], seed: UInt64 = 0
    ) throws -> Repository {
        var random = TestSeed.generator(900 + seed)
        try Repository.create(at: path).close()
        let repository = try Repository.open(
            at: path, .writing, files: VolatileFiles(PosixFiles(root: path)))
        let sessions = try lineages.map { lineage in
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
            return (
                guest, try CaptureSession(of: guest, in: repository, lineage: LineageName(lineage)),
                lineage
            )
        }
        for step in 0..<count {
            let (guest, session, lineage) =
                sessions[Int.random(in: 0..<sessions.count, using: &random)]
            guest.with {
                $0.write(
                    UInt64(step % 8), [UInt8](repeating: UInt8(step % 251), count: Page.byteCount))
            }
            _ = try session.capture(label: step % 3 == 0 ? try Label("of-\(lineage)") : nil)
        }
        for (_, session, _) in sessions { session.close() }
        return repository
    }

    private func selections(
        of all: [Checkpoint], _ random: inout SeededGenerator
    ) -> [CheckpointSelection] {
        (0..<200).map { _ in
            let lineages: [LineageName] = ["web", "w", "we", "db", "wex"]
            func maybe<T>(_ value: T?) -> T? { Bool.random(using: &random) ? value : nil }
            return CheckpointSelection(
                lineage: maybe(lineages.randomElement(using: &random)),
                newest: maybe(Int.random(in: 0...12, using: &random)),
                before: maybe(all.randomElement(using: &random)?.id),
                since: maybe(all.randomElement(using: &random)?.timeNanoseconds),
                until: maybe(all.randomElement(using: &random)?.timeNanoseconds))
        }
    }

    private func expected(_ all: [Checkpoint], _ selection: CheckpointSelection) -> [Checkpoint] {
        let end = all.firstIndex { $0.id == selection.before } ?? all.count
        let found = all[..<end].filter { checkpoint in
            (selection.lineage == nil || checkpoint.lineage == selection.lineage)
                && checkpoint.timeNanoseconds >= selection.since ?? .min
                && checkpoint.timeNanoseconds <= selection.until ?? .max
        }
        return selection.newest.map { Array(found.suffix($0)) } ?? found
    }

    /// The index lists what a search of every checkpoint would find, also after some were forgotten
    /// and after the index was rebuilt.
    @Test func aSelectionIsWhatLookingAtAllOfThemFinds() throws {
        var random = TestSeed.generator(901)
        try {
            let repository = try make(60)
            let all = try repository.checkpoints()
            #expect(all.count == 60)
            for selection in selections(of: all, &random) {
                #expect(
                    try repository.checkpoints(selection) == expected(all, selection),
                    "\(selection)")
            }
            let gone = Set(all.shuffled(using: &random).prefix(25).map(\.id))
            try repository.forget(Array(gone))
            try repository.close()
        }()
        for isRebuilt in [false, true] {
            if isRebuilt {
                try FileManager.default.removeItem(atPath: path.appending("index").string)
            }
            let repository = try Repository.open(at: path, .reading)
            let left = try repository.checkpoints()
            #expect(left.count == 35)
            for selection in selections(of: left, &random) {
                #expect(
                    try repository.checkpoints(selection) == expected(left, selection),
                    "\(selection)")
            }
            for lineage in ["web", "w", "we", "db"] {
                let own = left.filter { $0.lineage.text == lineage }
                #expect(try repository.newest(ofLineage: LineageName(lineage)) == own.last)
                let label = try Label("of-\(lineage)")
                let holder = own.last { $0.label == label }
                let found = try? repository.checkpoint(named: label.text)
                #expect(found == holder)
                for checkpoint in own {
                    let current = try repository.currentLabel(of: checkpoint)
                    #expect(current == (checkpoint == holder ? label : nil))
                }
            }
            let names = Set(left.map(\.lineage.text)).sorted()
            #expect(try repository.lineages().map(\.name.text) == names)
        }
    }

    /// The pages of a list add up to the list.
    @Test func aListIsReadPageByPage() throws {
        let repository = try make(40)
        let all = try repository.checkpoints()
        var read: [Checkpoint] = []
        while true {
            let page = try repository.checkpoints(
                CheckpointSelection(newest: 7, before: read.first?.id))
            if page.isEmpty { break }
            read = page + read
        }
        #expect(read == all)
    }

    @Test func aListBeforeOneThatDoesNotExistFails() throws {
        let repository = try make(5)
        let ids = try repository.checkpoints().map(\.id)
        try repository.forget([ids[2]])
        for id in [ids[2], CheckpointID(PageDigest(words: (1, 2, 3, 4)))] {
            let error = #expect(throws: RepositoryError.self) {
                try repository.checkpoints(CheckpointSelection(before: id))
            }
            #expect(error?.code == .unknownName)
        }
    }

    // MARK: - Cost

    /// The part of the repository's files that a command reads, without LMDB's.
    private func reads(_ body: (Repository) throws -> Void) throws -> CountingFiles.Tally {
        let files = CountingFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .reading, files: files)
        try body(repository)
        return files.tally
    }

    /// Work whose cost must not depend on the number of checkpoints.
    private enum Work: CaseIterable {
        case open, newest, newestOfLineage, none, steps, label, id, lineages
    }

    private func perform(_ work: Work, _ repository: Repository) throws {
        switch work {
        case .open: break
        case .newest:
            let page = try repository.checkpoints(CheckpointSelection(newest: 10))
            #expect(page.count == 10)
        case .newestOfLineage:
            let page = try repository.checkpoints(CheckpointSelection(lineage: "db", newest: 10))
            #expect(page.count == 10)
        case .none:
            let page = try repository.checkpoints(CheckpointSelection(since: .max))
            #expect(page.isEmpty)
        case .steps: _ = try repository.checkpoint(named: "web~3")
        case .label: _ = try repository.checkpoint(named: "of-db")
        case .id:
            let newest = try #require(try repository.newest(ofLineage: "web"))
            let found = try repository.checkpoint(
                named: String(newest.id.description.prefix(20)))
            #expect(found == newest)
        case .lineages:
            let lineages = try repository.lineages()
            #expect(lineages.count == 2)
        }
    }

    /// The bytes read do not grow with the number of checkpoints.
    @Test func aListCostsWhatItShows() throws {
        try make(100, lineages: ["web", "db"]).close()
        let few = try Work.allCases.map { work in try reads { try perform(work, $0) } }
        try FileManager.default.removeItem(atPath: path.string)
        try make(1500, lineages: ["web", "db"]).close()
        let many = try Work.allCases.map { work in try reads { try perform(work, $0) } }
        for (work, (few, many)) in zip(Work.allCases, zip(few, many)) {
            #expect(many.reads <= few.reads + 2, "\(work): \(few), \(many)")
            #expect(many.readBytes <= few.readBytes + 4096, "\(work): \(few), \(many)")
        }
    }

    /// Forgetting one, whose name moves back to the previous one, reads no other manifest.
    @Test func forgettingReadsNoOtherCheckpoint() throws {
        var tallies: [CountingFiles.Tally] = []
        for count in [100, 1500] {
            try? FileManager.default.removeItem(atPath: path.string)
            try make(count, lineages: ["web"]).close()
            let files = CountingFiles(PosixFiles(root: path))
            let repository = try Repository.open(at: path, .writing, files: files)
            let newest = try #require(try repository.newest(ofLineage: "web"))
            let before = files.tally
            try repository.forget([newest.id])
            #expect(try repository.newest(ofLineage: "web")?.id == newest.parent)
            tallies.append(files.tally - before)
            try repository.close()
        }
        #expect(tallies[1].reads <= tallies[0].reads + 2, "\(tallies)")
    }
}
