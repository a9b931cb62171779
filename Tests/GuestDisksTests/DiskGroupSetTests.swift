import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct DiskGroupSetTests {
    let home = TemporaryDirectory()
    let pools = [SimulatedPool(), SimulatedPool()]

    private func set(_ names: [[String]] = [["a"], ["b", "c"]]) throws -> DiskGroupSet {
        DiskGroupSet(
            try zip(pools, names).enumerated().map { index, part in
                try ThinDisks(
                    volumes: zip(part.1, ["a", "b"]).map {
                        .init(name: $0, device: FilePath($1))
                    }, stateDirectory: home.path.appending("state\(index)"), guardCommand: [],
                    calls: part.0)
            })
    }

    private var areClean: Bool { pools.allSatisfy { $0.isClean && $0.violations.isEmpty } }

    @Test func groupsAreCutAsOne() throws {
        var group = try set()
        #expect(try group.disks().map(\.name) == ["a", "b", "c"])
        var cut: (any DiskCut)? = try group.prepareCut()
        let name = try #require(cut?.name)
        _ = try cut?.cut(within: .seconds(10))
        for index in 0..<3 { #expect(try cut?.storedBlocks(ofDisk: index).isEmpty == true) }
        cut = nil
        group = try set()
        #expect(try set().standingCut("") == nil)
        let found = try #require(try group.standingCut(name))
        pools[1].write("b", 3, 4)
        let later = try group.prepareCut()
        let times = try later.cut(within: .seconds(10))
        #expect(times.drain > .zero && times.cut > .zero)
        #expect(try later.changedBlocks(ofDisk: 0, since: found)?.isEmpty == true)
        #expect(try later.changedBlocks(ofDisk: 2, since: found) == [48..<64])
        #expect(try contents(of: later, 2) == pools[1].contents("b"))
        try found.release()
        #expect(try group.standingCut(name) == nil)
        try later.release()
        #expect(areClean)
    }

    @Test func eachDiskHasItsOwnRequests() throws {
        let groups = [SimulatedDisks(), SimulatedDisks()]
        let disk = [UInt8](repeating: 1, count: 512)
        groups[0].set(["a": disk, "b": disk])
        groups[1].set(["c": disk])
        groups[0].setRequestsUnderWay(["b": 16])
        groups[1].setRequestsUnderWay(["c": 3])
        let cut = try DiskGroupSet(groups).prepareCut()
        _ = try cut.cut(within: .seconds(10))
        #expect((0..<3).map { cut.requestsUnderWay(ofDisk: $0) } == [nil, 16, 3])
        try cut.release()
    }

    @Test func whatFailsInOneIsTakenBackInAll() throws {
        let group = try set()
        pools[1].state.withLock { $0.status = "ro" }
        #expect(throws: GuestError.self) { try group.prepareCut() }
        #expect(areClean)
        pools[1].state.withLock { $0.status = "rw" }
        let cut = try group.prepareCut()
        pools[1].state.withLock {
            $0.fault = { name, _ in name == "create_snap" ? .before(EIO) : .none }
        }
        #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
        #expect(pools.allSatisfy { $0.suspendedNames.isEmpty })
        pools[1].state.withLock { $0.fault = nil }
        pools[0].state.withLock {
            $0.fault = { name, _ in name == "delete" ? .before(EIO) : .none }
        }
        #expect(throws: GuestError.self) { try cut.release() }
        #expect(pools[1].isClean && !pools[0].isClean)

        let twice = try set([["a"], ["a"]])
        #expect(throws: GuestError.self) { try twice.disks() }
        #expect(throws: GuestError.self) { try twice.prepareCut() }
    }

    @Test func theTimeIsForAll() throws {
        let group = try set()
        pools[0].state.withLock { $0.suspendDelay = 20_000 }
        let cut = try group.prepareCut()
        let error = #expect(throws: GuestError.self) { try cut.cut(within: .milliseconds(10)) }
        #expect(error?.code == .timedOut)
        #expect(pools.allSatisfy { $0.suspendedNames.isEmpty })
        try cut.release()
        #expect(areClean)
    }

    @Test func namesAreTakenApart() {
        #expect(DiskCutSet.parts("3:abc1:d") == ["abc", "d"])
        #expect(DiskCutSet.parts("") == [])
        for wrong in ["x", "3:ab", ":a", "0:", "1", "1:ab", "-1:a", "99999999999999999999:a"] {
            #expect(DiskCutSet.parts(wrong) == nil, "\(wrong)")
        }
    }
}
