import Foundation
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// Notices that a group gave.
final class Notices: Sendable {
    private let list = Mutex<[String]>([])
    var all: [String] { list.withLock { $0 } }
    /// All since the last call.
    func take() -> [String] {
        list.withLock { list in
            defer { list = [] }
            return list
        }
    }
    var options: ThinDisks.Options {
        var options = ThinDisks.Options()
        options.metadataWait = .milliseconds(50)
        options.notice = { [self] text in list.withLock { $0.append(text) } }
        return options
    }
}

@Suite struct ThinDisksTests {
    let home = TemporaryDirectory()
    let pool = SimulatedPool()
    let notices = Notices()

    private func group(
        _ names: [String] = ["a", "b"], guarded: Bool = false, _ options: ThinDisks.Options? = nil
    ) throws -> ThinDisks {
        try ThinDisks(
            volumes: names.map { .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)")) },
            stateDirectory: home.path.appending("state"),
            guardCommand: guarded ? ["/bin/sh", "-c", "printf +; cat >>\(log)"] : [],
            options: options ?? notices.options, calls: pool)
    }

    private var log: FilePath { home.path.appending("guard.log") }

    /// What the guard was told, once it has ended.
    private func guardLines() throws -> [String] {
        try String(decoding: bytes(of: log), as: UTF8.self).split(separator: "\n")
            .map { String($0) }
    }

