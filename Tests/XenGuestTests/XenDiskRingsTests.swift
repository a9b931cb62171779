import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import Synchronization
import Testing
import VarveTestSupport

@testable import Varve
@testable import XenGuest

/// The rings of a domain's disks, forged.
@Suite struct XenDiskRingsTests {
    private let xen = FakeXen()
    private let number = Scene.number

    init() {
        var domain = FakeDomain(number, frames: [0..<40], seed: 1)
        domain.grants = (0..<32).map { GrantEntry(flags: 1, frame: UInt64($0)) }
        xen.add(domain)
    }

    private var host: XenHost { XenHost(calls: xen) }

    /// Adds a disk whose front end is described by these nodes.
    private func add(_ name: String, _ nodes: [String: String], backend: UInt32 = 0) {
        xen.with { state in
            state.addDisk(number, name, params: "/dev/vg/\(name)", backend: backend)
            let device = 51_712 + (Int(name.utf8.last ?? 0) - 97) * 16
            let front = "/local/domain/\(number)/device/vbd/\(device)"
            state.store = state.store.filter {
                !$0.key.hasPrefix("\(front)/ring") && !$0.key.hasPrefix("\(front)/queue")
                    && !$0.key.hasPrefix("\(front)/multi")
            }
            for (key, value) in nodes { state.store["\(front)/\(key)"] = value }
        }
    }

    /// What a ring's first page says.
    private func ring(_ frame: UInt64, made: UInt32, answered: UInt32) {
        var page = [UInt8](repeating: 0xee, count: Page.byteCount)
        for (offset, value) in [(0, made), (8, answered)] {
            withUnsafeBytes(of: value.littleEndian) {
                page.replaceSubrange(offset..<offset + 4, with: $0)
            }
        }
        xen.with(number) { $0.overwrite(frame, page) }
    }

    private func requests(_ name: String) throws -> Int? {
        let rings = try host.diskRings(of: host.domain(named: "\(number)"))
        return rings.names.firstIndex(of: name).flatMap { rings.requestsUnderWay(ofDisk: $0) }
    }

    @Test func requestsWithoutAnAnswerAreCounted() throws {
        add("xvda", ["ring-ref": "5"])
        for (made, answered, expected) in [
            (0, 0, 0), (16, 0, 16), (40, 8, 32), (7, 7, 0), (3, .max - 4, 8),
        ] as [(UInt32, UInt32, Int)] {
            ring(5, made: made, answered: answered)
            #expect(try requests("xvda") == expected)
        }
        #expect(xen.complaints(number) == [])
    }

    /// A difference that no ring can have is not believed.
    @Test func anAbsurdRingIsUnknown() throws {
        for (order, room) in [(nil, 32), ("0", 32), ("2", 128), ("4", 512)] as [(String?, UInt32)] {
            add(
                "xvda",
                order.map { ["ring-page-order": $0, "ring-ref0": "5"] } ?? ["ring-ref": "5"])
            for (made, answered) in [
                (room + 1, 0), (0, 1), (.max, 0), (1 << 31, 0), (5, 6),
            ] as [(UInt32, UInt32)] {
                ring(5, made: made, answered: answered)
                #expect(try requests("xvda") == nil, "\(made) and \(answered)")
            }
            ring(5, made: 9 &+ room, answered: 9)
            #expect(try requests("xvda") == Int(room))
        }
    }

    @Test func eachQueueHasARing() throws {
        let nodes = [
            "multi-queue-num-queues": "3", "queue-0/ring-ref": "5", "queue-1/ring-ref": "6",
            "queue-2/ring-ref": "8",
        ]
        add("xvda", nodes)
        add("xvdb", ["ring-ref": "9"])
        ring(5, made: 4, answered: 1)
        ring(6, made: 10, answered: 10)
        ring(8, made: 20, answered: 0)
        ring(9, made: 1, answered: 0)
        #expect(try requests("xvda") == 23)
        #expect(try requests("xvdb") == 1)
        // One of them is absurd: so is the sum.
        ring(6, made: 10, answered: 11)
        #expect(try requests("xvda") == nil)
        #expect(try requests("xvdb") == 1)
    }

    /// The guest writes all of the nodes and the grant table.
    @Test func whatTheGuestSaysOfItsRingsIsNotTrusted() throws {
        ring(5, made: 1, answered: 0)
        let orders = ["5", "63", "4294967296", "-1", "", "x", "99999999999999999999"]
        let counts = ["0", "257", "4294967295", "-3", "", "2 "]
        let grants = ["32", "4294967295", "4294967296", "-1", "", "5x", "0x5"]
        var forged: [[String: String]] = [[:]]
        forged += orders.map { ["ring-ref": "5", "ring-ref0": "5", "ring-page-order": $0] }
        forged += counts.map {
            ["ring-ref": "5", "queue-0/ring-ref": "5", "multi-queue-num-queues": $0]
        }
        forged += grants.map { ["ring-ref": $0] }
        // Of two queues, one has no ring.
        forged.append(["queue-0/ring-ref": "5", "multi-queue-num-queues": "2"])
        forged.append(["ring-ref": "5", "ring-page-order": "1"])
        for nodes in forged {
            add("xvda", nodes)
            #expect(try requests("xvda") == nil, "\(nodes)")
        }
        add("xvda", ["ring-ref": "5"])
        #expect(try requests("xvda") == 1)
        // No grant, one of another kind, and a frame that does not exist.
        let entries = [
            GrantEntry(flags: 0, frame: 5), GrantEntry(flags: 2, frame: 5),
            GrantEntry(flags: 3, frame: 5), GrantEntry(flags: 1, frame: 4000),
            GrantEntry(flags: 1, frame: .max),
        ]
        for entry in entries {
            xen.with(number) { $0.grants[5] = entry }
            #expect(try requests("xvda") == nil, "\(entry)")
        }
        xen.with(number) { $0.grants = [] }
        #expect(try requests("xvda") == nil)
        #expect(xen.complaints(number) == [])
    }

