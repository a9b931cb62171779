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

/// The file `head`: packs that are lost together with the index are detected, with no false alarms.
@Suite struct StoreHeadTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private func files(_ path: FilePath) -> PosixFiles { PosixFiles(root: path) }

    private func url(_ path: FilePath, _ name: String) -> URL {
        URL(fileURLWithPath: path.appending(name).string)
    }

    private func remove(_ names: String..., at path: FilePath) throws {
        for name in names { try FileManager.default.removeItem(at: url(path, name)) }
    }

    private func open(_ path: FilePath) throws -> Repository {
        try Repository.open(
            at: path, .writing, files: files(path), packByteCountMax: RepairWorld.packByteCount)
    }

    /// The corruption for which a writer refuses to open.
    private func refusal(_ path: FilePath) -> Corruption? {
        do {
            try open(path).close()
            return nil
        } catch let error as RepositoryError {
            return error.corruption
        } catch {
            return nil
        }
    }

    private func place(_ path: FilePath) throws -> RecordLocation? {
        let id = try Repository.readEnvelope(path, files(path))
        return try StoreHead(files(path), id).confirmed
    }

    // MARK: - The file

    @Test func itIsTheseBytes() throws {
        let store = files(directory.path)
        try store.createDirectory(StoreDirectory.packs)
        _ = try store.open(PackName.path(7), .create)
        let repository = RepositoryID(words: (0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09))
        var head = try StoreHead(store, repository)
        #expect(head.confirmed == nil && head.problem == nil)
        try head.raise(to: RecordLocation(pack: 7, offset: 0x1234), store, repository)
        // A lower value: nothing is written.
        try head.raise(to: RecordLocation(pack: 6, offset: 0x9999), store, repository)
        try head.raise(to: RecordLocation(pack: 7, offset: 0x5678), store, repository)
        let bytes = [UInt8](try Data(contentsOf: url(directory.path, StoreHead.path)))
        #expect(
            hex(bytes) == "5641525645484544" + "02000000" + "40000000"
                + "0102030405060708090a0b0c0d0e0f10" + "78560000" + "07000000"
                + String(repeating: "0", count: 40) + "8a2a6833")
        let read = try StoreHead(store, repository)
        #expect(read.confirmed == RecordLocation(pack: 7, offset: 0x5678))
    }

    private func hex(_ bytes: [UInt8]) -> String {
        bytes.map { byte in
            let digits = String(byte, radix: 16)
            return digits.count == 1 ? "0" + digits : digits
        }.joined()
    }

    /// Any changed bit makes it damaged, and so does a head of another repository.
    @Test func whatIsNotWholeSaysNothing() throws {
        var random = TestSeed.generator(0x51)
        let store = files(directory.path)
        try store.createDirectory(StoreDirectory.packs)
        _ = try store.open(PackName.path(9), .create)
        let repository = RepositoryID.random()
        let head = url(directory.path, StoreHead.path)
        var written = try StoreHead(store, repository)
        let place = RecordLocation(pack: 9, offset: 99)
        try written.raise(to: place, store, repository)
        let whole = try Data(contentsOf: head)
        var wrong = [Data(), Data(count: 64), Data("notes".utf8), whole.dropLast()]
        for byte in 0..<Envelope.byteCount {
            wrong.append(whole)
            wrong[wrong.count - 1][byte] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        }
        for (pack, offset) in [(0, 99), (9, 64), (9, 0), (UInt32.max, 99)] as [(UInt32, UInt32)] {
            let number = UInt64(pack) << 32 | UInt64(offset)
            wrong.append(
                Data(Envelope(kind: .head, repository: repository, number: number).encoded))
        }
        wrong.append(Data(Envelope(kind: .pack, repository: repository, number: 9).encoded))
        for bytes in wrong {
            try bytes.write(to: head)
            var read = try StoreHead(store, repository)
            #expect(read.confirmed == nil && read.problem != nil, "\([UInt8](bytes))")
            try read.raise(to: place, store, repository)
            #expect(try Data(contentsOf: head) == whole)
        }
        #expect(try StoreHead(store, .random()).problem != nil)
        // Nor is a head valid with a pack number that no loss explains.
        try written.raise(to: RecordLocation(pack: 2_000_000, offset: 99), store, repository)
        #expect(try StoreHead(store, repository).problem?.reason.contains("2000000") == true)
    }

    // MARK: - Losses

    @Test(arguments: [1, 2, 3])
    func lostNewestPacksAreMissedWithoutTheIndex(count: Int) throws {
        var random = TestSeed.generator(0x52 &+ UInt64(count))
        let world = try RepairWorld(seed: random.next())
        let packs = try PackName.list(files(world.path))
        let lost = Array(packs.suffix(count))
        try #require(packs.count > count && lost.last == lost[0] + UInt32(count) - 1)
        #expect(try place(world.path)?.pack == lost.last)
        try remove("index", at: world.path)
        for pack in lost { try remove(PackName.path(pack), at: world.path) }
        let names = lost.map { PackName.path($0) }
        #expect(refusal(world.path)?.file == names[0])
        let reading = try Repository.open(at: world.path, .reading)
        let found = try reading.verify().findings.map(\.corruption.file)
        #expect(Set(names).isSubset(of: found), "seed \(TestSeed.value): \(found)")
        // The rest can be read without a repair.
        #expect(try !reading.checkpoints { _ in }.isEmpty)
        let plan = try world.plan()
        #expect(plan.missingPacks == lost.map { $0...$0 })
        #expect(try plan.execute().report.isClean)
        #expect(refusal(world.path) == nil)
        // Pack numbers are never reused.
        let repository = try open(world.path)
        let last = try #require(try world.capture(repository, "after", 1, nil).last)
        #expect(last.location.pack > lost[count - 1])
        try repository.close()
        #expect(try Repository.open(at: world.path, .reading).verify().isClean)
    }

    /// The newest pack, truncated anywhere within what was there when the writer closed.
    @Test func aCutNewestPackIsMissedWithoutTheIndex() throws {
        var random = TestSeed.generator(0x56)
        let world = try RepairWorld(seed: random.next())
        let newest = try #require(try PackName.list(files(world.path)).last)
        let pack = url(world.path, PackName.path(newest))
        let whole = try Data(contentsOf: pack)
        try remove("index", at: world.path)
        #expect(refusal(world.path) == nil)
        let end = try #require(try place(world.path)).offset
        // Opening it has rewritten the end, and nothing else.
        #expect(try Data(contentsOf: pack) == whole && Int(end) == whole.count)
        let ends = try recordEnds(whole).dropLast()
        let cuts = ends.suffix(3) + [64, whole.count - 1]
        for cut in cuts {
            try whole.prefix(cut).write(to: pack)
            try? remove("index", at: world.path)
            #expect(refusal(world.path)?.file == PackName.path(newest), "cut at \(cut)")
            let report = try Repository.open(at: world.path, .reading).verify()
            #expect(!report.isClean, "cut at \(cut)")
        }
        let plan = try world.plan()
        #expect(!plan.isEmpty)
        #expect(try plan.execute().report.isClean)
        #expect(refusal(world.path) == nil)
    }

    private func recordEnds(_ pack: Data) throws -> [Int] {
        var ends: [Int] = []
        var offset = Envelope.byteCount
        while offset + RecordHeader.byteCount <= pack.count {
            let header = try pack[offset...].withUnsafeBytes { try RecordHeader($0) }
            offset += header.recordByteCount
            ends.append(offset)
        }
        return ends
    }

    @Test func aDamagedHeadIsNamedAndMadeAgain() throws {
        var random = TestSeed.generator(0x57)
        let world = try RepairWorld(seed: random.next())
        let before = try place(world.path)
        func damage() throws {
            try Data(count: 4160).write(to: url(world.path, StoreHead.path))
            let report = try Repository.open(at: world.path, .reading).verify()
            #expect(report.findings.map(\.corruption.file) == [StoreHead.path])
            #expect(report.affectedCheckpoints.isEmpty)
        }
        try damage()
        let plan = try world.plan()
        #expect(plan.findings.map(\.corruption.file) == [StoreHead.path])
        #expect(plan.findings.map(\.remedy) == [.rebuilt] && plan.losses.isEmpty)
        #expect(try plan.execute().report.isClean)
        #expect(try place(world.path) == before)
        // Or by any writer.
        try damage()
        try open(world.path).close()
        #expect(try place(world.path) == before)
        // A missing head is not damage: it may never have existed.
        try remove(StoreHead.path, at: world.path)
        #expect(try Repository.open(at: world.path, .reading).verify().isClean)
        try open(world.path).close()
        #expect(try place(world.path) == before)
    }

    // MARK: - Failures

    /// Each call fails in turn while packs are filled: with the packs alone, everything that was
    /// acknowledged is there, and nothing that never existed is reported missing.
    @Test func noFailureMakesItSayTooMuch() throws {
        var call = 0
        var failed = 0
        while true {
            let path = directory.path.appending("store-\(call)")
            let faulty = FaultyFiles(files(path))
            let repository = try Repository.create(
                at: path, files: faulty, packByteCountMax: 300 << 10)
            faulty.failCall(call, errno: 5)
            let before = faulty.callCount
            var stored: [CheckpointID] = []
            var random = TestSeed.generator(0x58)
            for _ in 0..<4 {
                let guest = SimulatedGuest(
                    layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 12)]))
                for frame in 0..<12 as Range<UInt64> {
                    let page = (0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) }
                    guest.with { $0.write(frame, page) }
                }
                guard
                    let session = try? CaptureSession(of: guest, in: repository, lineage: "web"),
                    let capture = try? session.capture()
                else { continue }
                stored.append(capture.checkpoint.id)
            }
            let isClosed = (try? repository.close()) != nil
            let wasReached = faulty.callCount - before > call
            if wasReached, stored.count < 4 || !isClosed { failed += 1 }
            try remove("index", at: path)
            let reopened = try Repository.open(
                at: path, .writing, files: files(path), packByteCountMax: 300 << 10)
            let known = Set(try reopened.checkpoints().map(\.id))
            #expect(Set(stored).isSubset(of: known), "call \(call)")
            #expect(try reopened.verify().isClean, "call \(call)")
            try reopened.close()
            try remove("store-\(call)", at: directory.path)
            guard wasReached else { break }
            call += 1
        }
        #expect(call > 30 && failed > 10, "\(call) calls, \(failed) of them failed something")
    }
}
