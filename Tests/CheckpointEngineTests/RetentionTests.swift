import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// A lineage that is thinned while it is captured.
@Suite struct RetentionTests {
    private let pageCount = 256

    private func open(_ directory: TemporaryDirectory) throws -> Repository {
        let path = directory.path.appending("store")
        try Repository.create(at: path).close()
        return try Repository.open(
            at: path, .writing, files: PosixFiles(root: path), packByteCountMax: 1 << 20)
    }

    /// Writes random pages and remembers them.
    private func write(
        _ guest: SimulatedGuest, _ copy: inout [UInt64: [UInt8]], _ random: inout SeededGenerator
    ) {
        for _ in 0..<24 {
            let frame = UInt64.random(in: 0..<UInt64(pageCount), using: &random)
            let page = (0..<Page.byteCount / 8).flatMap { _ in
                withUnsafeBytes(of: random.next()) { Array($0) }
            }
            guest.with { $0.write(frame, page) }
            copy[frame] = page
        }
    }

    @Test func aThinnedLineageStaysBoundedAndWhole() throws {
        let directory = TemporaryDirectory()
        let repository = try open(directory)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
        var random = TestSeed.generator(900)
        var options = CaptureOptions()
        options.retention = Retention(RetentionPolicy(keepLast: 4))
        options.retention?.interval = .zero
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        var copy: [UInt64: [UInt8]] = [:]
        var copies: [CheckpointID: [UInt64: [UInt8]]] = [:]
        var labelled: CheckpointID?
        var (peak, taken) = (0, 0)
        for index in 0..<400 {
            write(guest, &copy, &random)
            let result = try session.capture(label: index == 7 ? "kept" : nil)
            copies[result.checkpoint.id] = copy
            if index == 7 { labelled = result.checkpoint.id }
            taken += 1
            // A keeper that is late is waited for; each capture calls it again.
            while let report = session.retentionReport, taken - report.forgottenCount > 20 {
                usleep(1000)
                copies[try session.capture().checkpoint.id] = copy
                taken += 1
            }
            // The keeper may remove a pack while they are counted; the next count is as good.
            peak = max(peak, (try? repository.statistics().byteCount) ?? 0)
        }
        session.close()
        let report = try #require(session.retentionReport)
        let kept = try repository.checkpoints(lineage: "web")
        #expect(kept.count == 5 && kept.first?.id == labelled)
        #expect(report.forgottenCount == taken - 5)
        #expect(report.failureCount == 0, "\(String(describing: report.lastFailure))")
        #expect(report.pruneCount > 0 && report.freedByteCount > 20 << 20)
        // 400 captures stored some 37 MB; 5 checkpoints of 1 MiB, and the open pack, remain.
        let stored = try repository.statistics().byteCount
        #expect(stored < 8 << 20, "\(stored) bytes are left")
        #expect(peak > 1 << 20, "it was looked at while captures went on")
        #expect(peak < 16 << 20, "\(peak) bytes at most, while captures went on")
        for checkpoint in kept {
            let other = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
            _ = try repository.restore(checkpoint, into: other)
            let copy = try #require(copies[checkpoint.id])
            let zero = [UInt8](repeating: 0, count: Page.byteCount)
            let differing = other.with { state in
                state.pages.filter { $0.value != copy[$0.key] ?? zero }.count
            }
            #expect(differing == 0)
        }
        #expect(try repository.verify().isClean)
    }

    @Test func aFailedThinningIsCountedAndNothingElse() throws {
        let directory = TemporaryDirectory()
        let repository = try open(directory)
        let keeper = try RetentionKeeper(
            Retention(RetentionPolicy(keepLast: 1)), of: repository, lineage: "web")
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for _ in 0..<3 { _ = try session.capture() }
        session.close()
        // A closed repository forgets nothing.
        try repository.close()
        keeper.close()
        #expect(keeper.report.failureCount == 1 && keeper.report.forgottenCount == 0)
        #expect(keeper.report.lastFailure?.code == .readOnly)
        #expect(try repository.checkpoints(lineage: "web").count == 3)
    }

    /// A lineage while the clock is set: forward by years, back again, and to 1970.
    @Test func aLineageLosesNothingToAClockThatIsSet() throws {
        let directory = TemporaryDirectory()
        let repository = try open(directory)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let clock = SettableClock(1_772_366_400_000_000_000)
        var options = CaptureOptions()
        options.clock = { clock.read() }
        options.retention = Retention(
            RetentionPolicy(keepWithin: .seconds(60), keepHourly: 2))
        options.retention?.interval = .zero
        let minute: Int64 = 60_000_000_000
        var ids: [CheckpointID] = []
        /// A session with some captures at intervals of ten seconds; thins when it ends.
        func capture(_ count: Int) throws -> (kept: [CheckpointID], report: RetentionReport) {
            let session = try CaptureSession(
                of: guest, in: repository, lineage: "web", options: options)
            for _ in 0..<count {
                clock.set(clock.read() + minute / 6)
                ids.append(try session.capture().checkpoint.id)
            }
            session.close()
            let report = try #require(session.retentionReport)
            #expect(report.failureCount == 0)
            return (try repository.checkpoints(lineage: "web").map(\.id), report)
        }
        let right = try capture(12).kept
        #expect(right == Array(ids[5...]), "seven within a minute")
        let now = clock.read()
        // Fourteen years ahead: earlier checkpoints are kept, however long this lasts.
        clock.set(now + 14 * 365 * 24 * 60 * minute)
        let ahead = try capture(20)
        #expect(ahead.kept == right + ids.suffix(7) && ahead.report.inDoubt.isEmpty)
        // After the clock is corrected, checkpoints with wrong times are in doubt, and are kept.
        clock.set(now + 4 * minute)
        let doubtful = Array(ids.suffix(7))
        let back = try capture(6)
        #expect(back.report.inDoubt == doubtful)
        // Five minutes later the earlier checkpoints are older than the rules keep.
        #expect(back.kept == doubtful + ids.suffix(6))
        // After the clock restarts at 1970, all of them are kept.
        let later = clock.read()
        clock.set(0)
        let young = try capture(3)
        #expect(young.kept == back.kept + ids.suffix(3))
        // Two hours later all of them are older than any rule keeps, whatever their recorded times.
        clock.set(later + 60 * minute)
        _ = try capture(2)
        clock.set(later + 120 * minute)
        let last = try capture(10)
        #expect(last.report.inDoubt.isEmpty)
        #expect(last.kept.suffix(7) == ids.suffix(7) && last.kept.count == 8)
        #expect(try repository.verify(.structure).isClean)
    }
}

/// A clock that shows the time it is set to.
private final class SettableClock: Sendable {
    private let time: Mutex<Int64>

    init(_ nanoseconds: Int64) { time = Mutex(nanoseconds) }

    func read() -> Int64 { time.withLock { $0 } }
    func set(_ nanoseconds: Int64) { time.withLock { $0 = nanoseconds } }
}
