import CheckpointEngine
import CheckpointFormat
import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import LMDBTables
@testable import PackStore

/// Values in the index that no writer stores.
@Suite struct IndexDamageTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private func make(isRecent: Bool = false) throws -> [UInt64: [UInt8]] {
        let repository = try Repository.create(at: path)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 32)]))
        guest.with { guest in
            for frame in 0..<20 as Range<UInt64> {
                guest.write(frame, [UInt8](repeating: UInt8(frame + 1), count: Page.byteCount))
            }
        }
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        if isRecent {
            try repository.withIndex {
                $0.recent.limits = RecentLimits(entryCountMin: 1, bulkPart: 0)
            }
        }
        _ = try session.capture(label: "one")
        session.close()
        try repository.close()
        return guest.with { $0.pages }
    }

    /// Changes the value of every key of a table.
    private func spoil(_ table: Index.Table, _ value: [UInt8]) throws {
        let index = try Index.open(
            in: OpenDirectory(path.appending("index").string), .writing)
        let raw = LMDBTable<[UInt8], [UInt8]>(index.table(table))
        try index.environment.write { (txn) throws(IndexError) in
            var keys: [[UInt8]] = []
            var entries = try raw.entries(in: txn)
            while let key = try entries.nextKey() { keys.append(key) }
            for key in keys { try raw.put(value, for: key, in: txn) }
        }
    }

    private func restore() throws -> [UInt64: [UInt8]] {
        let repository = try Repository.open(at: path, .reading)
        let guest = SimulatedGuest(layout: .empty)
        _ = try repository.restore(try repository.checkpoint(named: "one"), into: guest)
        return guest.with { $0.pages }
    }

    @Test(arguments: [
        (Index.Table.pages, [1, 2, 3]),
        (.pages, [UInt8](repeating: 0, count: 14)),
        (.pages, [UInt8](repeating: 255, count: 14)),
        (.recent, [1, 2, 3]),
        (.checkpoints, [1, 2, 3]),
        (.checkpoints, []),
        (.lineages, [1]),
        (.labels, [1, 2]),
        (.order, [9]),
        (.order, [UInt8](repeating: 9, count: 32)),
    ])
    func itIsSaidOnceAndRepaired(table: Index.Table, value: [UInt8]) throws {
        let pages = try make(isRecent: table == .recent)
        try spoil(table, value)
        let error = #expect(throws: (any Error).self) {
            let repository = try Repository.open(at: path, .reading)
            _ = try repository.checkpoints()
            _ = try repository.lineages()
            _ = try repository.checkpoint(named: "one")
            _ = try restore()
        }
        let message = error.map { "\($0)" } ?? ""
        #expect(message.contains("index"), "\(message)")
        #expect(message.contains("rebuild"), "\(message)")
        #expect(try restore() == pages)
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }

    @Test(arguments: ["read", "transaction", "pruned", "version", "repository"])
    func itsStateIsRepairedByItself(key: String) throws {
        let pages = try make()
        try {
            let index = try Index.open(
                in: OpenDirectory(path.appending("index").string), .writing)
            let raw = LMDBTable<[UInt8], [UInt8]>(index.table(.state))
            try index.environment.write { (txn) throws(IndexError) in
                try raw.put([1], for: Array(key.utf8), in: txn)
            }
        }()
        #expect(try restore() == pages)
        try Repository.open(at: path, .writing).close()
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }

    /// Bytes of LMDB's meta pages from which it computes the size of its mapping.
    @Test(arguments: [0x2a, 0x2b, 0x8c, 0x8e, 0x8f], [[0], [0x1000], [0, 0x1000]])
    func aDamagedHeadIsMadeAnew(offset: Int, heads: [Int]) throws {
        let pages = try make()
        let name = path.appending("index/data.mdb").string
        let file = open(name, O_RDWR)
        for head in heads {
            for value in [0x80, 0xff, 0x7f] as [UInt8] {
                var byte = value
                #expect(pwrite(file, &byte, 1, offset + head) == 1)
                #expect(try restore() == pages)
            }
        }
        close(file)
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }

    @Test func aWriterThatMeetsItGoesOnNextTime() throws {
        let pages = try make()
        let repository = try Repository.open(at: path, .writing)
        try spoil(.checkpoints, [1])
        let error = #expect(throws: RepositoryError.self) { try repository.checkpoints() }
        #expect(error?.code == .indexDamaged)
        // Closing does not clear the condemnation.
        try? repository.close()
        #expect(try restore() == pages)
    }

    @Test func verificationTellsTheIndexFromThePacks() throws {
        let pages = try make()
        // A location in the right pack, and one in the wrong pack.
        var place = [UInt8](repeating: 0, count: 14)
        place[0] = 1
        place[4] = 112
        place[8] = 16
        place[12] = 1
        try spoil(.pages, place)
        let error = #expect(throws: RepositoryError.self) {
            try Repository.open(at: path, .reading).verify()
        }
        #expect(error?.code == .indexDamaged)
        #expect(try Repository.open(at: path, .reading).verify().isClean)
        #expect(try restore() == pages)
    }

    /// A checkpoint has a page from the page map of a forgotten one: no other map refers to it.
    @Test func verificationMissesPagesOfForgottenPageMaps() throws {
        let repository = try Repository.create(at: path)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 32)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        var checkpoints: [Checkpoint] = []
        for frame in 1...3 as ClosedRange<UInt64> {
            guest.with { $0.write(frame, [UInt8](repeating: UInt8(frame), count: Page.byteCount)) }
            checkpoints.append(try session.capture().checkpoint)
        }
        session.close()
        let (middle, last) = (checkpoints[1], checkpoints[2])
        try #require(last.mapAncestor == middle.id)
        try repository.forget([middle.id])
        #expect(try repository.verify().isClean)
        let digest = [UInt8](repeating: 2, count: Page.byteCount).withUnsafeBytes {
            PageDigest(hashing: $0)
        }
        try repository.withIndex { index in
            let isRemoved = try index.environment.write { (txn) throws(IndexError) in
                try index.tables.pages.remove(digest, in: txn)
            }
            #expect(isRemoved)
        }
        let error = #expect(throws: RepositoryError.self) { try repository.verify(.structure) }
        #expect(error?.code == .indexDamaged)
        try? repository.close()
        #expect(try Repository.open(at: path, .reading).verify().isClean)
    }
}
