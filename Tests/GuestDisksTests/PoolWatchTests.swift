import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// What is looked at between two cuts.
@Suite struct PoolWatchTests {
    let home = TemporaryDirectory()
    let pool = SimulatedPool()
    let notices = Notices()

    private func group(_ options: ThinDisks.Options? = nil) throws -> ThinDisks {
        var own = notices.options
        // A test looks itself.
        own.watchInterval = .zero
        return try ThinDisks(
            volumes: ["a", "b"].map { .init(name: "xvd\($0)", device: FilePath($0)) },
            stateDirectory: home.path.appending("state"), guardCommand: [],
            options: options ?? own, calls: pool)
    }

    private func use(_ usage: String, _ status: String = "rw x y - 1") {
        pool.state.withLock {
            $0.usage = usage
            $0.status = status
        }
    }

    /// The notices since the last call.
    private func said() -> [String] { notices.take() }

    private func makeCut(_ disks: ThinDisks) throws -> any DiskCut {
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        _ = try cut.storedBlocks(ofDisk: 0)
        return cut
    }

    @Test func eachCrossingIsSaidOnce() throws {
        let disks = try group()
        try disks.prepareCut().release()
        func look(_ usage: String, _ status: String = "rw x y - 1") -> [String] {
            use(usage, status)
            disks.poolWatch.look()
            return said()
        }
        #expect(look("100/1000 750/1000") == [])
        let warned = look("100/1000 751/1000")
        #expect(warned.count == 1 && warned.first?.contains("75.1 % of its data") == true)
        #expect(warned.first?.contains("lvextend") == true)
        #expect(look("100/1000 800/1000") == [])
        let metadata = look("660/1000 800/1000")
        #expect(metadata.count == 1 && metadata.first?.contains("66.0 % of its metadata") == true)
        #expect(metadata.first?.contains("--poolmetadatasize") == true)
        let full = look("660/1000 860/1000")
        #expect(full.count == 1 && full.first?.contains("above the limit of 85.0 %") == true)
        #expect(look("660/1000 900/1000") == [])
        // A little below is no other crossing.
        #expect(look("660/1000 845/1000") == [])
        #expect(look("660/1000 855/1000") == [])
        #expect(look("660/1000 700/1000") == [])
        #expect(look("660/1000 760/1000").count == 1)
        #expect(look("660/1000 860/1000").count == 1)
        // Both levels at once are one sentence.
        #expect(look("100/1000 100/1000") == [])
        #expect(look("800/1000 100/1000").count == 1)
        // A pool that failed.
        #expect(look("", "Fail").first?.contains("has failed") == true)
        #expect(look("", "Fail") == [])
        #expect(look("100/1000 100/1000") == [])
        #expect(look("", "Fail").count == 1)
        #expect(pool.isClean)
    }

    @Test func aLimitBelowTheWarningIsTheWarning() throws {
        var options = notices.options
        options.watchInterval = .zero
        options.dataFillLimit = 50
        let disks = try group(options)
        try disks.prepareCut().release()
        use("1/1000 490/1000")
        disks.poolWatch.look()
        #expect(said() == [])
        use("1/1000 510/1000")
        disks.poolWatch.look()
        #expect(said().count == 1)
        options.dataFillWarning = 101
        #expect(throws: GuestError.self) { try group(options) }
        options.dataFillWarning = 75
        options.metadataFillWarning = -1
        #expect(throws: GuestError.self) { try group(options) }
        options.metadataFillWarning = 65
        options.watchInterval = .seconds(-1)
        #expect(throws: GuestError.self) { try group(options) }
    }

