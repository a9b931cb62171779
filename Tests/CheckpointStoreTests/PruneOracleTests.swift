import CheckpointEngine
import CheckpointFormat
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import PackStore

/// Prune, which queries the index about what was forgotten, finds the same as an oracle that builds
/// the page map of every existing checkpoint.
@Suite struct PruneOracleTests {
    @Test func plansAreThoseOfWhoLooksAtEverything() throws {
        var total = PruneWorld.Counts()
        for round in 0..<(TestSeed.isLong ? 60 : 6 as UInt64) {
            var world = try PruneWorld(random: TestSeed.generator(2_000 + round))
            for _ in 0..<150 { try world.step() }
            try world.finish()
            total.add(world.counts)
        }
        print("\(total)")
        #expect(total.dead > 100 && total.rebuilds > 5 && total.branches > 5 && total.kept > 5)
        #expect(total.unlooked > total.looked / 4)
    }
}

/// A repository with several histories that share pages, and the naive view of it.
private struct PruneWorld {
    struct Counts {
        var (plans, dead, looked, unlooked) = (0, 0, 0, 0)
        var (rebuilds, branches, forgotten, kept) = (0, 0, 0, 0)

        mutating func add(_ other: Counts) {
            plans += other.plans
            dead += other.dead
            looked += other.looked
            unlooked += other.unlooked
            rebuilds += other.rebuilds
            branches += other.branches
            forgotten += other.forgotten
            kept += other.kept
        }
    }

    private static let pageCount = 48
    private static let packByteCountMax = 336 << 10