    @Test func aCutIsOfOneInstantAndKeepsIt() throws {
        let disks = try group()
        #expect(
            try disks.disks() == [
                GuestDisk(name: "xvda", byteCount: 1 << 20),
                GuestDisk(name: "xvdb", byteCount: 1 << 20),
            ])
        for block in [0, 3, 4, 15] as [UInt64] { pool.write("a", block, 1) }
        pool.write("b", 7, 2)
        pool.begin("a", 9, 3)
        let cut = try disks.prepareCut()
        pool.begin("b", 8, 4)
        let times = try cut.cut(within: .seconds(10))
        #expect(times.drain > .zero && times.cut > .zero)
        let old = (pool.contents("a"), pool.contents("b"))
        #expect(old.0[9 * 65536] == 3 && old.1[8 * 65536] == 4, "what was under way is in it")
        pool.write("a", 3, 9)
        pool.write("b", 0, 9)
        #expect(try contents(of: cut, 0) == old.0)
        #expect(try contents(of: cut, 1) == old.1)
        #expect(
            try cut.storedBlocks(ofDisk: 0) == [0..<16, 48..<80, 144..<160, 240..<256])
        #expect(try cut.storedBlocks(ofDisk: 1) == [112..<144])

        let later = try disks.prepareCut()
        _ = try later.cut(within: .seconds(10))
        #expect(try later.changedBlocks(ofDisk: 0, since: cut) == [48..<64])
        #expect(try later.changedBlocks(ofDisk: 1, since: cut) == [0..<16])
        #expect(pool.snapshotIDs.count == 4 && pool.snapshotIDs.allSatisfy { $0 >= 1 << 23 })
        try cut.release()
        #expect(try contents(of: later, 0) == pool.contents("a"))
        try later.release()
        #expect(pool.isClean && pool.violations.isEmpty && pool.suspendedNames.isEmpty)
        #expect(try disks.leftovers().isEmpty)
        #expect(notices.all.isEmpty)
    }

    /// The pause makes no other calls than these.
    @Test func thePauseMakesThreeCallsADisk() throws {
        let cut = try group().prepareCut()
        let before = pool.state.withLock { $0.calls.count }
        _ = try cut.cut(within: .seconds(10))
        let calls = pool.state.withLock { Array($0.calls[before...]) }
        #expect(
            calls == ["suspend", "suspend", "create_snap", "create_snap", "resume", "resume"])
        try cut.release()
    }

    // MARK: - Refusals

    private func refusal(
        _ names: [String] = ["a"], _ options: ThinDisks.Options? = nil
    ) throws -> String {
        let disks = try group(names, options)
        let error = #expect(throws: GuestError.self) { try disks.prepareCut() }
        #expect(pool.isClean)
        #expect(try disks.leftovers().isEmpty)
        return error?.message ?? ""
    }

    @Test func poolsAreRefusedWithTheRemedy() throws {
        func with(_ usage: String = "1/9 1/9", _ status: String = "rw x y - 1") throws -> String {
            pool.state.withLock {
                $0.usage = usage
                $0.status = status
            }
            return try refusal()
        }
        #expect(try with("100/1000 851/1000").contains("85.1 % of its data, above"))
        #expect(try with("751/1000 1/1000").contains("75.1 % of its metadata, above"))
        #expect(try with("1/1000 1/1000", "out_of_data_space x y -").contains("lvextend"))
        #expect(try with("1000/1000 1/1000", "ro x y -").contains("no metadata space left"))
        #expect(try with("1/1000 1/1000", "ro x y -").contains("mode 'ro'"))
        #expect(try with("1/1000 1/1000", "rw x y needs_check").contains("thin_check"))
        #expect(try with("1/0 1/1000").contains("has failed"))
        #expect(try with("", "Fail").contains("has failed (Fail)"))
        pool.state.withLock { $0.usage = "100/1000 600/1000" }
        pool.state.withLock { $0.status = "rw" }
        var options = ThinDisks.Options()
        options.dataFillLimit = 59
        #expect(try refusal(["a"], options).contains("60.0 %"))
        #expect(
            try group().poolFills() == [
                ThinPoolFill(pool: "pool", dataPercent: 60, metadataPercent: 10)
            ])
        options.dataFillLimit = 101
        #expect(throws: GuestError.self) { try group(["a"], options) }
    }

    @Test func volumesAreRefusedWithTheRemedy() throws {
        #expect(try refusal(["plain"]).contains("no block device; put the guest's disk on a thin"))
        #expect(try refusal(["sda"]).contains("no device of device-mapper"))
        #expect(try refusal(["none"]).contains("fails with 2"))
        #expect(try refusal(["pool"]).contains("a device of type thin-pool"))
        #expect(try refusal(["a", "a"]).contains("two disks are named"))
        pool.state.withLock { $0.devices["c"] = $0.devices["a"] }
        #expect(try refusal(["a", "c"]).contains("are one volume"))
        pool.state.withLock {
            $0.devices["c"] = nil
            $0.devices["a"]?.mapped.isSuspended = true
        }
        let disks = try group()
        let error = #expect(throws: GuestError.self) { try disks.prepareCut() }
        #expect(error?.message.contains("dmsetup resume a") == true)
        #expect(pool.suspendedNames.contains("a"), "who suspended it resumes it")
    }

    @Test func namesOfDeviceMapperAreTakenToo() throws {
        let disks = try ThinDisks(
            volumes: [.init(name: "x", device: "a")], stateDirectory: home.path.appending("state"),
            guardCommand: [], calls: pool)
        #expect(try disks.disks().map(\.byteCount) == [1 << 20])
        disks.volumes = [.init(name: "x", device: "none")]
        #expect(throws: GuestError.self) { try disks.disks() }
    }

    // MARK: - Failures

    /// One capture after an earlier one, to the release of both; returns the error.
    private func capture(_ disks: ThinDisks) -> GuestError? {
        var cuts: [any DiskCut] = []
        var failure: GuestError?
        do {
            for byte in 1...2 as ClosedRange<UInt8> {
                pool.write("a", UInt64(byte), byte)
                let cut = try disks.prepareCut()
                cuts.append(cut)
                _ = try cut.cut(within: .seconds(10))
                #expect(pool.suspendedNames.isEmpty)
                _ = try contents(of: cut, 0)
                _ = try cut.storedBlocks(ofDisk: 1)
            }
            _ = try cuts[1].changedBlocks(ofDisk: 0, since: cuts[0])
        } catch {
            failure = error as? GuestError
        }
        for cut in cuts {
            do { try cut.release() } catch { failure = failure ?? error }
        }
        return failure
    }

    /// Each call fails once, before it does anything or after it has done it.
    @Test(arguments: [false, true])
    func afterAFailedCallNothingIsLeftWithoutAnEntry(_ happens: Bool) throws {
        let disks = try group(guarded: true)
        #expect(capture(disks) == nil)
        let count = pool.state.withLock { $0.callCount }
        #expect(count > 60)
        for number in 0..<count {
            let name = Mutex("")
            pool.state.withLock {
                $0.callCount = 0
                $0.fault = { call, index in
                    guard index == number else { return .none }
                    name.withLock { $0 = call }
                    return happens ? .after(EIO) : .before(EIO)
                }
            }
            let error = capture(disks)
            pool.state.withLock { $0.fault = nil }
            let failed = name.withLock { $0 }
            #expect(pool.suspendedNames.isEmpty, "\(number): \(failed)")
            // What was asked of the tools is then unknown, and the resume is tried again.
            if ["prepare", "suspend", "create_snap", "create"].contains(failed) && number < 20 {
                #expect(error != nil, "\(number): \(failed)")
            }
            let isNoted = try !disks.leftovers().isEmpty
            #expect(pool.isClean || isNoted, "\(number): \(failed)")
            try disks.dropLeftovers()
            #expect(pool.isClean, "\(number): \(failed)")
            #expect(try disks.leftovers().isEmpty)
            #expect(pool.violations.isEmpty)
        }
    }

    /// The process dies at each call: the guard resumes, and the next start drops the rest.
    @Test func afterADeathTheGuardResumesAndTheRestIsDropped() throws {
        #expect(capture(try group()) == nil)
        let count = pool.state.withLock { $0.callCount }
        var suspensions = 0
        for number in 0..<count {
            try? FileManager.default.removeItem(atPath: log.string)
            pool.state.withLock {
                $0.callCount = 0
                $0.fault = { _, index in index >= number ? .before(EIO) : .none }
            }
            do {
                let disks = try group(guarded: true)
                _ = capture(disks)
            }
            pool.state.withLock { $0.fault = nil }
            // The log is whole once the guard has ended, which the group's end waits for.
            let lines = FileManager.default.fileExists(atPath: log.string) ? try guardLines() : []
            if !pool.suspendedNames.isEmpty { suspensions += 1 }
            var rest = lines[...]
            _ = try DiskGuard.run(calls: pool, ready: {}, next: { rest.popFirst() })
            #expect(pool.suspendedNames.isEmpty, "\(number)")
            let next = try group()
            try next.dropLeftovers()
            #expect(pool.isClean, "\(number)")
            #expect(try next.leftovers().isEmpty)
        }
        #expect(suspensions >= 4)
    }

    /// Without a guard the next start resumes what was left suspended.
    @Test func aSuspendedVolumeIsResumedAtTheNextStart() throws {
        do {
            let disks = try group()
            let cut = try disks.prepareCut()
            pool.state.withLock {
                $0.fault = { name, _ in name == "resume" ? .before(EIO) : .none }
            }
            let error = #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
            #expect(error?.message.contains("cannot be resumed") == true)
        }
        pool.state.withLock { $0.fault = nil }
        #expect(pool.suspendedNames.sorted() == ["a", "b"])
        let dropped = try group().dropLeftovers()
        #expect(pool.isClean)
        #expect(dropped.first?.parts.contains("a was suspended") == true)
    }

    @Test func theGuardIsToldBeforeAndAfter() throws {
        do {
            let disks = try group(guarded: true)
            for _ in 0..<2 {
                let cut = try disks.prepareCut()
                _ = try cut.cut(within: .seconds(10))
                try cut.release()
            }
        }
        #expect(try guardLines() == ["S 253:4 253:5", "R", "S 253:4 253:5", "R"])
    }

    @Test func withoutItsGuardNothingIsSuspended() throws {
        let disks = try ThinDisks(
            volumes: [.init(name: "x", device: "a")], stateDirectory: home.path.appending("state"),
            guardCommand: ["/bin/sh", "-c", "printf +; exec 0<&-; sleep 0.2"], calls: pool)
        let cut = try disks.prepareCut()
        usleep(500_000)
        let error = #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
        #expect(error?.message.contains("the guard has died") == true)
        #expect(pool.suspendedNames.isEmpty)
        try cut.release()
        let mute = try ThinDisks(
            volumes: [.init(name: "x", device: "a")], stateDirectory: home.path.appending("state"),
            guardCommand: ["/bin/true"], calls: pool)
        let refusal = #expect(throws: GuestError.self) { try mute.prepareCut() }
        #expect(refusal?.message.contains("did not start") == true)
        #expect(try mute.leftovers().isEmpty)
    }

    /// What the kernel says is in the sentence, with the disk and where to look.
    @Test(arguments: [
        ("suspend", "disk xvda, a, could not be suspended ("),
        ("create_snap", "the pool pool made no snapshot of disk xvda ("),
    ])
    func aCutThatFailsNamesTheDiskAndTheRemedy(_ call: String, _ text: String) throws {
        let disks = try group()
        let cut = try disks.prepareCut()
        pool.state.withLock { $0.fault = { name, _ in name == call ? .before(EIO) : .none } }
        let failure = #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
        let error = try #require(failure)
        #expect(error.message.hasPrefix(text))
        #expect(error.message.contains("); look at ") && error.message.contains("(dmesg)"))
        #expect(error.code == .callFailed && error.errno == EIO)
        #expect(pool.suspendedNames.isEmpty)
        pool.state.withLock { $0.fault = nil }
        try cut.release()
        #expect(pool.isClean)
    }

    /// This file of the kernel's fails where nothing is mapped.
    @Test func aReadThatFailsNamesTheDiskAndTheRemedy() throws {
        let reader = try BlockReader(
            "/proc/self/mem", of: GuestDisk(name: "xvda", byteCount: 1 << 20))
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Page.byteCount, alignment: Page.byteCount)
        defer { buffer.deallocate() }
        let failure = #expect(throws: GuestError.self) { try reader.read(0..<1, into: buffer) }
        let error = try #require(failure)
        #expect(error.message.hasPrefix("the cut of disk xvda cannot be read: pread failed"))
        #expect(error.message.contains("look at the kernel's log (dmesg)"))
        #expect(error.errno == EIO)
    }

    @Test func aCutThatTakesTooLongIsGivenUp() throws {
        let disks = try group()
        pool.state.withLock { $0.suspendDelay = 5000 }
        let cut = try disks.prepareCut()
        let error = #expect(throws: GuestError.self) { try cut.cut(within: .milliseconds(1)) }
        #expect(error?.code == .timedOut && pool.suspendedNames.isEmpty)
        #expect(throws: GuestError.self) { try cut.storedBlocks(ofDisk: 0) }
        try cut.release()
        #expect(pool.isClean)
    }

    /// An ID that is another's is neither used nor deleted.
    @Test func othersSnapshotsAreLeftAlone() throws {
        let disks = try group(["a"])
        let cut = try disks.prepareCut()
        let entry = try #require(try names(in: home.path.appending("state")).first)
        let path = home.path.appending("state").appending(entry)
        let record = try #require(
            JournalRecord(text: String(decoding: bytes(of: path), as: UTF8.self)))
        let ids = try #require(ThinPart.parts(record)?.first).ids
        #expect(ids.count == 2)
        pool.state.withLock { $0.thin[ids[0]] = [5: 0] }
        _ = try cut.cut(within: .seconds(10))
        #expect(pool.snapshotIDs == Set(ids))
        #expect(try contents(of: cut) == pool.contents("a"))
        try cut.release()
        #expect(pool.snapshotIDs == [ids[0]])
    }
}