    @Test func aStandingCutIsGivenUpWhileAPoolThatIsTooFullGrows() throws {
        let disks = try group()
        let cut = try makeCut(disks)
        let thinCount = pool.state.withLock { $0.thin.count }
        use("100/1000 860/1000")
        // It is being read.
        disks.poolWatch.look()
        use("100/1000 870/1000")
        disks.poolWatch.look()
        #expect(pool.state.withLock { $0.thin.count } == thinCount)
        cut.readingEnded()
        _ = said()
        // Below the limit, and then above it: the first time, nothing is known to grow.
        use("100/1000 800/1000")
        disks.poolWatch.look()
        use("100/1000 830/1000")
        disks.poolWatch.look()
        #expect(pool.state.withLock { $0.thin.count } == thinCount)
        use("100/1000 880/1000")
        disks.poolWatch.look()
        #expect(pool.state.withLock { $0.thin.count } == thinCount - 2, "both snapshots are gone")
        #expect(said().contains { $0.contains("was given up") && $0.contains("88.0 %") })
        #expect(pool.isClean && pool.violations.isEmpty)
        #expect(try disks.leftovers().isEmpty)
        // Comparing with it is answered, and it is released as always.
        use("100/1000 500/1000")
        let next = try makeCut(disks)
        #expect(try next.changedBlocks(ofDisk: 0, since: cut) == nil)
        try cut.release()
        try next.release()
        #expect(pool.isClean && pool.violations.isEmpty)
    }

    @Test func aPoolThatDoesNotGrowKeepsTheCut() throws {
        let disks = try group()
        let cut = try makeCut(disks)
        cut.readingEnded()
        use("100/1000 860/1000")
        for _ in 0..<3 { disks.poolWatch.look() }
        use("100/1000 855/1000")
        disks.poolWatch.look()
        #expect(said().count == 1)
        use("100/1000 800/1000")
        let next = try makeCut(disks)
        #expect(try next.changedBlocks(ofDisk: 0, since: cut)?.isEmpty == true)
        try cut.release()
        try next.release()
        #expect(pool.isClean)
    }

    @Test func aCutThatCannotBeGivenUpIsReleasedLater() throws {
        let disks = try group()
        let cut = try makeCut(disks)
        cut.readingEnded()
        use("100/1000 860/1000")
        disks.poolWatch.look()
        _ = said()
        pool.state.withLock {
            $0.fault = { name, _ in name == "delete" ? .before(EBUSY) : .none }
        }
        for used in 861...863 {
            use("100/1000 \(used)/1000")
            disks.poolWatch.look()
        }
        #expect(said().filter { $0.contains("cannot be given up") }.count == 1)
        pool.state.withLock { $0.fault = nil }
        use("100/1000 864/1000")
        disks.poolWatch.look()
        #expect(said().filter { $0.contains("was given up") }.count == 1)
        #expect(pool.isClean)
        try cut.release()
    }

    @Test func aThreadLooks() throws {
        let isSaid = DispatchSemaphore(value: 0)
        var options = ThinDisks.Options()
        options.watchInterval = .milliseconds(2)
        options.notice = { text in if text.contains("76.0 %") { isSaid.signal() } }
        var disks: ThinDisks? = try group(options)
        try disks?.prepareCut().release()
        use("100/1000 760/1000")
        isSaid.wait()
        // It ends with the group, and not before.
        let calls = pool.state.withLock { $0.callCount }
        while pool.state.withLock({ $0.callCount }) == calls { usleep(1000) }
        disks = nil
        usleep(20_000)
        let last = pool.state.withLock { $0.callCount }
        usleep(50_000)
        #expect(pool.state.withLock { $0.callCount } == last)
    }

    /// In a session: what is captured after the cut was given up is whole.
    @Test func theNextCheckpointIsWhole() throws {
        let repository = try Repository.create(at: home.path.appending("store"))
        let disks = try group()
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web", disks: disks)
        pool.write("a", 3, 1)
        _ = try session.capture()
        pool.write("a", 4, 2)
        use("100/1000 860/1000")
        disks.poolWatch.look()
        use("100/1000 880/1000")
        disks.poolWatch.look()
        #expect(said().contains { $0.contains("was given up") })
        #expect(throws: CheckpointError.self, "the pool is too full") { _ = try session.capture() }
        pool.write("b", 5, 3)
        use("100/1000 500/1000")
        let next = try session.capture().checkpoint
        for (name, device) in [("xvda", "a"), ("xvdb", "b")] {
            let image = SimulatedGuest(layout: .empty)
            try repository.restore(next, volume: name, into: image)
            #expect(image.bytes(1 << 20) == pool.contents(device))
        }
        #expect(next.changedPageCount == 2 * SimulatedPool.blockPages)
        // The one after it compares with a cut again.
        pool.write("a", 4, 9)
        #expect(try session.capture().checkpoint.changedPageCount == SimulatedPool.blockPages)
        session.close()
        #expect(session.diskReleaseFailure == nil && pool.isClean && pool.violations.isEmpty)
    }
}
