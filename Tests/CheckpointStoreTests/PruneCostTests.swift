import CheckpointEngine
import CheckpointFormat
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import LMDBTables
@testable import PackStore

/// The bytes that a prune reads are proportional to what was forgotten.
@Suite struct PruneCostTests {
    private static let position = 41

    private let directory = TemporaryDirectory(inMemory: true)

    /// Takes checkpoints; the first ones are the same for any number of them.
    private func fill(
        _ name: String, count: Int
    ) throws -> (repository: Repository, files: CountingFiles, checkpoints: [Checkpoint]) {
        let path = directory.path.appending(name)
        try Repository.create(at: path).close()
        let files = CountingFiles(PosixFiles(root: path))
        let repository = try Repository.open(
            at: path, .writing, files: files, packByteCountMax: 512 << 10)
        var random = SeededGenerator(seed: 77)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 400))
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        var checkpoints: [Checkpoint] = []
        for step in 0..<count {
            for place in 0..<(step == 0 ? 400 : 20) {
                let end = place % 2 == 0 || step == 0 ? 400 : 20
                let frame = step == 0 ? place : Int.random(in: 0..<end, using: &random)
                let words = (0..<Page.byteCount / 8).map { _ in random.next() }
                guest.with { $0.write(UInt64(frame), words.withUnsafeBytes { Array($0) }) }
            }
            checkpoints.append(try session.capture().checkpoint)
        }
        session.close()
        return (repository, files, checkpoints)
    }

    @Test func itFollowsWhatWasForgotten() throws {
        let small = try fill("small", count: 60)
        let large = try fill("large", count: 600)
        var costs: [(plan: PrunePlan, read: CountingFiles.Tally)] = []
        for store in [small, large] {
            try store.repository.forget([store.checkpoints[PruneCostTests.position].id])
            let before = store.files.tally
            let plan = try store.repository.planPrune()
            try plan.execute()
            costs.append((plan, store.files.tally - before))
        }
        let (first, second) = (costs[0], costs[1])
        print(
            "\(first.plan.byteCount) bytes: \(first.read.readBytes) read; "
                + "\(second.plan.byteCount) bytes: \(second.read.readBytes) read; "
                + "\(second.plan.deadPageCount) pages died")
        #expect(second.plan.byteCount > 7 * first.plan.byteCount)
        #expect(first.plan.deadPageCount == second.plan.deadPageCount)
        #expect(first.plan.deadPageCount > 3)
        #expect(Double(second.read.readBytes) <= 1.1 * Double(first.read.readBytes))
        #expect(second.read.reads <= first.read.reads + 8)
        let looked = second.plan.preparation.assessment.assessedPacks
        #expect(looked == first.plan.preparation.assessment.assessedPacks)
        #expect(looked.count <= 2)
    }

    /// Values that no writer stores are errors for every reader.
    @Test func whatItDoesNotConcernIsNotLookedAt() throws {
        let (repository, _, checkpoints) = try fill("store", count: 120)
        try repository.forget([checkpoints[PruneCostTests.position].id])
        let plan = try repository.planPrune()
        let looked = plan.preparation.assessment.assessedPacks
        let near = Set(checkpoints[0..<70].map(\.id))
        let index = try repository.withIndex { $0 }
        var pages: [PageDigest] = []
        try index.forEachPage { digest, location in
            if !looked.contains(location.pack) { pages.append(digest) }
        }
        let far = checkpoints.map(\.id).filter { !near.contains($0) }.map(\.digest)
        try index.environment.write { (txn) throws(IndexError) in
            for (table, digests) in [
                (Index.Table.pages, pages), (.ownedFrames, far), (.checkpoints, far),
            ] {
                let raw = LMDBTable<CheckpointID, CheckpointID>(index.table(table))
                for digest in digests {
                    try raw.put(CheckpointID(digest), for: CheckpointID(digest), in: txn)
                }
            }
        }
        #expect(pages.count > 1000 && far.count == 50)
        #expect(throws: (any Error).self) { try repository.checkpoints() }
        let again = try repository.planPrune()
        #expect(again.preparation.survey.dead == plan.preparation.survey.dead)
        #expect(again.packs == plan.packs)
    }
}
