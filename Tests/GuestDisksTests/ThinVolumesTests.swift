import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct ThinVolumesTests {
    let home = TemporaryDirectory()
    let pool = SimulatedPool()
    private var volumes: ThinVolumes { ThinVolumes(in: "/dev/mapper/pool", calls: pool) }

    private func group() throws -> ThinDisks {
        try ThinDisks(
            volumes: ["a", "b"].map {
                .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)"))
            },
            stateDirectory: home.path.appending("state"), guardCommand: [], calls: pool)
    }

    private func code(_ body: () throws -> Void) -> GuestError.Code? {
        let error = #expect(throws: GuestError.self) { try body() }
        return error?.code
    }

    private var devices: Set<String> { pool.state.withLock { Set($0.devices.keys) } }

    @Test func aNewVolumeReadsAsZerosAndIsRemoved() throws {
        let path = try volumes.createVolume(named: "new-xvda", byteCount: 1 << 20)
        #expect(path == "/dev/mapper/new-xvda")
        #expect(pool.contents("new-xvda") == [UInt8](repeating: 0, count: 1 << 20))
        #expect(pool.snapshotIDs.count == 1 && pool.snapshotIDs.allSatisfy { $0 >= 1 << 23 })
        #expect(code { _ = try volumes.createVolume(named: "new-xvda", byteCount: 512) } == .busy)
        let byName = ThinVolumes(in: "pool", calls: pool)
        try byName.removeVolume(named: "new-xvda")
        try byName.removeVolume(named: "new-xvda")
        #expect(pool.isClean && devices == ["pool", "a", "b"])
    }

    @Test(arguments: [
        "", ".", "..", "a/b", "a b", "ä", "varve-cut-1", String(repeating: "x", count: 128),
    ])
    func otherNamesAreRefused(_ name: String) {
        #expect(
            code { _ = try volumes.createVolume(named: name, byteCount: 512) } == .invalidOption)
        #expect(pool.isClean)
    }

    @Test func otherSizesAreRefused() {
        for byteCount in [0, 1, 513] as [UInt64] {
            #expect(
                code { _ = try volumes.createVolume(named: "x", byteCount: byteCount) }
                    == .invalidOption)
        }
        #expect(pool.isClean)
    }

    @Test func anIDOfAnotherIsNotTouched() throws {
        let count = Mutex(0)
        pool.state.withLock {
            $0.fault = { name, _ in
                guard name == "create_thin" else { return .none }
                return count.withLock { count in
                    count += 1
                    return count < 4 ? .before(EEXIST) : .none
                }
            }
        }
        _ = try volumes.createVolume(named: "new", byteCount: 1 << 20)
        #expect(pool.state.withLock { $0.calls.filter { $0 == "delete" } }.isEmpty)
        pool.state.withLock {
            $0.fault = { name, _ in name == "create_thin" ? .before(EEXIST) : .none }
        }
        #expect(
            code { _ = try volumes.createVolume(named: "more", byteCount: 1 << 20) }
                == .unavailable)
        #expect(pool.state.withLock { $0.calls.filter { $0 == "delete" } }.isEmpty)
        pool.state.withLock { $0.fault = nil }
        try volumes.removeVolume(named: "new")
        #expect(pool.isClean)
    }

    @Test func whatWasNotMadeHereIsNotRemoved() throws {
        let cut = try group().prepareCut()
        _ = try cut.cut(within: .seconds(10))
        _ = try contents(of: cut)
        let other = SimulatedPool()
        _ = try ThinVolumes(in: "pool", calls: other).createVolume(named: "x", byteCount: 512)
        pool.state.withLock { state in
            // A volume of another pool.
            var device = other.state.withLock { $0.devices["x"] }
            device?.targets[0].parameters = "253:77 9000000"
            state.devices["foreign"] = device
            state.devices["foreign"]?.mapped.number.minor = 99
        }
        let before = (devices, pool.snapshotIDs)
        for name in ["a", "pool", "foreign", try #require(pool.cutDevices.first)] {
            #expect(code { try volumes.removeVolume(named: name) } == .unsupported, "\(name)")
        }
        #expect((devices, pool.snapshotIDs) == before)
        try cut.release()
    }

    @Test func aPoolThatIsNoneIsRefused() {
        for name in ["/dev/mapper/a", "a", "/dev/sda", "/dev/plain", "missing"] {
            let error = #expect(throws: GuestError.self) {
                try ThinVolumes(in: FilePath(name), calls: pool)
                    .createVolume(named: "x", byteCount: 512)
            }
            #expect(error?.message.contains("-tpool") == true, "\(name)")
        }
        pool.state.withLock { $0.usage = "120/1000 990/1000" }
        #expect(code { _ = try volumes.createVolume(named: "x", byteCount: 512) } == .unavailable)
        #expect(pool.isClean)
    }

    @Test func aSnapshotIsWhatTheCutIs() throws {
        let group = try group()
        pool.write("a", 3, 7)
        let cut = try group.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        let old = try contents(of: cut)
        pool.write("a", 3, 8)
        let name = cut.name
        func make(_ disk: String, _ cut: String) throws {
            _ = try volumes.createSnapshot(named: "new", ofDisk: disk, inCut: cut, of: group)
        }
        // Also while the cut is read.
        try make("xvda", name)
        #expect(pool.contents("new") == old)
        pool.write("new", 3, 9)
        #expect(try contents(of: cut) == old && pool.violations.isEmpty)
        #expect(code { try make("xvda", name) } == .busy)
        try volumes.removeVolume(named: "new")
        #expect(code { try make("xvdx", name) } == .gone)
        #expect(code { try make("xvda", "cut-0000") } == .gone)
        #expect(code { try make("xvda", "../\(name)") } == .gone)
        pool.state.withLock { $0.devices["pool"]?.mapped.uuid = "another" }
        #expect(code { try make("xvda", name) } == .unsupported)
        pool.state.withLock { $0.devices["pool"]?.mapped.uuid = "LVM-pool" }
        try cut.release()
        #expect(code { try make("xvda", name) } == .gone)
        #expect(pool.isClean)
    }

    /// Where nothing was written, such a volume shows another device.
    @Test func aSnapshotKeepsTheExternalOrigin() throws {
        pool.state.withLock { $0.devices["a"]?.targets[0].parameters = "253:1 1 /dev/base" }
        let group = try group()
        let cut = try group.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        _ = try cut.storedBlocks(ofDisk: 0)
        _ = try volumes.createSnapshot(named: "new", ofDisk: "xvda", inCut: cut.name, of: group)
        let table = pool.state.withLock { $0.devices["new"]?.targets[0].parameters }
        #expect(table?.hasSuffix(" /dev/base") == true)
        try volumes.removeVolume(named: "new")
        try cut.release()
    }

    /// Whichever call fails, before or after it has had its effect: no ID and no device is left.
    @Test(arguments: [false, true]) func aCallThatFailsLeavesNothing(_ isAfter: Bool) throws {
        func failing(_ number: Int, _ body: () throws -> Void) -> Bool {
            pool.state.withLock { state in
                let first = state.callCount
                state.fault = { _, count in
                    count == first + number ? (isAfter ? .after(EIO) : .before(EIO)) : .none
                }
            }
            defer { pool.state.withLock { $0.fault = nil } }
            do {
                try body()
                return false
            } catch {
                return true
            }
        }
        let group = try group()
        let cut = try group.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        _ = try cut.storedBlocks(ofDisk: 0)
        let (ids, names) = (pool.snapshotIDs, devices)
        var failureCount = 0
        for number in 0..<20 {
            for isSnapshot in [false, true] {
                let hasFailed = failing(number) {
                    if isSnapshot {
                        _ = try volumes.createSnapshot(
                            named: "new", ofDisk: "xvda", inCut: cut.name, of: group)
                    } else {
                        _ = try volumes.createVolume(named: "new", byteCount: 1 << 20)
                    }
                }
                if hasFailed {
                    failureCount += 1
                    #expect(pool.snapshotIDs == ids && devices == names, "call \(number)")
                } else {
                    #expect(pool.snapshotIDs.count == ids.count + 1)
                    try volumes.removeVolume(named: "new")
                }
            }
            _ = try volumes.createVolume(named: "new", byteCount: 1 << 20)
            if failing(number, { try volumes.removeVolume(named: "new") }) {
                try volumes.removeVolume(named: "new")
            }
            #expect(pool.snapshotIDs == ids && devices == names, "removal, call \(number)")
        }
        #expect(failureCount > 10)
        try cut.release()
        #expect(pool.isClean && pool.violations.isEmpty)
    }
}
