import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import LMDBTables
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// An index that is older than the packs: a backup copied it, and a prune ran before the backup
/// copied the packs.
@Suite struct StaleIndexTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var store: FilePath { directory.path.appending("store") }
    private let first: SimulatedGuest
    private let second: SimulatedGuest

    init() {
        var random = TestSeed.generator(0x57a1e)
        let layout = GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 300)])
        func guest() -> SimulatedGuest {
            let guest = SimulatedGuest(layout: layout)
            for frame in 0..<300 as Range<UInt64> {
                let contents = (0..<Page.byteCount).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }
                guest.with { $0.write(frame, contents) }
            }
            return guest
        }
        (first, second) = (guest(), guest())
    }

    private func capture(
        _ guest: SimulatedGuest, _ lineage: String, in repository: Repository
    ) throws -> Checkpoint {
        let session = try CaptureSession(of: guest, in: repository, lineage: LineageName(lineage))
        defer { session.close() }
        return try session.capture().checkpoint
    }

    /// Creates a store whose pack was rewritten since its index was copied.
    ///
    /// - Parameter removesPacks: true if whole packs were removed, and none rewritten.
    private func makeStale(removesPacks: Bool = false) throws {
        let whole = directory.path.appending("whole")
        try Repository.create(at: whole).close()
        let repository = try Repository.open(
            at: whole, .writing, files: PosixFiles(root: whole),
            packByteCountMax: removesPacks ? 512 << 10 : Repository.packByteCountMax)
        _ = try capture(first, "kept", in: repository)
        let gone = try capture(second, "gone", in: repository)
        try repository.close()
        let files = FileManager.default
        try files.copyItem(atPath: whole.string, toPath: store.string)
        let again = try Repository.open(at: whole, .writing)
        try again.forget([gone.id])
        let plan = try again.planPrune(
            removesPacks ? PruneOptions(unusedPercentMax: 100) : .everything)
        #expect(plan.packs.contains { $0.fate == (removesPacks ? .removed : .rewritten) })
        #expect(!plan.packs.contains { $0.fate == (removesPacks ? .rewritten : .removed) })
        try plan.execute()
        try again.close()
        for name in ["packs", "head"] {
            try files.removeItem(atPath: store.appending(name).string)
            try files.copyItem(
                atPath: whole.appending(name).string, toPath: store.appending(name).string)
        }
    }

    private func expect(
        _ checkpoint: Checkpoint, in repository: Repository, is guest: SimulatedGuest
    ) throws {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        #expect(restored.with { $0.pages } == guest.with { $0.pages })
    }

    @Test(arguments: [false, true]) func aWriterRebuildsIt(removesPacks: Bool) throws {
        try makeStale(removesPacks: removesPacks)
        let repository = try Repository.open(at: store, .writing)
        let checkpoint = try capture(second, "again", in: repository)
        #expect(checkpoint.storedPageCount > (removesPacks ? 50 : 299))
        try expect(checkpoint, in: repository, is: second)
        try expect(
            try repository.checkpoint(named: "kept"), in: repository, is: first)
        #expect(try repository.verify().isClean)
        try repository.close()
    }

    /// A prune that was killed between two packs leaves an index without their lengths.
    @Test func aRewrittenPackOfUnknownLengthIsEnough() throws {
        try makeStale()
        let files = PosixFiles(root: store)
        let reader = PackReader(
            files: files, repository: try Repository.open(at: store, .reading).id)
        let index = try Index.open(files, .writing)
        let packs = try PackName.list(files)
        #expect(try index.isStale(packs, known: try index.packSizes(), reader))
        try index.measure(packs, reader)
        #expect(try !index.isStale(packs, known: try index.packSizes(), reader))
        try index.setPackSizes([1: nil])
        #expect(try index.isStale(packs, known: try index.packSizes(), reader))
    }

    /// Where a writer trusted the index anyway, verification finds what is missing.
    @Test func whatItNamesAndPacksLackIsFound() throws {
        try makeStale()
        do {
            let files = PosixFiles(root: store)
            let id = try Repository.open(at: store, .reading).id
            let index = try Index.open(files, .writing)
            try index.measure(
                try PackName.list(files), PackReader(files: files, repository: id))
            try index.sync()
        }
        let repository = try Repository.open(at: store, .writing)
        let checkpoint = try capture(second, "again", in: repository)
        #expect(checkpoint.storedPageCount == 0)
        try repository.close()
        for depth in [VerifyDepth.full, .structure] {
            let report = try Repository.open(at: store, .reading).verify(depth)
            #expect(report.affectedCheckpoints == [checkpoint.id], "\(depth)")
        }
    }

    /// Nothing is lost, and no loss is reported.
    @Test func repairTakesNothingOfItForLost() throws {
        try makeStale()
        let plan = try Repository.planRepair(at: store)
        #expect(plan.losses.isEmpty)
        #expect(plan.findings.map(\.corruption.object) == ["index"])
        _ = try plan.execute()
        #expect(try Repository.open(at: store, .reading).verify().isClean)
    }
}
