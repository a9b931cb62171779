import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

/// Thin volumes that get the contents of a checkpoint under their guest.
@Suite struct ThinExchangeTests {
    let home = TemporaryDirectory()
    var pool = SimulatedPool()
    let notices = Notices()

    private func group() throws -> ThinDisks {
        try ThinDisks(
            volumes: ["a", "b"].map {
                .init(name: "xvd\($0)", device: FilePath("/dev/mapper/\($0)"))
            }, stateDirectory: home.path.appending("state"), guardCommand: [],
            options: notices.options, calls: pool)
    }

    private var contents: [[UInt8]] { ["a", "b"].map { pool.contents($0) } }
    private var ids: [UInt32?] { ["a", "b"].map { pool.thinID($0) } }

    private func write(_ exchange: any DiskExchange, _ disk: Int, _ block: UInt64, _ byte: UInt8)
        throws
    {
        let bytes = [UInt8](repeating: byte, count: Page.byteCount)
        try bytes.withUnsafeBytes { try exchange.write(block..<block + 1, ofDisk: disk, from: $0) }
    }

    private func changed(_ bytes: [UInt8], _ block: Int, _ byte: UInt8) -> [UInt8] {
        var bytes = bytes
        let range = block * Page.byteCount..<(block + 1) * Page.byteCount
        bytes.replaceSubrange(range, with: [UInt8](repeating: byte, count: Page.byteCount))
        return bytes
    }

    private func makeCut(_ disks: ThinDisks) throws -> any DiskCut {
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        return cut
    }

    @Test func volumesGetWhatWasWrittenBesideThem() throws {
        let disks = try group()
        for block in [0, 3, 15] as [UInt64] { pool.write("a", block, 1) }
        pool.write("b", 7, 2)
        let cut = try makeCut(disks)
        let then = contents
        pool.write("a", 3, 9)
        pool.write("b", 0, 9)
        let exchange = try disks.prepareExchange(from: cut)
        #expect(exchange.beginsWithCut)
        #expect(exchange.disks == cut.disks)
        try write(exchange, 0, 50, 5)
        try write(exchange, 1, 112, 0)
        #expect(contents[0][3 * 65536] == 9, "the guest's own is untouched")
        let standing = try exchange.finishWriting()
        let wanted = [changed(then[0], 50, 5), changed(then[1], 112, 0)]
        for index in 0..<2 {
            #expect(try GuestDisksTests.contents(of: standing, index) == wanted[index])
        }
        pool.write("a", 4, 8)
        try exchange.exchange()
        #expect(contents == wanted && pool.suspendedNames.isEmpty)
        // The guest runs, and writes.
        pool.write("b", 2, 7)
        try exchange.end()
        #expect(ids == [1, 2], "each has its own ID again")
        #expect(contents[0] == wanted[0] && contents[1][2 * 65536] == 7)
        // The next cut differs from the standing one in what the guest has written.
        let next = try makeCut(disks)
        #expect(try next.changedBlocks(ofDisk: 0, since: standing) == [])
        #expect(try next.changedBlocks(ofDisk: 1, since: standing) == [32..<48])
        for cut in [cut, standing, next] { try cut.release() }
        #expect(pool.isClean && pool.violations.isEmpty)
        #expect(try disks.leftovers().isEmpty)
    }

    @Test func anExchangeIsTakenBackInThePause() throws {
        let disks = try group()
        pool.write("a", 1, 1)
        let before = contents
        let exchange = try disks.prepareExchange(from: nil)
        #expect(!exchange.beginsWithCut)
        try write(exchange, 0, 16, 5)
        let standing = try exchange.finishWriting()
        try exchange.exchange()
        #expect(contents != before)
        try exchange.takeBack()
        #expect(contents == before && ids == [1, 2])
        try exchange.end()
        try standing.release()
        #expect(pool.isClean && pool.violations.isEmpty)
        #expect(try disks.leftovers().isEmpty)
    }

    /// Tables are loaded in the pause; if the revert then fails, the next one who resumes a volume
    /// must not put them in force.
    @Test(arguments: [false, true])
    func loadedTablesAreInForceOrCleared(isExchanged: Bool) throws {
        let disks = try group()
        pool.write("a", 1, 1)
        let before = contents
        let exchange = try disks.prepareExchange(from: nil)
        try write(exchange, 0, 16, 5)
        let standing = try exchange.finishWriting()
        try exchange.load()
        #expect(contents == before && pool.loadedNames == ["a", "b"])
        if isExchanged { try exchange.exchange() } else { try exchange.unload() }
        #expect(pool.loadedNames.isEmpty && (contents == before) != isExchanged)
        for name in ["a", "b"] { try pool.prepare(.resume(try pool.number(name))).run() }
        #expect((contents == before) != isExchanged)
        try exchange.end()
        try standing.release()
        #expect(pool.isClean && pool.violations.isEmpty)
    }

