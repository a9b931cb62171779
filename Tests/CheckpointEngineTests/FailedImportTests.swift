import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// A failed import's records are removed from the packs, even if it had sealed several packs.
@Suite struct FailedImportTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    private static let packByteCountMax = (256 + 80) << 10

    private struct Failure: Error, CustomStringConvertible {
        let description = "the stream was cut"
    }

    private static var options: CaptureOptions {
        var options = CaptureOptions()
        options.workerCount = 1
        // So that most of the image is in the packs when the last read fails.
        options.poolByteCount = 2 << 20
        return options
    }

    /// 8 MiB of incompressible pages, all of them different for each seed.
    private static func image(_ seed: UInt64) -> [UInt8] {
        var random = SeededGenerator(seed: seed)
        var words: [UInt64] = []
        words.reserveCapacity(1 << 20)
        for _ in 0..<1 << 20 { words.append(random.next()) }
        return words.withUnsafeBytes { Array($0) }
    }

    private func open(
        _ files: any RepositoryFiles, _ access: Repository.Access = .writing
    ) throws -> Repository {
        try Repository.open(
            at: path, access, files: files, packByteCountMax: FailedImportTests.packByteCountMax)
    }

    private func create(_ files: any RepositoryFiles) throws -> Repository {
        try Repository.create(
            at: path, files: files, packByteCountMax: FailedImportTests.packByteCountMax)
    }

    /// Imports 8 MiB; the last read fails or succeeds.
    ///
    /// - Parameter reached: called before the read that may fail; everything before it is in the
    ///   packs.
    private func importImage(
        into repository: Repository, lineage: String = "web", seed: UInt64, fails: Bool,
        reached: () throws -> Void = {}
    ) throws -> Checkpoint {
        let image = FailedImportTests.image(seed)
        var position = 0
        return try repository.importImage(
            lineage: LineageName(lineage), options: FailedImportTests.options
        ) {
            buffer in
            if position == image.count {
                try reached()
                if fails { throw Failure() }
            }
            let count = min(buffer.count, image.count - position)
            buffer.copyBytes(from: image[position..<position + count])
            position += count
            return count
        }
    }

    @Test(arguments: [0, 1, 3]) func leavesTheStoreAsItWas(published: Int) throws {
        let files = PosixFiles(root: path)
        let repository = try create(files)
        for number in 0..<published {
            _ = try importImage(
                into: repository, lineage: "\(number)", seed: UInt64(number), fails: false)
        }
        let before = try PackBytes.all(in: path)
        for round in 0..<3 {
            var mostPacks = 0
            #expect(throws: CheckpointError.self) {
                try importImage(into: repository, seed: 100, fails: true) {
                    mostPacks = try PackBytes.all(in: path).count
                }
            }
            #expect(mostPacks > before.count + 3, "packs were sealed")
            let after = try PackBytes.all(in: path)
            #expect(after.keys.sorted() == before.keys.sorted(), "round \(round)")
            #expect(after == before, "round \(round)")
            #expect(try repository.verify().isClean)
        }
        let next = try importImage(into: repository, seed: 100, fails: false)
        try repository.close()
        let reader = try open(files, .reading)
        #expect(try reader.checkpoints().count == published + 1)
        #expect(try reader.pageMap(of: next).map.memory.root() == next.memory.root)
        #expect(try reader.verify().isClean)
    }

    /// The disk is full, or fails, at any call that writes, including calls of the cleanup.
    @Test(arguments: [28, 5] as [Int32]) func aFailedCallLeavesNothing(errno: Int32) throws {
        var random = TestSeed.generator(1010)
        let files = FaultyFiles(PosixFiles(root: path))
        let repository = try create(files)
        _ = try importImage(into: repository, lineage: "first", seed: 1, fails: false)
        let before = try PackBytes.all(in: path)
        let count = files.callCount
        #expect(throws: CheckpointError.self) {
            try importImage(into: repository, seed: 2, fails: true)
        }
        let calls = files.callCount - count
        #expect(try PackBytes.all(in: path) == before)
        var uncleared = 0
        for _ in 0..<(TestSeed.isLong ? 400 : 10) {
            files.failCall(Int.random(in: 0..<calls, using: &random), errno: errno)
            #expect(throws: CheckpointError.self) {
                try importImage(into: repository, seed: 2, fails: true)
            }
            files.failCall(nil, errno: 0)
            // If a call of the cleanup itself failed, the next transaction finishes it.
            if try PackBytes.all(in: path) != before { uncleared += 1 }
            try repository.begin().abandon()
            #expect(try PackBytes.all(in: path) == before)
        }
        #expect(try repository.verify().isClean)
        print("\(calls) calls, cleared up later \(uncleared) times, seed \(TestSeed.value)")
    }

    /// Records that another transaction published, or is about to publish, are kept.
    @Test func takesNothingOfAnother() throws {
        let files = PosixFiles(root: path)
        let repository = try create(files)
        var expected: [CheckpointID] = []
        let other = try repository.begin()
        #expect(throws: CheckpointError.self) {
            try importImage(into: repository, seed: 1, fails: true) {
                // Between records of the failing one.
                let taken = try importImage(
                    into: repository, lineage: "other", seed: 2, fails: false)
                expected.append(taken.id)
            }
        }
        #expect(throws: CheckpointError.self) {
            try importImage(into: repository, seed: 3, fails: true)
        }
        let filled = try PackBytes.all(in: path).count
        other.abandon()
        #expect(
            try PackBytes.all(in: path).count < filled,
            "the last one takes back what nobody needs")
        expected.append(try importImage(into: repository, seed: 4, fails: false).id)
        #expect(try repository.verify().isClean)
        try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        #expect(try repository.verify().isClean)
        try repository.close()
        try files.remove("index/data.mdb")
        let reader = try open(files, .reading)
        #expect(try reader.checkpoints().map(\.id) == expected)
        #expect(try reader.verify().isClean)
    }

    /// A prune that was planned while packs of a failing import existed.
    @Test func aPruneThatWasPlannedBeforeTakesNothingElse() throws {
        let files = PosixFiles(root: path)
        let repository = try create(files)
        let first = try importImage(into: repository, lineage: "old", seed: 1, fails: false)
        _ = try importImage(into: repository, lineage: "kept", seed: 2, fails: false)
        try repository.forget([first.id])
        var plan: PrunePlan?
        #expect(throws: CheckpointError.self) {
            try importImage(into: repository, seed: 3, fails: true) {
                plan = try repository.planPrune(PruneOptions(unusedPercentMax: 0))
            }
        }
        let taken = try importImage(into: repository, seed: 4, fails: false)
        try plan?.execute()
        #expect(try repository.pageMap(of: taken).map.memory.root() == taken.memory.root)
        #expect(try repository.verify().isClean)
        #expect(try repository.checkpoints().count == 2)
    }

    /// After a writer has closed, its open transactions must not change the packs.
    @Test func aClosedWriterTakesNothingBack() throws {
        let files = PosixFiles(root: path)
        let repository = try create(files)
        _ = try importImage(into: repository, lineage: "first", seed: 1, fails: false)
        var late: CheckpointTransaction? = try repository.begin()
        #expect(throws: CheckpointError.self) {
            try importImage(into: repository, seed: 2, fails: true)
        }
        try repository.close()
        let other = try open(files)
        let taken = try importImage(into: other, lineage: "second", seed: 3, fails: false)
        late?.abandon()
        late = nil
        #expect(try other.pageMap(of: taken).map.memory.root() == taken.memory.root)
        #expect(try other.verify().isClean)
    }
}
