import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import LinuxGuest
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// One checkpoint is encoded while the previous one waits for the disk.
@Suite struct OverlapTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    private static func page(_ value: Int) -> [UInt8] {
        var random = SeededGenerator(seed: UInt64(value))
        return (0..<Page.byteCount).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    /// The first delayed sync ends only after another thread has written.
    @Test func theNextIsAppendedWhileOneIsSynced() throws {
        try Repository.create(at: path).close()
        let files = HeldFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 400))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        _ = try session.capture()
        var copies: [[UInt64: [UInt8]]] = []
        var pending: [PendingCapture] = []
        files.hold()
        for step in 0..<2 {
            guest.with { state in
                for frame in 0..<100 { state.write(UInt64(frame), OverlapTests.page(step + frame)) }
            }
            copies.append(guest.with { $0.pages })
            pending.append(try session.begin())
            files.waitUntilHeld()
        }
        let checkpoints = try pending.map { try $0.wait().checkpoint }
        #expect(files.sawWrite, "the second one's pages were written while the first was synced")
        for (checkpoint, copy) in zip(checkpoints, copies) {
            let restored = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, into: restored)
            #expect(restored.with { $0.pages } == copy)
        }
        #expect(checkpoints[1].parent == checkpoints[0].id)
        session.close()
        try repository.close()
        let report = try Repository.open(at: path, .reading).verify()
        #expect(report.isClean)
    }

    /// A failed sync also fails the next checkpoint, and the pages of both are in the one after
    /// them.
    @Test func aFailedSyncTakesTheNextAlong() throws {
        try Repository.create(at: path).close()
        let files = HeldFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 400))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let first = try session.capture().checkpoint
        files.hold(failing: true)
        guest.with { $0.write(1, OverlapTests.page(1)) }
        let one = try session.begin()
        files.waitUntilHeld()
        guest.with { $0.write(2, OverlapTests.page(2)) }
        let two = try session.begin()
        let failure = #expect(throws: CheckpointError.self) { try one.wait() }
        #expect(failure?.code == .repository)
        let next = #expect(throws: CheckpointError.self) { try two.wait() }
        #expect(next?.code == .predecessorFailed || next?.code == .repository)
        let result = try session.capture()
        #expect(result.checkpoint.parent == first.id)
        #expect(result.checkpoint.changedPageCount == 2 && !result.checkpoint.comparedAll)
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(result.checkpoint, into: restored)
        #expect(restored.with { $0.pages } == guest.with { $0.pages })
        #expect(try repository.verify().isClean)
    }

    /// A job that begins while another one is failing fails too, unless it can have the pages that
    /// were merged back.
    @Test func aJobThatBeginsWhileAnotherFailsFailsToo() throws {
        let repository = try Repository.create(at: path)
        let pipeline = try CheckpointPipeline(
            repository: repository, parent: nil, options: CaptureOptions())
        let completion = CaptureJob.Completion(
            layout: .empty, state: .empty,
            facts: CheckpointFacts(
                lineage: "web", label: nil, timeNanoseconds: 0, comparedAll: false))
        let later = Mutex<CaptureJob?>(nil)
        let first = pipeline.begin(.none) { _, _ in
            // Here the capture thread merges back the pages that the job had taken.
            let job = pipeline.begin(.none) { _, _ in }
            job.complete(completion)
            later.withLock { $0 = job }
        }
        first.move { $0.begin() }
        first.fail(CheckpointError(.cancelled, "the test gives it up"))
        first.complete(completion)
        #expect(throws: CheckpointError.self) { try first.wait() }
        let job = try #require(later.withLock { $0 })
        let failure = #expect(throws: CheckpointError.self) { try job.wait() }
        #expect(failure?.code == .predecessorFailed)
        pipeline.close()
        try repository.close()
    }

    /// While one lineage captures without a pause in between, the index's read mark advances:
    /// opening after a kill reads the end of the packs, not all of them.
    @Test func theReadMarkMovesOn() throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 400))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        // One capture is always in progress.
        var pending = try session.begin()
        for step in 0..<12 {
            guest.with { $0.write(UInt64(step), OverlapTests.page(step)) }
            let next = try session.begin()
            _ = try pending.wait()
            pending = next
        }
        let newest = try pending.wait().checkpoint
        let mark = try repository.withIndex { try $0.readMark() }
        let tenth = try repository.checkpoint(named: "web~3")
        #expect(mark.pack == newest.location.pack)
        #expect(mark.offset >= tenth.location.offset)
        session.close()
    }
}

