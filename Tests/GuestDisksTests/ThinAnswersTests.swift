import Foundation
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// What changed, asked of the tools; and cuts that are found again.
@Suite struct ThinAnswersTests {
    let home = TemporaryDirectory()
    let pool = SimulatedPool()
    let notices = Notices()

    private func group(_ names: [String] = ["a"]) throws -> ThinDisks {
        try ThinDisks(
            volumes: names.map { .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)")) },
            stateDirectory: home.path.appending("state"), guardCommand: [],
            options: notices.options, calls: pool)
    }

    private func makeCut(_ disks: ThinDisks) throws -> any DiskCut {
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        return cut
    }

    @Test func whatToolsSayWronglyIsUnknown() throws {
        let disks = try group()
        pool.write("a", 1, 1)
        let earlier = try makeCut(disks)
        pool.write("a", 2, 2)
        let cut = try makeCut(disks)
        let whole = { (body: String) in
            "<superblock uuid=\"\" data_block_size=\"128\">\(body)</superblock>"
        }
        let answers: [(String, Int32)] = [
            ("", 0), ("", 1), ("no XML", 0), (whole(""), 0), (whole("<diff left=\"1\"/>"), 0),
            ("<superblock data_block_size=\"128\">", 0),
            (String(repeating: " ", count: 100) + "<", 0),
            ("<" + String(repeating: "a", count: 100_000), 0),
        ]
        for (text, status) in answers {
            pool.state.withLock { $0.tool = { _ in (text, status) } }
            let before = notices.all.count
            #expect(try cut.changedBlocks(ofDisk: 0, since: earlier) == nil, "\(text)")
            #expect(try cut.storedBlocks(ofDisk: 0) == [0..<256], "\(text)")
            #expect(notices.all.count == before + 2)
            #expect(!pool.holdsMetadata)
        }
        // The tools are looked for under three names.
        pool.state.withLock {
            $0.tool = { (command) throws(GuestError) in
                throw GuestError(code: .unsupported, message: command[0], errno: ENOENT)
            }
        }
        #expect(try cut.changedBlocks(ofDisk: 0, since: earlier) == nil)
        #expect(notices.all.last?.contains("install thin-provisioning-tools") == true)
        pool.state.withLock { $0.tool = nil }
        #expect(try cut.changedBlocks(ofDisk: 0, since: earlier) == [32..<48])
        for cut in [earlier, cut] { try cut.release() }
        #expect(pool.isClean)
        #expect(try disks.leftovers().isEmpty)
    }

    @Test func anothersMetadataSnapshotIsLeftAlone() throws {
        let disks = try group()
        let earlier = try makeCut(disks)
        let cut = try makeCut(disks)
        pool.state.withLock { $0.metadataSnapshot = [:] }
        #expect(try cut.changedBlocks(ofDisk: 0, since: earlier) == nil)
        #expect(notices.all.last?.contains("release_metadata_snap") == true)
        #expect(pool.holdsMetadata)
        // Another program may be faster after it was looked for.
        pool.state.withLock {
            $0.metadataSnapshot = nil
            $0.calls = []
            $0.fault = { name, _ in name == "reserve_metadata_snap" ? .before(EBUSY) : .none }
        }
        #expect(try cut.changedBlocks(ofDisk: 0, since: earlier) == nil)
        pool.state.withLock { $0.fault = nil }
        #expect(pool.state.withLock { !$0.calls.contains("release_metadata_snap") })
        pool.state.withLock { $0.metadataSnapshot = [:] }
        for cut in [earlier, cut] { try cut.release() }
        try disks.dropLeftovers()
        #expect(pool.holdsMetadata)
    }

