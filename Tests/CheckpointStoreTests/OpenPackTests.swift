import CheckpointEngine
import CheckpointFormat
import Foundation
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import PackStore

/// What prune finds in the open pack, and what changes there while it plans.
@Suite struct OpenPackTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }
    private let everything = PruneOptions(unusedPercentMax: 0)

    private func open(
        _ access: Repository.Access = .writing, packByteCountMax: Int = Repository.packByteCountMax
    ) throws -> Repository {
        try Repository.open(
            at: path, access, files: PosixFiles(root: path), packByteCountMax: packByteCountMax)
    }

    private static func noise(_ random: inout SeededGenerator) -> [UInt8] {
        let words = (0..<Page.byteCount / 8).map { _ in random.next() }
        return words.withUnsafeBytes { Array($0) }
    }

    /// Takes two checkpoints, and forgets the first; the changed pages are adjacent.
    private func replace(
        _ changed: Int, of count: Int, in repository: Repository, lineage: String = "web",
        seed: UInt64
    ) throws -> (id: CheckpointID, pages: [UInt64: [UInt8]]) {
        var random = TestSeed.generator(seed)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: count))
        let session = try CaptureSession(of: guest, in: repository, lineage: LineageName(lineage))
        for frame in 0..<UInt64(count) {
            let page = OpenPackTests.noise(&random)
            guest.with { $0.write(frame, page) }
        }
        let first = try session.capture().checkpoint
        for frame in 0..<UInt64(changed) {
            let page = OpenPackTests.noise(&random)
            guest.with { $0.write(frame, page) }
        }
        let second = try session.capture().checkpoint
        session.close()
        try repository.forget([first.id])
        return (second.id, guest.with { $0.pages })
    }

    private func check(
        _ id: CheckpointID, _ pages: [UInt64: [UInt8]], _ repository: Repository
    ) throws {
        let guest = SimulatedGuest(layout: .empty)
        let checkpoint = try repository.checkpoint(id: id)
        _ = try repository.restore(checkpoint, into: guest)
        #expect(guest.with { $0.pages } == pages)
        #expect(try repository.verify().isClean)
    }

    // MARK: - Dead pages in the open pack

    /// A prune that leaves the open pack as it is removes its dead pages from the index: later
    /// prunes and other processes still count them, as does a reader of the packs alone.
    @Test func whatAnEarlierPruneLeftIsCounted() throws {
        try Repository.create(at: path).close()
        var repository = try open()
        let (id, pages) = try replace(64, of: 128, in: repository, seed: 940)
        let first = try repository.planPrune()
        let unused = first.openUnusedByteCount
        #expect(first.deadPageCount == 64 && unused >= 64 * Page.byteCount)
        try first.execute()
        let left = try repository.planPrune()
        #expect(left.isEmpty && left.packs.isEmpty && left.deadPageCount == 0)
        #expect(left.openUnusedByteCount == unused)
        try repository.close()
        let reader = try open(.reading)
        #expect(try reader.planPrune().openUnusedByteCount == unused)

        let index = path.appending("index").string
        try FileManager.default.copyItem(atPath: index, toPath: index + "-saved")
        try FileManager.default.removeItem(atPath: index)
        let fresh = try open(.reading)
        #expect(fresh.temporaryIndex?.isFromPacks == true)
        #expect(try fresh.planPrune().openUnusedByteCount == unused)
        try FileManager.default.moveItem(atPath: index + "-saved", toPath: index)

        repository = try open()
        let plan = try repository.planPrune(everything)
        #expect(plan.packs.map(\.fate) == [.rewritten])
        #expect(plan.freedByteCount >= unused && plan.openUnusedByteCount == 0)
        try plan.execute()
        #expect(try repository.planPrune(everything).openUnusedByteCount == 0)
        try check(id, pages, repository)
    }

    /// A reader, which seals nothing, gets the same plan as the owner.
    @Test(arguments: [0.0, 5])
    func aPlanAloneCountsTheOpenPack(percent: Double) throws {
        let packByteCountMax = 4 << 20
        try Repository.create(at: path).close()
        var repository = try open(packByteCountMax: packByteCountMax)
        let (id, pages) = try replace(96, of: 200, in: repository, seed: 941)
        try repository.close()
        let options = PruneOptions(unusedPercentMax: percent)
        let estimate = try open(.reading, packByteCountMax: packByteCountMax).planPrune(options)
        let index = path.appending("index").string
        try FileManager.default.moveItem(atPath: index, toPath: index + "-saved")
        let fresh = try open(.reading, packByteCountMax: packByteCountMax).planPrune(options)
        try FileManager.default.moveItem(atPath: index + "-saved", toPath: index)
        repository = try open(packByteCountMax: packByteCountMax)
        let plan = try repository.planPrune(options)
        #expect(plan.packs.map(\.fate) == [.rewritten])
        #expect(plan.freedByteCount >= 96 * Page.byteCount)
        for other in [estimate, fresh] {
            #expect(other.packs == plan.packs && other.byteCount == plan.byteCount)
            #expect(other.deadPageCount == plan.deadPageCount)
        }
        #expect(try plan.execute().packs == estimate.packs)
        try check(id, pages, repository)
    }

    /// If every block with dead pages is needed for another page, the pack is not sealed, and it is
    /// not examined each time.
    @Test func whatSharesBlocksIsNotSealedForNothing() throws {
        try Repository.create(at: path).close()
        let files = CountingFiles(PosixFiles(root: path))
        let repository = try Repository.open(
            at: path, .writing, files: files, packByteCountMax: 4 << 20)
        var random = TestSeed.generator(945)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 1024))
        // Stored together: they are compressible, and all different.
        func page() -> [UInt8] {
            let words = (0..<64).map { _ in random.next() }
            let few = words.withUnsafeBytes { Array($0) }
            return (0..<8).flatMap { _ in few }
        }
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for frame in 0..<1024 as Range<UInt64> {
            let page = page()
            guest.with { $0.write(frame, page) }
        }
        let first = try session.capture().checkpoint
        // All but one page of each block.
        for frame in 0..<1024 as Range<UInt64> where frame % 4 != 0 {
            let page = page()
            guest.with { $0.write(frame, page) }
        }
        let second = try session.capture().checkpoint
        session.close()
        try repository.forget([first.id])
        let plan = try repository.planPrune(PruneOptions(unusedPercentMax: 10))
        #expect(plan.packs.isEmpty && plan.openUnusedByteCount > 4 << 16)
        try plan.execute()
        let before = files.tally
        let again = try repository.planPrune(PruneOptions(unusedPercentMax: 10))
        #expect(again.packs.isEmpty && again.openUnusedByteCount == plan.openUnusedByteCount)
        #expect((files.tally - before).readBytes < 4096)
        try check(second.id, guest.with { $0.pages }, repository)
    }

    /// No pack is sealed or copied to free a few bytes.
    @Test func aFewBytesStay() throws {
        try Repository.create(at: path).close()
        let repository = try open(packByteCountMax: 1 << 20)
        var random = TestSeed.generator(942)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 100))
        for frame in 0..<100 as Range<UInt64> {
            let page = OpenPackTests.noise(&random)
            guest.with { $0.write(frame, page) }
        }
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        _ = try session.capture()
        // A page that is stored in a few bytes.
        guest.with { $0.write(0, [UInt8](repeating: 7, count: Page.byteCount)) }
        let small = try session.capture().checkpoint
        let page = OpenPackTests.noise(&random)
        guest.with { $0.write(0, page) }
        let last = try session.capture().checkpoint
        try repository.forget([small.id])
        session.close()
        let open = try repository.planPrune(everything)
        #expect(open.deadPageCount == 1 && open.packs.isEmpty)
        try open.execute()
        // Until the next pack is begun.
        var pack = last.location.pack
        for seed in 943..<960 as Range<UInt64> where pack == last.location.pack {
            let other = SimulatedGuest(layout: GuestLayout(pageCount: 100))
            var random = TestSeed.generator(seed)
            for frame in 0..<100 as Range<UInt64> {
                let page = OpenPackTests.noise(&random)
                other.with { $0.write(frame, page) }
            }
            let session = try CaptureSession(
                of: other, in: repository, lineage: LineageName("other\(seed)"))
            pack = try session.capture().checkpoint.location.pack
            session.close()
        }
        let plan = try repository.planPrune(everything)
        let unused = try #require(plan.packs.first).unusedByteCount
        #expect(unused > 0 && unused < 4096)
        #expect(plan.isEmpty)
        try check(last.id, guest.with { $0.pages }, repository)
    }

    // MARK: - Captures during a prune

    /// A checkpoint taken after the plan's survey found one of its pages dead, and before the plan
    /// is complete, does not prevent the plan's execution.
    @Test func aCaptureWhileItIsPlannedIsNoObstacle() throws {
        try Repository.create(at: path).close()
        var repository = try open()
        let (id, pages) = try replace(32, of: 64, in: repository, seed: 943)
        // A forgotten checkpoint under lease, after the index was rebuilt: its page map is read
        // after the survey knows which pages are dead.
        let held = try replace(1, of: 16, in: repository, lineage: "held", seed: 944)
        let other = try open(.reading)
        let lease = try other.lease([held.id])
        let part = try repository.checkpoint(id: held.id).manifest.mapParts[0]
        try repository.forget([held.id])
        try repository.close()
        try FileManager.default.removeItem(atPath: path.appending("index").string)

        let files = FaultyFiles(PosixFiles(root: path))
        repository = try Repository.open(at: path, .writing, files: files)
        var random = TestSeed.generator(943)
        let dead = OpenPackTests.noise(&random)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 1))
        guest.with { $0.write(0, dead) }
        let session = try CaptureSession(of: guest, in: repository, lineage: "late")
        let late = Mutex<CheckpointID?>(nil)
        files.beforeRead(of: PackName.path(part.pack), at: UInt64(part.offset)) {
            late.withLock { $0 = try? session.capture().checkpoint.id }
        }
        let plan = try repository.planPrune()
        let digest = dead.withUnsafeBytes { PageDigest(hashing: $0) }
        #expect(plan.preparation.survey.dead[digest] != nil, "the capture came too early")
        let lateID = try #require(late.withLock { $0 })
        let done = try plan.execute()
        #expect(done.deadPageCount == plan.deadPageCount - 1)
        session.close()
        try check(lateID, [0: dead], repository)
        try check(id, pages, repository)
        withExtendedLifetime(lease) {}
    }

    /// The writer prunes between two steps of a reader.
    @Test(arguments: ["plan", "statistics"])
    func aReaderBeginsAgainIfPruneCameInBetween(what: String) throws {
        try Repository.create(at: path).close()
        let writer = try open(packByteCountMax: 192 << 10)
        var last: (id: CheckpointID, pages: [UInt64: [UInt8]])?
        for round in 0..<6 as Range<UInt64> {
            last = try replace(20, of: 24, in: writer, lineage: "\(round)", seed: 950 + round)
        }
        let files = FaultyFiles(PosixFiles(root: path))
        let reader = try Repository.open(at: path, .reading, files: files)
        let packs = try PackName.list(files)
        try #require(packs.count > 4)
        // A pack that both examine: much of it is dead.
        let planned = try open(.reading).planPrune(.everything).packs
        let pack = try #require(planned.first { $0.fate != .kept }).number
        let end = try files.open(PackName.path(pack), .read).byteCount()
        let freed = Mutex(0)
        files.beforeRead(of: PackName.path(pack), at: end - 1) {
            let done = try? writer.planPrune(.everything).execute()
            freed.withLock { $0 = done?.freedByteCount ?? 0 }
        }
        if what == "plan" {
            #expect(try reader.planPrune(.everything).freedByteCount < 4 << 10)
        } else {
            let size = try PackName.list(files).reduce(0) {
                $0 + Int(try files.open(PackName.path($1), .read).byteCount())
            }
            #expect(try reader.statistics().byteCount <= size)
        }
        #expect(freed.withLock { $0 } > 0, "the prune came in between")
        let (id, pages) = try #require(last)
        try check(id, pages, writer)
    }

    // MARK: - Statistics

    private func packsByteCount() throws -> Int {
        let files = PosixFiles(root: path)
        return try PackName.list(files).reduce(0) {
            $0 + Int(try files.open(PackName.path($1), .read).byteCount())
        }
    }

    /// A prune that begins while its own process counts the packs changes the first of them only
    /// when they have been counted.
    @Test func ownPruneWaitsForStatistics() throws {
        try Repository.create(at: path).close()
        let files = FaultyFiles(PosixFiles(root: path))
        let repository = try Repository.open(
            at: path, .writing, files: files, packByteCountMax: 192 << 10)
        for round in 0..<6 as Range<UInt64> {
            _ = try replace(20, of: 24, in: repository, lineage: "\(round)", seed: 960 + round)
        }
        let plan = try repository.planPrune(everything)
        let removed = plan.packs.filter { $0.fate == .removed }.map(\.number)
        try #require(removed.count > 1)
        let size = try packsByteCount()
        let (before, done) = (try repository.statistics(), DispatchSemaphore(value: 0))
        #expect(before.byteCount == size && before.abandonedByteCount == 0)
        // The first pack is being read, and the last of those removed is not counted yet.
        let first = try #require(try PackName.list(files).first)
        files.beforeRead(of: PackName.path(first), at: 0) {
            Thread.detachNewThread {
                _ = try? plan.execute()
                done.signal()
            }
            usleep(300_000)
        }
        #expect(try repository.statistics() == before)
        done.wait()
        #expect(try PackName.list(files).allSatisfy { !removed.contains($0) })
        let after = try repository.statistics()
        #expect(try after.byteCount == packsByteCount() && after.byteCount < size)
        #expect(after.checkpointCount == before.checkpointCount && after.abandonedByteCount == 0)
        #expect(after.logicalByteCount == before.logicalByteCount)
    }

    /// Whether the repository is the writer's own or a reader's, statistics succeed beside captures
    /// and prunes, and everything that they count is of one moment.
    @Test(arguments: [true, false])
    func statisticsSucceedBesidePrunes(isOwn: Bool) throws {
        try Repository.create(at: path).close()
        let writer = try open(packByteCountMax: 64 << 10)
        _ = try replace(4, of: 8, in: writer, seed: 970)
        let counted = isOwn ? writer : try open(.reading)
        let done = DispatchSemaphore(value: 0)
        let failure = Mutex<(any Error)?>(nil)
        let isOver = Mutex(false)
        Thread.detachNewThread {
            do {
                for round in 0..<40 as Range<UInt64> {
                    _ = try self.replace(4, of: 8, in: writer, seed: 971 + round)
                    try writer.planPrune(self.everything).execute()
                }
            } catch {
                failure.withLock { $0 = error }
            }
            isOver.withLock { $0 = true }
            done.signal()
        }
        var count = 0
        while !isOver.withLock({ $0 }) {
            let found = try counted.statistics()
            #expect(found.pageCount == found.checkpointCount * 8)
            #expect(found.metadataByteCount > 0)
            // Each has 8 pages, at most 4 of them shared with one other.
            #expect(found.uniquePageCount >= found.checkpointCount * 4)
            count += 1
        }
        done.wait()
        #expect(failure.withLock { $0 } == nil)
        #expect(count > 4, "prunes came in between")
        #expect(try counted.statistics().abandonedByteCount == 0)
        #expect(try counted.statistics().byteCount == packsByteCount())
    }
}