    @Test func disksOfOthersAndThoseThatAreOnlyReadAreNotLookedAt() throws {
        ring(5, made: 1, answered: 0)
        add("xvda", ["ring-ref": "5"], backend: 2)
        #expect(try requests("xvda") == nil)
        add("xvdb", ["ring-ref": "5"])
        xen.with { state in
            state.addDisk(number, "xvdb", params: "/dev/vg/b", mode: "r")
        }
        #expect(try requests("xvdb") == nil)
    }

    @Test func aFailedCallIsReportedAndLeavesNoMapping() throws {
        add("xvda", ["ring-ref": "5"])
        add("xvdb", ["ring-ref": "6"])
        let domain = try host.domain(named: "\(number)")
        let before = xen.callCount
        _ = try host.diskRings(of: domain)
        for count in 0..<xen.callCount - before {
            xen.failCall(count, errno: 5)
            #expect(failure { _ = try host.diskRings(of: domain) }?.errno == 5)
        }
        #expect(xen.complaints(number) == [])
    }

    // MARK: - In a capture

    private func disks(
        _ group: SimulatedDisks, settleTime: Duration = .zero
    ) throws -> any DiskGroup {
        var options = XenCheckpointer.Options()
        options.disks.selection = .group(group)
        options.disks.settleTime = settleTime
        let finder = XenDiskFinder(host: host, options: options.disks)
        let domain = try host.domain(named: "\(number)")
        return try #require(try finder.choose(for: domain, &options))
    }

    @Test func theNumberAtTheCutIsInTheCheckpoint() throws {
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let group = SimulatedDisks()
        let disk = [UInt8](repeating: 1, count: 8192)
        group.set(["xvda": disk, "xvdb": disk, "xvdz": disk])
        add("xvda", ["ring-ref": "5"])
        add("xvdb", ["ring-ref": "6"])
        ring(5, made: 12, answered: 3)
        ring(6, made: 12, answered: 13)
        let session = try CaptureSession(
            of: try XenDomain(number, calls: xen, options: .init()), in: repository, lineage: "web",
            disks: try disks(group))
        // What is answered during the cut was under way at its beginning.
        group.inCut { [self] in
            #expect(xen.with { $0.mappings.count } >= 2, "mapped before the pause")
            ring(5, made: 12, answered: 12)
        }
        let first = try session.capture().checkpoint
        #expect(first.disks.map(\.requestsUnderWay) == [9, nil, nil])
        group.inCut(nil)
        #expect(try session.capture().checkpoint.disks.map(\.requestsUnderWay) == [0, nil, nil])
        #expect(xen.complaints(number) == [], "the cut stands, and no ring is mapped")
        // The same if the cut fails, and if there is nothing to read.
        group.fail(.cut)
        #expect(throws: CheckpointError.self) { _ = try session.capture() }
        group.set([:])
        _ = try session.capture()
        #expect(xen.complaints(number) == [])
        session.close()
        #expect(xen.complaints(number, isLogOn: false) == [] && group.standing.isEmpty)
    }

    @Test func aCutWaitsUntilRingsAreEmpty() throws {
        let group = SimulatedDisks()
        group.set(["xvda": [UInt8](repeating: 1, count: 8192)])
        add("xvda", ["ring-ref": "5"])
        add("xvdb", ["ring-ref": "6"])
        // One that is unknown is not waited for.
        ring(6, made: 0, answered: 1)
        ring(5, made: 5, answered: 0)
        func cut(_ settleTime: Duration) throws -> (Int?, Duration) {
            let cut = try disks(group, settleTime: settleTime).prepareCut()
            defer { try? cut.release() }
            let times = try cut.cut(within: .seconds(2))
            return (cut.requestsUnderWay(ofDisk: 0), times.drain)
        }
        // At the bound it goes on.
        let (left, waited) = try cut(.milliseconds(30))
        #expect(left == 5 && waited >= .milliseconds(30))
        // By default it does not wait.
        #expect(try cut(.zero).0 == 5)
        let isDone = DispatchSemaphore(value: 0)
        Thread.detachNewThread { [self] in
            for answered in 1...5 as ClosedRange<UInt32> {
                usleep(4000)
                ring(5, made: 5, answered: answered)
            }
            isDone.signal()
        }
        let (none, drain) = try cut(.seconds(60))
        isDone.wait()
        #expect(none == 0 && drain < .seconds(60))
        #expect(xen.complaints(number) == [])
    }
}