    /// The guard clears tables that a dead process has loaded, and resumes what it has suspended.
    @Test func theGuardClearsLoadedTables() throws {
        for suspended in [[], ["a"], ["a", "b"]] {
            do {
                let exchange = try group().prepareExchange(from: nil)
                _ = try exchange.finishWriting()
                try exchange.load()
                for name in suspended { try pool.prepare(.suspend(try pool.number(name))).run() }
            }
            var lines = ["S 253:4 253:5"][...]
            _ = try DiskGuard.run(calls: pool, ready: {}, next: { lines.popFirst() })
            #expect(pool.loadedNames.isEmpty && pool.suspendedNames.isEmpty, "\(suspended)")
            // A volume that is resumed while it is suspended gets what is loaded.
            for (index, name) in ["a", "b"].enumerated() {
                #expect((ids[index] == UInt32(index + 1)) != suspended.contains(name))
            }
            try group().dropLeftovers()
            #expect(ids == [1, 2] && pool.isClean, "\(suspended)")
        }
    }

    /// Guests go back and forth, and the pool holds no more than one cut of each volume.
    @Test func aGuestGoesBackAndForthWithItsVolumes() throws {
        var random = TestSeed.generator(9920)
        let directory = TemporaryDirectory()
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let disks = try group()
        func open() throws -> CaptureSession {
            try CaptureSession(of: guest, in: repository, lineage: "own", disks: disks)
        }
        var session = try open()
        var copies: [(Checkpoint, [[UInt8]], [UInt64: [UInt8]])] = []
        for round in 0..<40 {
            for _ in 0..<3 {
                let name = Bool.random(using: &random) ? "a" : "b"
                pool.write(
                    name, .random(in: 0..<16, using: &random), .random(in: 0...4, using: &random))
            }
            let page = [UInt8](repeating: .random(in: 0...9, using: &random), count: 4096)
            guest.with { $0.write(.random(in: 0..<8), page) }
            if round % 11 == 10 {
                session.close()
                session = try open()
                try disks.dropLeftovers()
            }
            if round < 4 || Int.random(in: 0..<3, using: &random) == 0 {
                let checkpoint = try session.capture().checkpoint
                copies.append((checkpoint, contents, guest.with { $0.pages }))
                let target = try SimulatedDisk.contents(of: checkpoint, in: repository)
                #expect(target == contents, "round \(round)")
            } else if let (target, volumes, pages) = copies.randomElement(using: &random) {
                try session.revert(to: target)
                #expect(contents == volumes, "round \(round)")
                #expect(guest.with { $0.pages } == pages)
                #expect(pool.snapshotIDs.count == 2, "round \(round)")
            }
            #expect(ids == [1, 2])
            #expect(session.diskReleaseFailure == nil)
        }
        session.close()
        #expect(pool.isClean && pool.violations.isEmpty)
        #expect(try disks.leftovers().isEmpty)
    }

    /// Each call fails once: both volumes are as before, or both are the checkpoint's, none is
    /// suspended, and the journal leads to what is left.
    @Test(arguments: [false, true])
    func aFailedCallExchangesAllVolumesOrNone(afterEffect: Bool) throws {
        var (failed, exchanged) = (0, 0)
        for number in 0..<300 {
            var test = ThinExchangeTests()
            test.pool = SimulatedPool()
            let pool = test.pool
            let disks = try test.group()
            pool.write("a", 1, 1)
            let start = pool.state.withLock { $0.callCount } + number
            pool.state.withLock { state in
                state.fault = { _, count in
                    count != start ? .none : afterEffect ? .after(EIO) : .before(EIO)
                }
            }
            _ = try test.exchangeOnce(disks, byte: 5, &exchanged)
            let isOver = pool.state.withLock { state in
                state.fault = nil
                return state.callCount <= start
            }
            let now = test.contents
            #expect(now[0][65536] == now[1][65536] || now[1][65536] == 0, "call \(number)")
            let isNew = now[0][65536] == 5
            #expect(isNew == (now[1][65536] == 5), "call \(number)")
            #expect(pool.suspendedNames.isEmpty, "call \(number)")
            try test.group().dropLeftovers()
            #expect(test.contents == now && test.ids == [1, 2], "call \(number)")
            #expect(pool.isClean && pool.violations.isEmpty, "call \(number): \(pool.violations)")
            if isOver { break }
            failed += 1
        }
        #expect(failed > 40 && exchanged > 5)
    }

    /// True if nothing was thrown.
    private func exchangeOnce(
        _ disks: ThinDisks, byte: UInt8, _ exchanged: inout Int
    ) throws -> Bool {
        do {
            let exchange = try disks.prepareExchange(from: nil)
            do {
                for index in 0..<2 { try write(exchange, index, 16, byte) }
                let standing = try exchange.finishWriting()
                do {
                    try exchange.exchange()
                    exchanged += 1
                } catch {
                    try? exchange.end()
                    try? standing.release()
                    throw error
                }
                try exchange.end()
                try standing.release()
            } catch {
                try? exchange.end()
                throw error
            }
            return true
        } catch is GuestError {
            return false
        }
    }