    private struct History {
        let guest: SimulatedGuest
        let session: CaptureSession
    }

    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }
    private var random: SeededGenerator
    private var repository: Repository
    private var histories: [String: History] = [:]
    private var copies: [CheckpointID: [UInt64: [UInt8]]] = [:]
    private var leases: [CheckpointID: CheckpointLease] = [:]
    private let contents: [[UInt8]]
    private(set) var counts = Counts()

    init(random: SeededGenerator) throws {
        var random = random
        contents = (0..<90).map { _ in PruneWorld.noise(&random) }
        self.random = random
        let path = directory.path.appending("store")
        try Repository.create(at: path).close()
        repository = try PruneWorld.open(path)
    }

    private static func open(_ path: FilePath) throws -> Repository {
        let repository = try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: packByteCountMax)
        // So that pages are in runs, in the table of pages, in both, and in transit.
        try repository.withIndex { index in
            index.recent.limits = RecentLimits(
                entryCountMin: 2, bulkPart: 0, drainCounts: 16...64, additionCountMax: 8)
        }
        return repository
    }

    private static func noise(_ random: inout SeededGenerator) -> [UInt8] {
        (0..<Page.byteCount / 8).flatMap { _ in
            withUnsafeBytes(of: random.next()) { Array($0) }
        }
    }

    // MARK: - Steps

    mutating func step() throws {
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<52: try capture()
        case 52..<60: try branch()
        case 60..<78: try forget()
        case 78..<81: try lease()
        case 81..<82: leases = [:]
        case 82..<84: try abandon()
        case 84..<86: try label()
        case 86..<95: try prune()
        case 95..<97: try reopen(withoutIndex: false)
        default: try reopen(withoutIndex: true)
        }
        let broken = try repository.brokenIndexRelations()
        #expect(broken.isEmpty, "\(broken)")
    }

    mutating func finish() throws {
        leases = [:]
        try prune()
        try reopen(withoutIndex: true)
        try prune()
        for checkpoint in try repository.checkpoints() { try check(checkpoint) }
        let report = try repository.verify()
        #expect(report.isClean, "\(report.corruptions)")
    }

    private mutating func history(_ lineage: String, parent: Checkpoint? = nil) throws -> History {
        if parent == nil, let history = histories[lineage] { return history }
        histories[lineage]?.session.close()
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: PruneWorld.pageCount))
        if let parent, let pages = copies[parent.id] {
            for (frame, page) in pages { guest.with { $0.write(frame, page) } }
        }
        var options = CaptureOptions()
        options.poolByteCount = 2 << 20
        options.workerCount = 1
        let session = try CaptureSession(
            of: guest, in: repository, lineage: LineageName(lineage), parent: parent,
            options: options)
        let history = History(guest: guest, session: session)
        histories[lineage] = history
        return history
    }

    private mutating func capture(_ lineage: String? = nil) throws {
        let lineage = lineage ?? ["a", "b", "c"].randomElement(using: &random) ?? "a"
        let history = try history(lineage)
        // Sometimes enough that a base map follows.
        let isLarge = Int.random(in: 0..<12, using: &random) == 0
        for _ in 0..<Int.random(in: 1...(isLarge ? 60 : 7), using: &random) {
            let frame = UInt64.random(in: 0..<UInt64(PruneWorld.pageCount), using: &random)
            var page = contents.randomElement(using: &random) ?? []
            switch Int.random(in: 0..<8, using: &random) {
            case 0: page = [UInt8](repeating: 0, count: Page.byteCount)
            case 1...4: page = PruneWorld.noise(&random)
            default: break
            }
            history.guest.with { [page] in $0.write(frame, page) }
        }
        let checkpoint = try history.session.capture().checkpoint
        copies[checkpoint.id] = history.guest.with { $0.pages }
    }

    private mutating func branch() throws {
        let live = try repository.checkpoints()
        guard let parent = live.randomElement(using: &random) else { return }
        let lineage = ["b", "c", "d"].randomElement(using: &random) ?? "d"
        _ = try history(lineage, parent: parent)
        try capture(lineage)
        counts.branches += 1
    }

    private mutating func forget() throws {
        let live = try repository.checkpoints().shuffled(using: &random)
        let count = Int.random(in: 0..<10, using: &random) == 0 ? live.count * 3 / 4 : 2
        let gone = live.prefix(Int.random(in: 0...count, using: &random))
        try repository.forget(gone.map(\.id))
        counts.forgotten += gone.count
    }

    private mutating func label() throws {
        guard let one = try repository.checkpoints().randomElement(using: &random) else { return }
        let label = ["x", "y", nil].randomElement(using: &random) ?? nil
        try repository.setLabel(label.map { try Label("\(one.lineage)-\($0)") }, of: one.id)
    }

    private mutating func lease() throws {
        guard let one = try repository.checkpoints().randomElement(using: &random) else { return }
        leases[one.id] = try repository.lease([one.id])
    }

    /// Appends page groups that are never published.
    private mutating func abandon() throws {
        let transaction = try repository.begin()
        var records = RecordWriter()
        let page = PruneWorld.noise(&random)
        let compressor = try Compressor(level: .standard)
        let table = page.withUnsafeBytes {
            PageGroupEncoder.append(
                [PageBlockSource(bytes: $0)], firstOrdinal: 0, transaction: transaction.number,
                compressor: compressor, to: &records)
        }
        let pending = PendingRecord(
            range: 0..<records.count, type: .pageGroup, transaction: transaction.number,
            frame: table)
        try records.withUnsafeBytes { try transaction.append([pending], of: $0) }
        // The capture in between prevents their truncation.
        try capture()
        transaction.abandon()
    }

    private mutating func reopen(withoutIndex: Bool) throws {
        for history in histories.values { history.session.close() }
        histories = [:]
        try repository.close()
        if withoutIndex {
            counts.rebuilds += 1
            for name in try FileManager.default.contentsOfDirectory(
                atPath: path.appending("index").string)
            {
                try FileManager.default.removeItem(
                    atPath: path.appending("index").appending(name).string)
            }
        }
        repository = try PruneWorld.open(path)
    }

    private mutating func prune() throws {
        // A finished capture releases its lease on its parent asynchronously.
        let sessionCount = histories.count
        repository.activity.wait { activity in
            activity.sessionLeases.values.reduce(0, +) <= sessionCount ? () : nil
        }
        let percent: Double = [0, 0, 3, 20, 100].randomElement(using: &random) ?? 0
        let plan = try repository.planPrune(PruneOptions(unusedPercentMax: percent))
        try compare(plan)
        try plan.execute()
        let after = try repository.planPrune(PruneOptions(unusedPercentMax: percent))
        #expect(after.deadPageCount == 0)
        for checkpoint in try repository.checkpoints().shuffled(using: &random).prefix(3) {
            try check(checkpoint)
        }
    }

    private func check(_ checkpoint: Checkpoint) throws {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        #expect(restored.with { $0.pages } == copies[checkpoint.id])
    }

    // MARK: - The naive view

    /// Compares a plan with the page maps of all checkpoints that must be kept.
    private mutating func compare(_ plan: PrunePlan) throws {
        let naive = try NaivePrune(repository, leased: Set(leases.keys))
        counts.plans += 1
        counts.dead += naive.dead.count
        counts.kept += naive.keptCount
        #expect(plan.preparation.survey.dead == naive.dead)
        for pack in plan.packs {
            let file = try repository.reader.file(pack.number)
            let entries = try PackScan.scan(file, isNewest: false).entries
            let unused = max(0, pack.byteCount - (try naive.cut(pack.number, entries).byteCount))
            #expect(UInt64(pack.byteCount) == (try file.file.byteCount()))
            if plan.preparation.assessment.wasAssessed(pack.number) {
                counts.looked += 1
                #expect(pack.unusedByteCount == unused, "pack \(pack.number)")
                let cut = try repository.withIndex {
                    try plan.preparation.assessment.cut(pack.number, $0)
                }
                #expect(cut.index == (try naive.cut(pack.number, entries).index))
            } else {
                counts.unlooked += 1
                // Marks, and records of removed packs.
                #expect(unused - pack.unusedByteCount <= 400, "pack \(pack.number)")
                #expect(unused >= pack.unusedByteCount, "pack \(pack.number)")
            }
        }
    }
}

