import CheckpointEngine
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import LMDBTables
@testable import PackStore

/// Bit rot in LMDB's file: LMDB would follow the damaged bytes, and crash the process.
@Suite struct IndexRotTests {
    /// Errors that a reader gets.
    private struct Answers: Equatable {
        var checkpoints: [Checkpoint]
        var lineages: [String]
        var labels: [String?]
        var pages: [[UInt64: [UInt8]]]
    }

    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }
    private var file: URL {
        URL(fileURLWithPath: path.appending("index/data.mdb").string)
    }

    /// A store whose index has every structure: tables with branch pages, sorted runs on pages of
    /// their own, lists of free pages, names that moved.
    private func make() throws -> [UInt8] {
        var random = TestSeed.generator(910)
        let repository = try Repository.create(at: path)
        try repository.withIndex {
            $0.recent.limits = RecentLimits(entryCountMin: 100, bulkPart: 0)
        }
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 600))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for step in 0..<40 {
            let count = step < 3 ? 150 : 4
            for _ in 0..<count {
                let words = (0..<Page.byteCount / 8).map { $0 < 4 ? random.next() : 0 }
                let frame = UInt64.random(in: 0..<600, using: &random)
                guest.with { $0.write(frame, words.withUnsafeBytes { Array($0) }) }
            }
            _ = try session.capture(label: step % 5 == 0 ? "label" : nil)
        }
        session.close()
        try repository.forget([try repository.checkpoint(named: "web~2").id])
        try repository.close()
        return [UInt8](try Data(contentsOf: file))
    }

    private func answers() throws -> Answers {
        let repository = try Repository.open(at: path, .reading)
        let checkpoints = try repository.checkpoints()
        var pages: [[UInt64: [UInt8]]] = []
        for name in ["web", "label", "web~30"] {
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(try repository.checkpoint(named: name), into: guest)
            pages.append(guest.with { $0.pages })
        }
        return Answers(
            checkpoints: checkpoints, lineages: try repository.lineages().map(\.name.text),
            labels: try checkpoints.map { try repository.currentLabel(of: $0)?.text }, pages: pages)
    }

    /// The result of the check for the present file.
    private func check() throws {
        let descriptor = open(file.path, O_RDONLY)
        defer { close(descriptor) }
        let numbers = [0, 4096].map { head in
            var number: UInt64 = 0
            pread(descriptor, &number, 8, head + 144)
            return number
        }
        let check = LMDBFileCheck(descriptor: descriptor, pageByteCount: 4096)
        #expect(try check.check(moment: numbers.max() ?? 0) == .sound)
    }

    @Test func aSoundFileIsSound() throws {
        let whole = try make()
        try check()
        // It has pages of every type.
        var flags: Set<UInt8> = []
        for page in stride(from: 0, to: whole.count, by: 4096) { flags.insert(whole[page + 10]) }
        #expect(flags.isSuperset(of: [1, 2, 4, 8]))
    }

    /// Inputs of the fuzzer: `sound`, and others that once crashed the process.
    @Test func theCheckTellsTheCorpusApart() throws {
        let corpus = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../IndexFuzz/Corpus")
        let names = try FileManager.default.contentsOfDirectory(atPath: corpus.path)
        #expect(names.contains("sound") && names.count > 1)
        try FileManager.default.createDirectory(
            at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        for name in names {
            try Data(contentsOf: corpus.appendingPathComponent(name)).write(to: file)
            let isSound = (try? check()) != nil
            #expect(isSound == (name == "sound"), "\(name)")
        }
    }

    /// All headers of pages and offsets of nodes, and a sample of the rest.
    @Test func aByteThatRotsIsFoundBeforeLMDBFollowsIt() throws {
        let whole = try make()
        let right = try answers()
        var random = TestSeed.generator(911)
        var places = Set(stride(from: 0, to: whole.count, by: 4096).flatMap { $0..<$0 + 16 })
        places.formUnion((0..<2).flatMap { $0 * 4096..<$0 * 4096 + 152 })
        while places.count < 3000 { places.insert(Int.random(in: 0..<whole.count, using: &random)) }
        var (found, passed, asked) = (0, 0, 0)
        for place in places.sorted() {
            var damaged = whole
            damaged[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            try Data(damaged).write(to: file)
            // Opening takes long, so only a sample is opened.
            do {
                try check()
                passed += 1
                guard passed % 50 == 0 else { continue }
            } catch {
                found += 1
                guard found % 100 == 0 else { continue }
            }
            asked += 1
            #expect(try answers() == right, "byte \(place)")
        }
        // Bytes of free pages, and gaps in pages, may go undetected.
        #expect(found > 300, "\(found) of \(places.count), \(passed) passed, \(asked) asked")
    }

    /// Values of the right form: a location, a count, a key.
    @Test func aValueThatRotsIsFoundByItsChecksum() throws {
        let whole = try make()
        let right = try answers()
        var random = TestSeed.generator(912)
        // Entries of the table of pages have pack 1 after their digest.
        let places = (8192..<whole.count - 18).filter {
            whole[$0..<$0 + 4].elementsEqual([1, 0, 0, 0]) && $0 % 2 == 0
        }
        for place in places.shuffled(using: &random).prefix(12) {
            var damaged = whole
            damaged[place + 4 - 36 * Int.random(in: 0...1, using: &random)] ^= 4
            try Data(damaged).write(to: file)
            #expect(try answers() == right, "byte \(place)")
            #expect(try Repository.open(at: path, .reading).verify().isClean)
        }
    }

    @Test func aFileThatIsCutIsFound() throws {
        let whole = try make()
        let right = try answers()
        for count in stride(from: 4096, to: whole.count, by: 4096) {
            try Data(whole.prefix(count)).write(to: file)
            #expect(throws: (any Error).self) { try check() }
            if count / 4096 % 9 == 1 {
                #expect(try answers() == right, "cut to \(count)")
            }
        }
    }

    /// Pages that occur twice in the file, or in each other's place, as a disk may return them.
    @Test func pagesThatStandInForOthersAreFound() throws {
        let whole = try make()
        let right = try answers()
        var random = TestSeed.generator(913)
        let pages = whole.count / 4096
        for round in 0..<200 {
            var damaged = whole
            let (from, to) = (
                Int.random(in: 0..<pages, using: &random), Int.random(in: 2..<pages, using: &random)
            )
            damaged.replaceSubrange(
                to * 4096..<to * 4096 + 4096, with: whole[from * 4096..<from * 4096 + 4096])
            try Data(damaged).write(to: file)
            let isSound = (try? check()) != nil
            if round % (isSound ? 10 : 40) == 0 {
                #expect(try answers() == right, "page \(from) in the place of \(to)")
            }
        }
    }

    /// A reader that scans the file while a writer is active never reports it as damaged.
    @Test func aWriterThatGoesOnIsNoDamage() async throws {
        _ = try make()
        let index = try Index.open(
            in: OpenDirectory(path.appending("index").string), .writing)
        let isDone = Flag()
        let writer = Thread {
            for step in 0..<400 as Range<UInt32> {
                try? index.addCandidate(Set((1...40).map { $0 + step % 7 }))
                try? index.setPackUses(
                    [step: PackUse(byteCount: 2, unusedByteCount: 1)], settled: [], upTo: 0)
            }
            isDone.set()
        }
        writer.start()
        var rounds = 0
        while !isDone.isSet || rounds < 5 {
            let descriptor = open(file.path, O_RDONLY)
            defer { close(descriptor) }
            try index.environment.read { (txn) throws(IndexError) in
                let check = LMDBFileCheck(descriptor: descriptor, pageByteCount: 4096)
                _ = try check.check(moment: txn.moment)
            }
            rounds += 1
        }
        #expect(rounds >= 5)
    }
}

/// Set once, from any thread.
private final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    func set() { lock.withLock { value = true } }
    var isSet: Bool { lock.withLock { value } }
}