    @Test func aMetadataSnapshotThatWasLeftIsGivenBack() throws {
        do {
            let disks = try group()
            let cut = try makeCut(disks)
            pool.state.withLock {
                $0.fault = { name, _ in name == "release_metadata_snap" ? .before(EIO) : .none }
            }
            #expect(try cut.storedBlocks(ofDisk: 0).isEmpty)
            #expect(notices.all.last?.contains("was not given back") == true)
            pool.state.withLock { $0.fault = nil }
            try cut.release()
        }
        #expect(pool.holdsMetadata)
        let disks = try group()
        #expect(
            try disks.leftovers().map(\.parts) == [["metadata snapshot of the pool pool"]])
        try disks.dropLeftovers()
        #expect(pool.isClean)
    }

    @Test func sizesAndPoolsMayChangeBetweenCuts() throws {
        let disks = try group()
        let small = try makeCut(disks)
        pool.state.withLock { $0.devices["a"]?.targets[0].length = 20 * 128 }
        pool.write("a", 2, 1)
        let large = try makeCut(disks)
        #expect(large.disks[0].byteCount == 20 * 65536)
        #expect(try large.changedBlocks(ofDisk: 0, since: small) == [32..<48, 256..<320])
        // Not a multiple of 4 KiB: the last block has changed.
        pool.state.withLock { $0.devices["a"]?.targets[0].length = 10 * 128 + 1 }
        try small.release()
        let odd = try makeCut(disks)
        #expect(try odd.changedBlocks(ofDisk: 0, since: large) == [160..<161])
        try large.release()
        // Another disk under the name of one in the earlier cut, and one that is new.
        let other = SimulatedPool()
        other.state.withLock { state in
            var device = state.devices["pool"]
            device?.mapped.name = "pool2"
            state.devices["pool"] = nil
            state.devices["pool2"] = device
        }
        let moved = try ThinDisks(
            volumes: disks.volumes + [.init(name: "new", device: "b")],
            stateDirectory: home.path.appending("state2"), guardCommand: [],
            options: notices.options, calls: other)
        let elsewhere = try makeCut(moved)
        #expect(try elsewhere.changedBlocks(ofDisk: 0, since: odd) == nil)
        #expect(try elsewhere.changedBlocks(ofDisk: 1, since: odd) == nil)
        try elsewhere.release()
        try odd.release()
    }

    @Test func anExternalOriginIsReadWhole() throws {
        pool.state.withLock { $0.devices["a"]?.targets[0].parameters += " 253:9" }
        let cut = try makeCut(try group())
        #expect(try cut.storedBlocks(ofDisk: 0) == [0..<256])
        _ = try contents(of: cut)
        let parameters = pool.state.withLock { state in
            state.devices.first { $0.key.hasPrefix("varve-cut") }?.value.targets[0].parameters
        }
        #expect(parameters?.hasSuffix(" 253:9") == true)
        try cut.release()
    }

    @Test func aStandingCutIsFoundByItsName() throws {
        pool.write("a", 1, 1)
        let old = pool.contents("a")
        var disks = try group()
        var cut: (any DiskCut)? = try makeCut(disks)
        let name = try #require(cut?.name)
        _ = try cut.map { try contents(of: $0) }
        #expect(try disks.standingCut(name) == nil, "it is owned")
        withExtendedLifetime(cut) {}
        cut = nil
        #expect(pool.cutDevices.count == 1, "as after a death")
        pool.write("a", 2, 2)

        disks = try group()
        let found = try #require(try disks.standingCut(name))
        #expect(try disks.dropLeftovers().isEmpty, "it is owned again")
        #expect(try contents(of: found) == old)
        let later = try makeCut(disks)
        #expect(try later.changedBlocks(ofDisk: 0, since: found) == [32..<48])
        try found.release()
        try later.release()
        #expect(pool.isClean)
    }

    @Test func aStandingCutThatIsGoneIsNotFound() throws {
        var disks = try group(["a", "b"])
        var cut: (any DiskCut)? = try makeCut(disks)
        let name = try #require(cut?.name)
        _ = try cut?.storedBlocks(ofDisk: 0)
        cut = nil
        disks = try group(["a", "b"])
        let ids = pool.snapshotIDs
        let kept = pool.state.withLock { $0.thin }
        pool.state.withLock { $0.thin[ids.max() ?? 0] = nil }
        #expect(try disks.standingCut(name) == nil)
        #expect(pool.cutDevices.isEmpty)
        // The pool is not active: kept until it is.
        pool.state.withLock { $0.thin = kept }
        let device = pool.state.withLock { $0.devices.removeValue(forKey: "pool") }
        #expect(try disks.standingCut(name) == nil)
        let error = #expect(throws: GuestError.self) { try disks.dropLeftovers() }
        #expect(error?.message.contains("not active") == true)
        pool.state.withLock { $0.devices["pool"] = device }
        try disks.dropLeftovers()
        #expect(pool.isClean)
        for strange in ["", "cut-", "../state", "metadata-1", "cut-/x"] {
            #expect(try disks.standingCut(strange) == nil)
        }
    }

    /// A cut of which nothing was read is not known to be whole.
    @Test func aCutThatWasNotReadDoesNotStand() throws {
        var disks = try group()
        let name = try makeCut(disks).name
        disks = try group()
        #expect(try disks.standingCut(name) == nil)
        try disks.dropLeftovers()
        #expect(pool.isClean)
    }

    /// Each kernel call of the journal and the reader fails once.
    @Test func afterAFailedKernelCallNothingIsLeftWithoutAnEntry() throws {
        let disks = try group(["a", "b"])
        pool.write("a", 1, 1)
        var number = 0
        while true {
            let calls = FailingCalls(failing: number)
            var cut: (any DiskCut)?
            do {
                cut = try disks.prepareCut()
                _ = try cut?.cut(within: .seconds(10))
                _ = try cut?.storedBlocks(ofDisk: 1)
                if let cut { _ = try contents(of: cut) }
            } catch {}
            try? cut?.release()
            calls.end()
            cut = nil
            guard let failed = calls.failed else { break }
            #expect(pool.suspendedNames.isEmpty)
            let isNoted = try !disks.leftovers().isEmpty
            #expect(pool.isClean || isNoted, "\(number): \(failed)")
            try disks.dropLeftovers()
            #expect(pool.isClean, "\(number): \(failed)")
            #expect(try names(in: home.path.appending("state")).isEmpty, "\(number): \(failed)")
            number += 1
        }
        #expect(number > 30)
    }
}