/// The effect of a prune, computed from everything in the repository.
private struct NaivePrune {
    private(set) var dead: [PageDigest: PageLocation] = [:]
    /// Forgotten checkpoints that are leased or being read.
    private(set) var keptCount = 0
    private var blocks: [UInt32: Set<UInt32>] = [:]
    private var records: [UInt32: Set<UInt32>] = [:]
    private var known: Set<CheckpointID> = []
    /// For each existing checkpoint, the label in the last record that names it.
    private var labels: [PageDigest: String] = [:]
    private let repository: Repository
    private let openPack: UInt32

    init(_ repository: Repository, leased: Set<CheckpointID>) throws {
        self.repository = repository
        openPack = try repository.openWriter().openPack
        let (entries, pruned) = try repository.withIndex { (try $0.manifests(), try $0.pruned()) }
        known = Set(entries.map(\.id))
        try readLabels(of: Set(entries.filter { !$0.isForgotten }.map(\.id.digest)))
        let kept = leased.union(repository.activity.read { Set($0.sessionLeases.keys) })
        var seen: Set<PageDigest> = []
        var members: [Checkpoint] = []
        var roots: Set<CheckpointID> = []
        for entry in entries where try !repository.reader.isPruned(entry.location, pruned) {
            let checkpoint = try repository.ancestor(entry.id)
            members.append(checkpoint)
            guard !entry.isForgotten || kept.contains(entry.id) else { continue }
            roots.insert(entry.id)
            if entry.isForgotten { keptCount += 1 }
            let map = try repository.pageMap(of: checkpoint).map
            map.forEachPage(of: map.volumes) { _, digest in seen.insert(digest) }
        }
        var places: [PageLocation] = []
        var dead: [PageDigest: PageLocation] = [:]
        try repository.withIndex { index in
            try index.forEachPage { digest, location in
                if seen.contains(digest) {
                    places.append(location)
                } else {
                    dead[digest] = location
                }
            }
        }
        self.dead = dead
        for place in places { blocks[place.pack, default: []].insert(place.blockOffset) }
        try keepRecords(members, roots)
    }

    private mutating func readLabels(of existing: Set<PageDigest>) throws {
        for pack in try PackName.list(repository.reader.files) {
            let scan = try PackScan.scan(repository.reader, pack: pack, isNewest: pack == openPack)
            for entry in scan.entries where entry.type == .labels {
                let location = RecordLocation(pack: pack, offset: entry.address)
                for change in try LabelsRecord.read(repository.reader, at: location).changes
                where existing.contains(change.id) {
                    labels[change.id] = change.label
                }
            }
        }
    }

    private mutating func keepRecords(_ members: [Checkpoint], _ roots: Set<CheckpointID>) throws {
        var needed: Set<CheckpointID> = []
        for member in members.reversed() {
            guard roots.contains(member.id) || needed.contains(member.id) else { continue }
            if let ancestor = member.mapAncestor { needed.insert(ancestor) }
        }
        var withBlocks: Set<UInt64> = []
        for (pack, addresses) in blocks {
            let scan = try PackScan.scan(repository.reader, pack: pack, isNewest: false)
            for entry in scan.entries where entry.frame != nil {
                if addresses.contains(where: { entry.addresses.contains(UInt64($0)) }) {
                    withBlocks.insert(entry.transaction)
                }
            }
        }
        for member in members {
            let (manifest, isRoot) = (member.manifest, roots.contains(member.id))
            // A checkpoint whose manifest is in the open pack is removed as a whole, later.
            let isOpen = member.location.pack >= openPack
            guard
                isRoot || isOpen || needed.contains(member.id)
                    || withBlocks.contains(manifest.transaction)
            else { continue }
            let states = isRoot ? manifest.stateParts : []
            for location in [member.location] + manifest.mapParts + states {
                records[location.pack, default: []].insert(location.offset)
            }
        }
    }

    /// The part of a pack that is kept.
    func cut(_ pack: UInt32, _ entries: [PackIndex.Entry]) throws -> PackRewrite {
        try PackRewrite(
            entries, keepsBlock: { _, address in blocks[pack]?.contains(address) ?? false },
            keepsRecord: { entry in
                switch entry.type {
                case .forget:
                    let location = RecordLocation(pack: pack, offset: entry.address)
                    return try ForgetRecord.read(repository.reader, at: location).ids.contains {
                        known.contains(CheckpointID($0))
                    }
                case .labels:
                    let location = RecordLocation(pack: pack, offset: entry.address)
                    return try LabelsRecord.read(repository.reader, at: location).changes.contains {
                        labels[$0.id] == $0.label
                    }
                case .mark, .pruned: return false
                default: return records[pack]?.contains(entry.address) ?? false
                }
            })
    }
}
