import CheckpointEngine
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import Testing
import VarveTestSupport

/// Defects that crash points found, each as a test.
@Suite struct CrashRegressionTests {
    private static let smallPack = (256 + 80) << 10

    /// The disk is full just after a new pack was created, and then the writer closes: the index
    /// had read up to the empty pack, and the next writer began with pack 1 again.
    @Test func aNewPackNeverTakesTheNumberOfAnother() throws {
        for call in 0..<24 {
            let world = CrashWorld(packByteCountMax: CrashRegressionTests.smallPack, seed: 1)
            try world.create()
            world.write("web", 0..<20, value: 1)
            try world.capture()
            world.write("web", 0..<30, value: 2)
            world.disk.failCall(call, SimulatedDisk.Failure(errno: 28, leavesPart: true))
            try world.capture()
            world.disk.failCall(nil)
            world.close()
            try world.capture()
            let repository = try world.repository()
            for acknowledged in world.acknowledged {
                let restored = SimulatedGuest(layout: .empty)
                let checkpoint = try repository.checkpoint(id: acknowledged.id)
                _ = try repository.restore(checkpoint, into: restored)
                let pages = world.copies[acknowledged.id]?.pages
                #expect(restored.with { $0.pages } == pages, "call \(call)")
            }
        }
    }

    /// A transaction is abandoned after it sealed a pack, and then the writer closes: the next
    /// writer gave its number to another transaction, and a rebuilt index took the page groups of
    /// both for one transaction's.
    @Test func aTransactionNeverTakesTheNumberOfAnother() throws {
        for call in 0..<24 {
            let world = CrashWorld(packByteCountMax: CrashRegressionTests.smallPack, seed: 1)
            try world.create()
            world.write("web", 0..<10, value: 1)
            try world.capture()
            world.write("web", 0..<40, value: 2)
            world.disk.failCall(call, SimulatedDisk.Failure(errno: 5, leavesPart: false))
            try world.capture()
            world.disk.failCall(nil)
            world.close()
            world.write("web", 0..<40, value: 3)
            try world.capture()
            world.close()
            world.deleteIndex()
            let repository = try world.repository()
            #expect(try repository.verify().isClean, "call \(call)")
        }
    }

    /// Sealing is one write: a power cut may keep the footer and lose the pack's index before it.
    @Test func aTornSealIsNoSeal() throws {
        let scenario = try #require(CrashScenario.all.first { $0.name == "seal" })
        let recording = try CrashRecording(scenario)
        let calls = recording.points.compactMap(\.call)
        var seals = 0
        for (position, point) in recording.points.dropFirst().enumerated() {
            guard point.call?.kind == .write, position + 2 < calls.count,
                calls[position + 1].kind == .sync, calls[position + 2].kind == .create
            else { continue }
            seals += 1
            for seed in 0..<(TestSeed.isLong ? 500 : 20) {
                try recording.crash(
                    at: point, isPowerCut: true, fate: .deleted, seed: UInt64(seed))
            }
        }
        #expect(seals > 1)
    }

    /// A page of the index that was lost in a power cut has its earlier contents, and might say
    /// that the index was closed.
    @Test func anIndexThatWasOpenInAPowerCutIsNotTrusted() throws {
        let scenario = try #require(CrashScenario.all.first { $0.name == "close" })
        let recording = try CrashRecording(scenario)
        for point in recording.points {
            for seed in 0..<(TestSeed.isLong ? 100 : 2) {
                try recording.crash(at: point, isPowerCut: true, fate: .torn, seed: UInt64(seed))
            }
        }
    }

    /// A lock that cannot be opened for a reason other than a read-only medium.
    @Test func aReaderOnAFullDiskIsToldSo() throws {
        let world = CrashWorld(packByteCountMax: CrashRegressionTests.smallPack, seed: 1)
        try world.create()
        try world.capture()
        world.kill()
        world.deleteIndex()
        world.disk.failCall(2, SimulatedDisk.Failure(errno: 28, leavesPart: false))
        let error = #expect(throws: RepositoryError.self) {
            try Repository.open(at: world.disk.indexRoot, .reading, files: world.disk.boot())
        }
        #expect(error?.code == .noSpace)
    }
}
