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

/// Prune frees space exactly as planned, and changes nothing else.
@Suite struct PruneTests {
    private static let packByteCount = 512 << 10

    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private func open(_ access: Repository.Access = .writing) throws -> Repository {
        try Repository.open(
            at: path, access, files: PosixFiles(root: path),
            packByteCountMax: PruneTests.packByteCount)
    }

    /// An incompressible page, so that sizes are predictable.
    static func noise(_ random: inout SeededGenerator) -> [UInt8] {
        (0..<Page.byteCount / 8).flatMap { _ in
            let word = random.next()
            return (0..<8 as Range<UInt64>).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) }
        }
    }

    private typealias Copies = [CheckpointID: [UInt64: [UInt8]]]

    /// Takes checkpoints of a guest that writes all over its memory.
    private func fill(
        _ repository: Repository, count: Int, pages: Int = 200, seed: UInt64
    ) throws -> (copies: Copies, checkpoints: [Checkpoint]) {
        var random = TestSeed.generator(seed)
        let layout = GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: pages)])
        let guest = SimulatedGuest(layout: layout)
        let session = try CaptureSession(
            of: guest, in: repository, lineage: LineageName("web\(seed)"))
        var copies: Copies = [:]
        var checkpoints: [Checkpoint] = []
        for step in 0..<count {
            let frames = step == 0 ? Array(0..<pages) : (0..<pages / 5).map { _ in -1 }
            for frame in frames {
                let place = frame < 0 ? Int.random(in: 0..<pages, using: &random) : frame
                let page = PruneTests.noise(&random)
                guest.with { $0.write(UInt64(place), page) }
            }
            let checkpoint = try session.capture().checkpoint
            copies[checkpoint.id] = guest.with { $0.pages }
            checkpoints.append(checkpoint)
        }
        session.close()
        return (copies, checkpoints)
    }

    private func check(_ repository: Repository, _ copies: Copies) throws {
        let live = try repository.checkpoints()
        #expect(Set(live.map(\.id)) == Set(copies.keys))
        for checkpoint in live {
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, into: guest)
            #expect(guest.with { $0.pages } == copies[checkpoint.id])
            #expect(try guest.memoryRoot() == checkpoint.memory.root)
        }
        let report = try repository.verify()
        #expect(report.isClean, "\(report.corruptions)")
    }

    private func packBytes() throws -> Int {
        let packs = path.appending("packs").string
        return try FileManager.default.contentsOfDirectory(atPath: packs).reduce(0) {
            let attributes = try FileManager.default.attributesOfItem(atPath: "\(packs)/\($1)")
            return $0 + (attributes[.size] as? Int ?? 0)
        }
    }

    // MARK: - Space

    /// The bound: the size of a new store, plus a fifth, plus one open pack.
    @Test func spaceComesBack() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        var (copies, checkpoints) = try fill(repository, count: 40, seed: 900)
        for checkpoint in checkpoints.dropLast() { copies[checkpoint.id] = nil }
        try repository.forget(checkpoints.dropLast().map(\.id))
        let plan = try repository.planPrune(PruneOptions.everything)
        // Includes the bytes added by sealing the open pack.
        let before = try packBytes()
        let done = try plan.execute()
        #expect(done.packs == plan.packs)
        let after = try packBytes()
        let fresh = 200 * (Page.byteCount + 44)
        print("forgot 39 of 40: \(before) bytes became \(after); \(fresh) are needed")
        #expect(after <= fresh * 6 / 5 + PruneTests.packByteCount)
        // The plan's sizes are exact, except for the record that names the removed packs.
        #expect(before - after <= plan.freedByteCount)
        #expect(before - after >= plan.freedByteCount - 256)
        try check(repository, copies)
        try repository.close()
        try FileManager.default.removeItem(atPath: path.appending("index").string)
        try check(try open(.reading), copies)
        try check(try open(), copies)
    }

    /// A plan that another prune has overtaken, or that was executed, is told apart from a busy
    /// repository: planning again helps, waiting does not.
    @Test func aStalePlanSaysSo() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (_, checkpoints) = try fill(repository, count: 6, seed: 922)
        try repository.forget([checkpoints[2].id])
        let (first, second) = (
            try repository.planPrune(.everything), try repository.planPrune(.everything)
        )
        try first.execute()
        for plan in [first, second] {
            let error = #expect(throws: RepositoryError.self) { try plan.execute() }
            #expect(error?.code == .planStale)
        }
        try repository.planPrune(.everything).execute()
    }

    /// Data that only a reader of a forgotten checkpoint needs is kept and reported.
    @Test func whatReadersHoldIsTold() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        var (copies, checkpoints) = try fill(repository, count: 20, seed: 921)
        let reader = try open(.reading)
        var lease: CheckpointLease? = try reader.lease([checkpoints[3].id, checkpoints[4].id])
        for checkpoint in checkpoints.dropLast(5) { copies[checkpoint.id] = nil }
        try repository.forget(checkpoints.dropLast(5).map(\.id))
        let options = PruneOptions.everything
        let held = try repository.planPrune(options)
        #expect(held.leasedByteCount > 20 * Page.byteCount)
        #expect(held.unusedByteCount > 20 * Page.byteCount)
        let done = try held.execute()
        #expect(done.leasedByteCount == held.leasedByteCount)
        let left = try repository.planPrune(options)
        #expect(left.unusedByteCount == 0 && left.leasedByteCount > 20 * Page.byteCount)
        // Another process's plan reports the same.
        #expect(try reader.planPrune(options).leasedByteCount == left.leasedByteCount)
        withExtendedLifetime(lease) {}
        lease = nil
        let free = try repository.planPrune(options)
        print(
            "held by readers: \(left.leasedByteCount) bytes, \(free.unusedByteCount) unused after")
        #expect(free.leasedByteCount == 0 && free.unusedByteCount == left.leasedByteCount)
        try free.execute()
        #expect(try repository.planPrune(options).leasedByteCount == 0)
        try check(repository, copies)
    }

    /// A reader that cannot use the store's index gets the same plan as the owner, pack by pack.
    @Test func aReaderWithAnIndexOfItsOwnPlansTheSame() throws {
        var random = TestSeed.generator(922)
        try Repository.create(at: path).close()
        var copies: Copies = [:]
        var reader: Repository?
        for round in 0..<(TestSeed.isLong ? 12 : 4) {
            let repository = try open()
            let filled = try fill(repository, count: 12, seed: 930 + UInt64(round))
            copies.merge(filled.copies) { $1 }
            for id in copies.keys.sorted(by: { "\($0)" < "\($1)" })
            where Int.random(in: 0..<3, using: &random) == 0 {
                copies[id] = nil
                try repository.forget([id])
            }
            if round % 2 == 1 { try repository.planPrune().execute() }
            for percent in [0.0, 20] {
                let options = PruneOptions(unusedPercentMax: percent)
                let plan = try repository.planPrune(options)
                // It was opened before, and has since read the new records.
                if let reader {
                    #expect(try reader.planPrune(options).packs == plan.packs, "round \(round)")
                }
                let saved = path.appending("index").string
                try FileManager.default.copyItem(atPath: saved, toPath: saved + "-saved")
                try FileManager.default.removeItem(atPath: saved)
                let fresh = try open(.reading)
                #expect(fresh.temporaryIndex?.isFromPacks == true)
                let found = try fresh.planPrune(options)
                try FileManager.default.moveItem(atPath: saved + "-saved", toPath: saved)
                #expect(found.packs == plan.packs, "round \(round)")
                #expect(found.byteCount == plan.byteCount && plan.byteCount > 0)
                print(
                    "round \(round), \(percent) %: \(plan.deadPageCount) pages die, a reader "
                        + "finds \(found.deadPageCount); \(plan.freedByteCount) bytes")
                reader = reader ?? fresh
            }
            try repository.close()
        }
        try check(try open(), copies)
    }

    @Test(arguments: [0.0, 5, 30, 100])
    func atMostSoMuchIsUnused(percent: Double) throws {
        try Repository.create(at: path).close()
        let repository = try open()
        var (copies, checkpoints) = try fill(repository, count: 30, seed: 901)
        for (number, checkpoint) in checkpoints.enumerated() where number % 3 != 0 {
            copies[checkpoint.id] = nil
            try repository.forget([checkpoint.id])
        }
        let options = PruneOptions(unusedPercentMax: percent)
        let plan = try repository.planPrune(options)
        try plan.execute()
        // The second prune removes forget records of checkpoints that the first one removed.
        try repository.planPrune(options).execute()
        let after = try repository.planPrune(options)
        #expect(after.isEmpty && after.deadPageCount == 0)
        #expect(after.unusedByteCount <= plan.unusedByteCount - plan.freedByteCount + 1024)
        // A pack of which too little would be freed is kept, whatever the percentage is.
        let worthwhile = after.packs.filter { $0.unusedByteCount >= options.rewriteByteCountMin }
        let unused = Double(after.unusedByteCount) * 100 / Double(after.byteCount)
        #expect(unused <= percent || worthwhile.isEmpty, "unused: \(unused) %")
        try check(repository, copies)
    }

    @Test func aPackIsWrittenAnewAgainAndAgain() throws {
        try Repository.create(at: path).close()
        var repository = try open()
        var (copies, checkpoints) = try fill(repository, count: 40, seed: 902)
        var random = TestSeed.generator(903)
        while checkpoints.count > 1 {
            let victims = checkpoints.shuffled(using: &random).prefix(7).prefix(
                checkpoints.count - 1)
            try repository.forget(victims.map(\.id))
            for victim in victims { copies[victim.id] = nil }
            checkpoints.removeAll { victims.contains($0) }
            // The second prune removes forget records of checkpoints that the first one removed.
            for _ in 0..<2 {
                try repository.planPrune(PruneOptions.everything).execute()
            }
            if Bool.random(using: &random) {
                try repository.close()
                try FileManager.default.removeItem(atPath: path.appending("index").string)
                repository = try open()
            }
            try check(repository, copies)
            #expect(try repository.planPrune(PruneOptions.everything).isEmpty)
        }
    }

    @Test func abandonedTransactionsGo() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (copies, _) = try fill(repository, count: 2, seed: 904)
        let other = try repository.begin()
        var random = TestSeed.generator(905)
        var records = RecordWriter()
        let compressor = try Compressor(level: .standard)
        for ordinal in 0..<400 as Range<UInt32> {
            records.removeAll()
            let page = PruneTests.noise(&random)
            let table = page.withUnsafeBytes {
                PageGroupEncoder.append(
                    [PageBlockSource(bytes: $0)], firstOrdinal: ordinal, transaction: other.number,
                    compressor: compressor, to: &records)
            }
            let pending = PendingRecord(
                range: 0..<records.count, type: .pageGroup, transaction: other.number,
                frame: table)
            try records.withUnsafeBytes { try other.append([pending], of: $0) }
        }
        // Nothing of an active transaction is removed.
        #expect(try repository.planPrune().unusedByteCount < 1000)
        let (more, _) = try fill(repository, count: 1, seed: 906)
        other.abandon()
        let plan = try repository.planPrune(PruneOptions.everything)
        #expect(plan.freedByteCount > 300 * Page.byteCount)
        try plan.execute()
        try check(repository, copies.merging(more) { left, _ in left })
    }

    /// An abandoned transaction's pages may stay in the packs: if its number were given to another
    /// transaction, a rebuilt index would take them for that one's.
    @Test func numbersAreNotGivenOutAgain() throws {
        try Repository.create(at: path).close()
        var repository = try open()
        let (copies, _) = try fill(repository, count: 1, seed: 912)
        let early = try repository.begin()
        let late = try repository.begin()
        let (more, _) = try fill(repository, count: 1, seed: 913)
        try repository.forget([])
        early.abandon()
        late.abandon()
        let last = late.number
        try repository.close()
        repository = try open()
        let next = try repository.begin()
        #expect(next.number > last)
        next.abandon()
        try check(repository, copies.merging(more) { left, _ in left })
    }

    // MARK: - Failures

    /// Each changing call of forget and prune fails once, with a full disk or an I/O error: nothing
    /// is lost, the repository remains usable, and the next prune does the rest.
    @Test func everyCallMayFail() throws {
        var failures = 0
        for call in 0..<200 {
            let directory = TemporaryDirectory()
            let path = directory.path.appending("store")
            try Repository.create(at: path).close()
            let files = FaultyFiles(PosixFiles(root: path))
            var repository = try Repository.open(
                at: path, .writing, files: files, packByteCountMax: PruneTests.packByteCount)
            var (copies, checkpoints) = try fill(repository, count: 8, pages: 60, seed: 930)
            let gone = checkpoints.prefix(5).map(\.id)
            files.failCall(call, errno: call % 2 == 0 ? 5 : 28)
            var didForget = false
            do {
                try repository.forget(gone)
                didForget = true
                try repository.planPrune(PruneOptions.everything).execute()
            } catch {
                failures += 1
            }
            files.failCall(nil, errno: 0)
            if didForget { for id in gone { copies[id] = nil } }
            // At once, after another capture, and after reopening.
            try check(repository, copies)
            let more = try fill(repository, count: 1, pages: 60, seed: 931)
            copies.merge(more.copies) { left, _ in left }
            checkpoints += more.checkpoints
            try check(repository, copies)
            try repository.close()
            // The packs alone tell which of them were about to be removed.
            if call % 2 == 1 {
                try FileManager.default.removeItem(atPath: path.appending("index").string)
            }
            repository = try Repository.open(
                at: path, .writing, files: files, packByteCountMax: PruneTests.packByteCount)
            try check(repository, copies)
            try repository.planPrune(PruneOptions.everything).execute()
            try check(repository, copies)
            #expect(try repository.planPrune(PruneOptions.everything).isEmpty)
            if failures <= call { break }
        }
        print("forget and prune failed at each of \(failures) calls")
        #expect(failures > 10)
    }

    /// The disk is full from each call of a prune on: the space of unfinished files is freed, and
    /// the repository remains usable.
    @Test func aFullDiskKeepsNothingOfAPrune() throws {
        try Repository.create(at: path).close()
        var repository = try open()
        var (copies, checkpoints) = try fill(repository, count: 8, pages: 60, seed: 932)
        try repository.forget(checkpoints.prefix(5).map(\.id))
        for checkpoint in checkpoints.prefix(5) { copies[checkpoint.id] = nil }
        checkpoints.removeFirst(5)
        try repository.close()
        var failures = 0
        for call in 0..<200 {
            let directory = TemporaryDirectory()
            let other = directory.path.appending("store")
            try FileManager.default.copyItem(atPath: path.string, toPath: other.string)
            let files = FaultyFiles(PosixFiles(root: other))
            repository = try Repository.open(
                at: other, .writing, files: files, packByteCountMax: PruneTests.packByteCount)
            let plan = try repository.planPrune(PruneOptions.everything)
            #expect(plan.packs.contains { $0.fate == .rewritten })
            files.failCalls(from: call, .growth)
            let result = Result { try plan.execute() }
            let didFail = files.endFailing()
            #expect(try files.list(StoreDirectory.packs).allSatisfy { PackName.number($0) != nil })
            try check(repository, copies)
            try repository.close()
            guard didFail else { break }
            // The head may lag, so a prune does not fail if its update does.
            if case .failure = result { failures += 1 }
        }
        print("prune failed on a full disk at \(failures) calls")
        #expect(failures > 3)
    }

    /// Leftovers of a killed prune are removed before anything else changes in the store, because
    /// other changes may find no space on the disk.
    @Test func whatAKilledPruneLeftGoesFirst() throws {
        try Repository.create(at: path).close()
        let strays = [PackName.newPath(1), PackName.newPath(9)].map { path.appending($0).string }
        for stray in strays {
            try Data(count: 5000).write(to: URL(fileURLWithPath: stray))
        }
        // The first changing call after their removal fails.
        let files = FaultyFiles(PosixFiles(root: path))
        files.failCalls(from: strays.count, .everything)
        #expect(throws: RepositoryError.self) {
            try Repository.open(at: path, .writing, files: files)
        }
        for stray in strays { #expect(!FileManager.default.fileExists(atPath: stray)) }
    }

    // MARK: - Damage

    @Test func everyFlippedByteOfARewrittenPackIsFound() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (_, checkpoints) = try fill(repository, count: 12, pages: 60, seed: 907)
        try repository.forget(checkpoints.prefix(6).map(\.id))
        let plan = try repository.planPrune(PruneOptions.everything)
        try plan.execute()
        try repository.close()
        let pack = try #require(plan.packs.first { $0.fate == .rewritten }).number
        let name = PackName.path(pack)
        let url = URL(fileURLWithPath: path.appending(name).string)
        let whole = try Data(contentsOf: url)
        var random = TestSeed.generator(908)
        let offsets = (0..<whole.count).filter {
            $0 < 200 || $0 > whole.count - 600 || Int.random(in: 0..<2000, using: &random) == 0
        }
        for offset in offsets {
            var damaged = whole
            damaged[offset] ^= UInt8.random(in: 1...255, using: &random)
            try damaged.write(to: url)
            let report = try Repository.open(at: path, .reading).verify()
            #expect(report.corruptions.contains { $0.file == name }, "byte \(offset)")
        }
        try whole.write(to: url)
        #expect(try Repository.open(at: path, .reading).verify().isClean)
        // A missing pack that no record says was removed is reported.
        try FileManager.default.removeItem(at: url)
        let report = try Repository.open(at: path, .reading).verify()
        #expect(report.corruptions.contains { $0.file == name && $0.object == "pack" })
    }

    @Test func aPlanIsGoodOnce() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (copies, checkpoints) = try fill(repository, count: 10, seed: 909)
        try repository.forget([checkpoints[0].id])
        let plan = try repository.planPrune(PruneOptions.everything)
        try plan.execute()
        #expect(throws: RepositoryError.self) { try plan.execute() }
        try repository.close()
        let reader = try open(.reading)
        #expect(throws: RepositoryError.self) { try reader.planPrune().execute() }
        try check(reader, copies.filter { $0.key != checkpoints[0].id })
    }

    // MARK: - Leases

    @Test func whatIsLeasedStays() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (copies, checkpoints) = try fill(repository, count: 20, seed: 910)
        let other = try Repository.open(at: path, .reading)
        do {
            let reader = try VolumeReader(checkpoints[5], from: other)
            try repository.forget(checkpoints.prefix(19).map(\.id))
            try repository.planPrune(PruneOptions.everything).execute()
            var pages: [UInt64: [UInt8]] = [:]
            try reader.read { runs, bytes in
                var offset = 0
                for frame in runs.flatMap(\.frames) {
                    pages[frame] = Array(bytes[offset..<offset + Page.byteCount])
                    offset += Page.byteCount
                }
            }
            #expect(pages == copies[checkpoints[5].id])
        }
        #expect(throws: CheckpointError.self) { try VolumeReader(checkpoints[5], from: other) }
        let rest = try repository.planPrune(PruneOptions.everything)
        #expect(rest.deadPageCount > 0)
        try rest.execute()
        try check(repository, copies.filter { $0.key == checkpoints[19].id })
        let leases = path.appending("leases").string
        #expect(try FileManager.default.contentsOfDirectory(atPath: leases).isEmpty)
    }

    @Test func leasesOfTheDeadAreRemoved() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let (_, checkpoints) = try fill(repository, count: 3, seed: 911)
        let lease = try repository.lease([checkpoints[0].id])
        let leases = path.appending("leases").string
        let name = try #require(
            try FileManager.default.contentsOfDirectory(atPath: leases).first)
        try FileManager.default.copyItem(atPath: "\(leases)/\(name)", toPath: "\(leases)/dead")
        try Data().write(to: URL(fileURLWithPath: "\(leases)/dead.new"))
        _ = try repository.planPrune()
        #expect(try FileManager.default.contentsOfDirectory(atPath: leases) == [name])
        withExtendedLifetime(lease) {}
    }

    // MARK: - Everything at once

    /// Captures, forgetting, prunes and readers run concurrently, for some seconds in the long
    /// form.
    @Test func capturesAndReadersGoOn() throws {
        try Repository.create(at: path).close()
        let repository = try open()
        let copies = Mutex<Copies>([:])
        let isOver = Atomic(false)
        let restored = Atomic(0)
        let pruned = Atomic(0)
        Threads.concurrently(4) { thread in
            do {
                switch thread {
                case 0:
                    try self.captureAll(repository, copies)
                    isOver.store(true, ordering: .relaxed)
                case 1:
                    var random = TestSeed.generator(920)
                    while !isOver.load(ordering: .relaxed) {
                        let noted = copies.withLock { Set($0.keys) }
                        let live = try repository.checkpoints().filter { noted.contains($0.id) }
                            .shuffled(using: &random)
                        let gone = live.prefix(live.count / 2).map(\.id)
                        copies.withLock { copies in for id in gone { copies[id] = nil } }
                        try repository.forget(gone)
                        let options = PruneOptions.everything
                        try repository.planPrune(options).execute()
                        pruned.add(1, ordering: .relaxed)
                    }
                default:
                    let reader = try Repository.open(at: self.path, .reading)
                    while !isOver.load(ordering: .relaxed) {
                        guard try self.readOne(reader, copies) else { continue }
                        let count = restored.add(1, ordering: .relaxed).newValue
                        guard count % 50 == 0 else { continue }
                        let report = try reader.verify()
                        #expect(report.isClean, "\(report.corruptions)")
                    }
                }
            } catch {
                isOver.store(true, ordering: .relaxed)
                Issue.record("thread \(thread): \(error)")
            }
        }
        print(
            "restored \(restored.load(ordering: .relaxed)) times beside "
                + "\(pruned.load(ordering: .relaxed)) prunes")
        try check(repository, copies.withLock { $0 })
    }

    private func captureAll(_ repository: Repository, _ copies: borrowing Mutex<Copies>) throws {
        var random = TestSeed.generator(921)
        let pages = 150
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: pages)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "live")
        // Few distinct contents, so that pages die and are needed again.
        let contents = (0..<400).map { _ in PruneTests.noise(&random) }
        for _ in 0..<(TestSeed.isLong ? 4000 : 250) {
            for _ in 0..<30 {
                let place = UInt64.random(in: 0..<UInt64(pages), using: &random)
                guard let page = contents.randomElement(using: &random) else { return }
                guest.with { $0.write(place, page) }
            }
            let pending = try session.begin()
            let now = guest.with { $0.pages }
            let id = try pending.wait().checkpoint.id
            copies.withLock { $0[id] = now }
        }
        session.close()
    }

    /// - Returns: true if one was restored whole.
    private func readOne(
        _ reader: Repository, _ copies: borrowing Mutex<Copies>
    ) throws -> Bool {
        guard let (id, pages) = copies.withLock({ $0.randomElement() }) else { return false }
        let guest = SimulatedGuest(layout: .empty)
        do {
            let checkpoint = try reader.checkpoint(id: id)
            _ = try reader.restore(checkpoint, into: guest)
        } catch {
            // It may just have been forgotten; it is never incomplete.
            let isGone = copies.withLock { $0[id] == nil }
            #expect(isGone, "\(error)")
            return false
        }
        #expect(guest.with { $0.pages } == pages)
        return true
    }
}