    /// The process dies at any call after it has noted what it found.
    ///
    /// Another one uses the contents that were prepared, and compares nothing.
    @Test func anotherProcessCompletesARevert() throws {
        var (deaths, news) = (0, 0)
        for number in 0..<200 {
            var test = ThinExchangeTests()
            test.pool = SimulatedPool()
            let pool = test.pool
            let repository = try Repository.create(at: test.home.path.appending("store"))
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
            func open(_ disks: ThinDisks) throws -> CaptureSession {
                try CaptureSession(of: guest, in: repository, lineage: "own", disks: disks)
            }
            pool.write("a", 1, 1)
            pool.write("b", 5, 2)
            let first = try test.group()
            let session = try open(first)
            let target = try session.capture().checkpoint
            let (volumes, pages) = (test.contents, guest.with { $0.pages })
            pool.write("a", 1, 3)
            pool.write("b", 9, 4)
            guest.with { $0.write(2, [UInt8](repeating: 7, count: 4096)) }
            _ = try session.capture()
            let start = Mutex<Int?>(nil)
            guest.with {
                $0.onNote = {
                    let count = pool.state.withLock { $0.callCount }
                    start.withLock { $0 = count + number }
                }
            }
            // From this call on everything fails, as for a process that is no more.
            pool.state.withLock { state in
                state.fault = { _, count in
                    start.withLock { $0 }.map { count >= $0 } == true ? .before(EIO) : .none
                }
            }
            _ = try? session.revert(to: target)
            let isOver = session.diskReleaseFailure == nil
            guest.with {
                $0.onNote = nil
                $0.standsStill = true
            }
            session.close()
            pool.state.withLock { $0.fault = nil }
            for name in pool.suspendedNames {
                let number = pool.state.withLock { $0.devices[name]?.mapped.number }
                _ = try number.map { try DiskGuard.resume($0, pool) }
            }
            if isOver { break }
            if test.contents == volumes { news += 1 }
            let second = try test.group()
            let other = try open(second)
            try second.dropLeftovers()
            pool.state.withLock { $0.calls = [] }
            let result = try other.revert(to: target)
            #expect(result.writtenBlockCount == 0, "call \(number)")
            let calls = pool.state.withLock { Set($0.calls) }
            #expect(calls.isDisjoint(with: ["reserve_metadata_snap", "run"]), "call \(number)")
            #expect(test.contents == volumes && test.ids == [1, 2], "call \(number)")
            #expect(guest.with { $0.pages } == pages, "call \(number)")
            #expect(other.diskReleaseFailure == nil)
            other.close()
            #expect(pool.isClean && pool.violations.isEmpty, "call \(number)")
            #expect(try second.leftovers().isEmpty, "call \(number)")
            deaths += 1
        }
        #expect(deaths > 10 && news > 3 && news < deaths)
    }

    /// The process dies before any call: the volumes are whole, and the next one cleans up.
    @Test func aDeathAtAnyCallLeavesWholeVolumes() throws {
        struct Death: Error {}
        var (deaths, news) = (0, 0)
        for number in 0..<300 {
            var test = ThinExchangeTests()
            test.pool = SimulatedPool()
            let pool = test.pool
            pool.write("a", 1, 1)
            let start = pool.state.withLock { $0.callCount } + number
            // From this call on everything fails, as for a process that is no more.
            pool.state.withLock { state in
                state.fault = { _, count in count >= start ? .before(EIO) : .none }
            }
            var exchanged = 0
            let isOver = try test.exchangeOnce(try test.group(), byte: 5, &exchanged)
            pool.state.withLock { $0.fault = nil }
            let after = try test.group()
            // The guard, and the next process.
            for name in pool.suspendedNames {
                let number = pool.state.withLock { $0.devices[name]?.mapped.number }
                _ = try number.map { try DiskGuard.resume($0, pool) }
            }
            let now = test.contents
            try after.dropLeftovers()
            #expect(test.contents == now && test.ids == [1, 2], "call \(number)")
            let left = (pool.snapshotIDs, pool.cutDevices, try after.leftovers())
            #expect(pool.isClean, "call \(number): \(left)")
            #expect(pool.violations.isEmpty)
            for volume in now { #expect([0, 1, 5].contains(volume[65536])) }
            if now[0][65536] == 5 { news += 1 }
            if isOver { break }
            deaths += 1
        }
        #expect(deaths > 40 && news > 3)
    }
}

/// Disks of a checkpoint.
private enum SimulatedDisk {
    static func contents(of checkpoint: Checkpoint, in repository: Repository) throws -> [[UInt8]] {
        try checkpoint.disks.map { volume in
            let reader = try VolumeReader(checkpoint, from: repository, volume: volume.name)
            var bytes = [UInt8](repeating: 0, count: Int(volume.byteCount))
            try bytes.withUnsafeMutableBytes { bytes in
                var span = bytes.mutableBytes
                try reader.readBytes(at: 0, into: &span)
            }
            return bytes
        }
    }
}