/// Files where one sync ends only after another thread has written.
private final class HeldFiles: RepositoryFiles {
    private struct State: Sendable {
        var mustHold = false
        var fails = false
        var hasHeld = false
        var isHolding = false
        var sawWrite = false
    }

    private let inner: any RepositoryFiles
    private let state = Mutex(State())

    init(_ inner: any RepositoryFiles) {
        self.inner = inner
    }

    /// Delays the next sync until a thread writes, for ten seconds at most.
    func hold(failing: Bool = false) {
        state.withLock { state in
            state.mustHold = true
            state.fails = failing
        }
    }

    /// Blocks until a sync is delayed, or has been.
    func waitUntilHeld() {
        while !state.withLock({ $0.hasHeld }) { usleep(1000) }
    }

    /// True if a thread wrote while a sync was delayed.
    var sawWrite: Bool { state.withLock { $0.sawWrite } }

    fileprivate func wrote() {
        state.withLock { state in
            if state.isHolding { state.sawWrite = true }
        }
    }

    fileprivate func sync(_ file: any RepositoryFile) throws(FileError) {
        let (mustHold, fails) = state.withLock { state in
            defer { state.mustHold = false }
            if state.mustHold { (state.isHolding, state.hasHeld) = (true, true) }
            return (state.mustHold, state.fails)
        }
        if mustHold {
            for _ in 0..<1000 where !sawWrite { usleep(10_000) }
            state.withLock { $0.isHolding = false }
            if fails { throw FileError(call: "fdatasync", path: "held", errno: 5) }
        }
        try file.sync()
    }

    func open(
        _ path: String, _ mode: PackStore.FileMode
    ) throws(FileError) -> any RepositoryFile {
        HeldFile(try inner.open(path, mode), self)
    }

    func createDirectory(_ path: String) throws(FileError) { try inner.createDirectory(path) }
    func list(_ directory: String) throws(FileError) -> [String] { try inner.list(directory) }
    func syncDirectory(_ path: String) throws(FileError) { try inner.syncDirectory(path) }
    func rename(_ path: String, to newPath: String) throws(FileError) {
        try inner.rename(path, to: newPath)
    }
    func link(_ path: String, to newPath: String) throws(FileError) {
        try inner.link(path, to: newPath)
    }
    func remove(_ path: String) throws(FileError) { try inner.remove(path) }
    func checkPlace(writing pack: String?) throws(FileError) {
        try inner.checkPlace(writing: pack)
    }

    func foreignOwner() throws(FileError) -> UInt32? { try inner.foreignOwner() }

    func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    var bootID: [UInt8] { inner.bootID }
}

private final class HeldFile: RepositoryFile {
    private let inner: any RepositoryFile
    private let owner: HeldFiles

    init(_ inner: any RepositoryFile, _ owner: HeldFiles) {
        self.inner = inner
        self.owner = owner
    }

    func byteCount() throws(FileError) -> UInt64 { try inner.byteCount() }
    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        try inner.read(into: buffer, at: offset)
    }
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        owner.wrote()
        try inner.write(bytes, at: offset)
    }
    func startWriteback(_ range: Range<UInt64>) { inner.startWriteback(range) }
    func truncate(to byteCount: UInt64) throws(FileError) { try inner.truncate(to: byteCount) }
    func sync() throws(FileError) { try owner.sync(inner) }
    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
    func isLocked() throws(FileError) -> Bool { try inner.isLocked() }
}
