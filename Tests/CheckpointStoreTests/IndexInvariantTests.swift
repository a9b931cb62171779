import CheckpointEngine
import CheckpointFormat
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import LMDBTables
@testable import PackStore

/// Each relation between the index's tables is missed once it is broken, and only that one.
@Suite struct IndexInvariantTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    /// Four checkpoints in a row, each with a page of its own and one that all share; the second
    /// one was forgotten.
    private func make() throws -> (Repository, [Checkpoint]) {
        let repository = try Repository.create(at: path)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 16))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        var checkpoints: [Checkpoint] = []
        for number in 1...4 as ClosedRange<UInt64> {
            guest.with {
                $0.write(number, IndexInvariantTests.page(UInt8(number)))
                $0.write(8 + number, IndexInvariantTests.page(99))
            }
            let label = try Label("label\(number)")
            checkpoints.append(try session.capture(label: label).checkpoint)
        }
        session.close()
        try repository.forget([checkpoints[1].id])
        return (repository, checkpoints)
    }

    private static func page(_ byte: UInt8) -> [UInt8] {
        [UInt8](repeating: byte, count: Page.byteCount)
    }

    private static func digest(_ byte: UInt8) -> PageDigest {
        page(byte).withUnsafeBytes { PageDigest(hashing: $0) }
    }

    @Test(arguments: 1...12)
    func eachIsMissed(number: Int) throws {
        let (repository, checkpoints) = try make()
        #expect(try repository.brokenIndexRelations() == [])
        try repository.withIndex { index in
            try index.environment.write { (txn) throws(IndexError) in
                try IndexInvariantTests.break(number, checkpoints.map(\.id), index.tables, txn)
            }
        }
        let broken = try repository.brokenIndexRelations()
        #expect(broken.map(\.number) == [number], "\(broken)")
    }

    /// Verification finds what no checkpoint is affected by, and the index is rebuilt.
    @Test(arguments: [7, 9, 12])
    func verificationMissesIt(number: Int) throws {
        let (repository, checkpoints) = try make()
        try repository.withIndex { index in
            try index.environment.write { (txn) throws(IndexError) in
                try IndexInvariantTests.break(number, checkpoints.map(\.id), index.tables, txn)
            }
        }
        #expect(try repository.verify(.structure).isClean)
        let error = #expect(throws: RepositoryError.self) { try repository.verify() }
        #expect(error?.code == .indexDamaged)
        #expect(
            error?.message.contains("relation \(number)") ?? false, "\(String(describing: error))")
        try? repository.close()
        let again = try Repository.open(at: path, .writing)
        #expect(try again.brokenIndexRelations() == [])
        #expect(try again.verify().isClean)
        #expect(try again.checkpoints().count == 3)
    }

    /// Breaks one relation.
    private static func `break`(
        _ number: Int, _ ids: [CheckpointID], _ tables: IndexTables, _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        let unknown = CheckpointID(digest(200))
        let (shared, own) = (digest(99), digest(1))
        func entry(
            _ position: Int, _ txn: borrowing LMDBTxn
        ) throws(IndexError) -> CatalogEntry {
            guard let entry = try tables.checkpoints.value(for: ids[position], in: txn) else {
                throw .damagedValue("test")
            }
            return entry
        }
        func count(_ digest: PageDigest, _ txn: borrowing LMDBTxn) throws(IndexError) -> UInt32 {
            try tables.references.value(for: digest, in: txn)?.count ?? 0
        }
        switch number {
        case 1: try tables.order.remove(CatalogOrder(try entry(3, txn).order), in: txn)
        case 2:
            guard let key = try entry(3, txn).lineageKey else { return }
            try tables.lineages.put(ids[0], for: key, in: txn)
        case 3:
            guard let key = NameKey("other", 1) else { return }
            try tables.labels.put(ids[0], for: key, in: txn)
        case 4: try tables.transactions.put(unknown, for: TransactionNumber(999), in: txn)
        case 5:
            let leaving = PendingPrune.isLeaving(transaction: 1, mapAncestor: nil)
            try tables.pending.put(leaving, for: ids[0], in: txn)
        case 6: try tables.pending.remove(ids[1], in: txn)
        case 7: try tables.successors.insert(CheckpointPair(ids[0], unknown), in: txn)
        case 8: try tables.builders.insert(CheckpointPair(ids[0], unknown), in: txn)
        case 9: try tables.unreferenced.insert(unknown.digest, in: txn)
        case 10:
            try tables.pages.remove(shared, in: txn)
            let more = try count(shared, txn) + 1
            try tables.references.put(ReferenceCount(more), for: shared, in: txn)
        case 11: try tables.state.pruned.set(PrunedRecord([1]), in: txn)
        default:
            let more = try count(own, txn) + 1
            try tables.references.put(ReferenceCount(more), for: own, in: txn)
        }
    }
}
