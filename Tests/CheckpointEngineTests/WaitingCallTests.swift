import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import LinuxGuest
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// Calls that wait are woken when they are cancelled: by a plain cancellation, and by their task.
@Suite struct WaitingCallTests {
    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    private func page(_ value: Int) -> [UInt8] {
        [UInt8](repeating: UInt8(truncatingIfNeeded: value), count: Page.byteCount)
    }

    /// A session whose disk stalls from its first checkpoint on.
    private func stalled(
        _ change: (inout CaptureOptions) -> Void
    ) throws -> (SimulatedGuest, Repository, CaptureSession, GatedFiles) {
        try Repository.create(at: path).close()
        let files = GatedFiles(PosixFiles(root: path))
        let repository = try Repository.open(at: path, .writing, files: files)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4000))
        var options = CaptureOptions()
        change(&options)
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        _ = try session.capture()
        files.shut()
        return (guest, repository, session, files)
    }

    private func write(_ guest: SimulatedGuest, _ frames: Range<UInt64>, _ value: Int) {
        guest.with { guest in for frame in frames { guest.write(frame, page(value)) } }
    }

    /// Cancels a call that waits on another thread, and returns its error.
    private func cancelled(
        _ cancel: (Cancellation) -> Void,
        _ call: @escaping @Sendable (Cancellation) throws -> Void
    ) throws -> CheckpointError? {
        let cancellation = Cancellation()
        let error = Mutex<CheckpointError?>(nil)
        let thread = try Threads.Thread {
            do {
                try call(cancellation)
            } catch let failure {
                error.withLock { $0 = failure as? CheckpointError }
            }
        }
        // Long enough to wait; if it does not yet, it is cancelled before.
        WallClock.sleep(milliseconds: 100)
        cancel(cancellation)
        thread.join()
        return error.withLock { $0 }
    }

    /// It waits for a capture in progress, of which only one may be.
    @Test(arguments: [false, true]) func aCallThatWaitsForAJobIsWoken(bySession: Bool) throws {
        let (guest, repository, session, files) = try stalled { $0.overlappingCapturesMax = 1 }
        write(guest, 0..<10, 1)
        let pending = try session.begin()
        write(guest, 5..<20, 2)
        let error = try cancelled {
            bySession ? session.cancel() : $0.cancel()
        } _: {
            _ = try session.begin(cancellation: $0)
        }
        #expect(error?.code == .cancelled)
        let revert = try cancelled {
            bySession ? session.cancel() : $0.cancel()
        } _: {
            try session.revert(to: try repository.checkpoint(named: "web"), cancellation: $0)
        }
        #expect(revert?.code == .cancelled)
        files.open()
        // The session's cancel also ends what is in progress and not being written out yet.
        let first = try? pending.wait().checkpoint
        #expect(bySession || first?.changedPageCount == 10)
        let last = try session.capture().checkpoint
        #expect(try guest.memoryRoot() == last.memory.root && !last.comparedAll)
        session.close()
        #expect(try repository.verify().isClean)
    }

    /// It waits for room in the pool, which a checkpoint that cannot be written holds.
    @Test func aCallThatWaitsForRoomIsWoken() throws {
        let (guest, repository, session, files) = try stalled { options in
            options.poolByteCount = 4 << 20
            options.workerCount = 1
        }
        write(guest, 0..<600, 1)
        files.shutWrites()
        let pending = try session.begin()
        write(guest, 0..<600, 2)
        let error = try cancelled {
            $0.cancel()
        } _: {
            _ = try session.begin(cancellation: $0)
        }
        #expect(error?.code == .cancelled)
        files.open()
        _ = try pending.wait()
        let last = try session.capture().checkpoint
        #expect(try guest.memoryRoot() == last.memory.root)
        session.close()
        #expect(try repository.verify().isClean)
    }

    /// A capture that has begun is cancelled as long as it is not being written out.
    @Test func aPendingCaptureIsCancelled() async throws {
        let (guest, repository, session, files) = try stalled { _ in }
        write(guest, 0..<10, 1)
        let first = try await session.begin()
        write(guest, 10..<20, 2)
        let second = try await session.begin()
        let task = Task { try await second.wait() }
        task.cancel()
        second.cancel()
        files.open()
        _ = try await first.wait()
        let error = await #expect(throws: CheckpointError.self) { try await task.value }
        #expect(error?.code == .cancelled)
        let last = try await session.capture().checkpoint
        #expect(try guest.memoryRoot() == last.memory.root && last.changedPageCount == 10)
        await session.close()
        #expect(try await repository.verify().isClean)
    }

    /// A writer that waits for another's lock.
    @Test func openingIsCancelledWithItsTask() async throws {
        let holder = try await Task.detached { [path] in try Repository.create(at: path) }.value
        let task = Task { [path] in
            try await Repository.open(
                at: path, .writing, waiting: LockWaiting(atMost: nil))
        }
        try await Task.sleep(for: .milliseconds(50))
        task.cancel()
        let error = await #expect(throws: RepositoryError.self) { try await task.value }
        #expect(error?.code == .cancelled && holder.isWritable)
    }

    /// Every asynchronous call, in a program that never blocks.
    @Test func asynchronousCallsDoTheSameWork() async throws {
        let repository = try await Task.detached { [path] in
            try Repository.create(at: path)
        }.value
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 300))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        var checkpoints: [Checkpoint] = []
        for step in 0..<4 {
            write(guest, 0..<UInt64(10 + step), step)
            let result = try await session.capture(label: step == 0 ? "first" : nil)
            checkpoints.append(result.checkpoint)
            #expect(result.dirtyPageCount > 0)
        }
        try await session.revert(to: checkpoints[1])
        #expect(try guest.memoryRoot() == checkpoints[1].memory.root)
        await session.close()
        let restored = SimulatedGuest(layout: .empty)
        let result = try await repository.restore(checkpoints[2], into: restored)
        #expect(try restored.memoryRoot() == result.root)
        let bytes = (0..<4).flatMap(page)
        let position = Mutex(0)
        let image = try await repository.importImage(lineage: "image") { buffer in
            position.withLock { position in
                let count = min(buffer.count, bytes.count - position)
                bytes.withUnsafeBytes {
                    buffer.copyMemory(
                        from: UnsafeRawBufferPointer(rebasing: $0[position..<position + count]))
                }
                position += count
                return count
            }
        }
        #expect(image.pageCount == 4)
        try await repository.forget([checkpoints[3].id])
        let plan = try await repository.planPrune(PruneOptions(unusedPercentMax: 0))
        _ = try await plan.execute()
        #expect(try await repository.verify().isClean)
        try await repository.close()
        let repair = try await Repository.planRepair(at: path)
        #expect(repair.isEmpty)
        #expect(try await repair.execute().report.isClean)
    }

    /// Dropping a session waits for nothing, and its guest is free when its captures have ended.
    @Test func aDroppedSessionWaitsForNothing() throws {
        var (guest, repository, session, files):
            (SimulatedGuest, Repository, CaptureSession?, GatedFiles) = try stalled { _ in }
        write(guest, 0..<10, 1)
        let pending = try #require(try session?.begin())
        session = nil
        let busy = #expect(throws: CheckpointError.self) {
            try CaptureSession(of: guest, in: repository, lineage: "web")
        }
        #expect(busy?.guestError?.code == .busy)
        files.open()
        let checkpoint = try pending.wait().checkpoint
        var next: CaptureSession?
        while next == nil {
            next = try? CaptureSession(of: guest, in: repository, lineage: "web")
            WallClock.sleep(milliseconds: 1)
        }
        #expect(next?.parent == checkpoint)
        next?.close()
    }

    @Test func aVolatileRepositoryLeavesNothing() throws {
        let repository = try Repository.createVolatile(in: directory.path)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 300))
        let session = try CaptureSession(of: guest, in: repository, lineage: "fuzz")
        let start = try session.capture().checkpoint
        for step in 1..<50 {
            write(guest, 0..<20, step)
            try session.revert(to: start)
            #expect(try guest.memoryRoot() == start.memory.root)
        }
        #expect(try repository.verify().isClean)
        session.close()
        let files = PosixFiles(root: directory.path)
        #expect(try files.list("").count == 1)
        try repository.close()
        #expect(try files.list("").isEmpty)
        let refused = #expect(throws: RepositoryError.self) {
            try Repository.createVolatile(in: directory.path.appending("missing"))
        }
        #expect(refused?.code == .callFailed || refused?.code == .missing)
    }
}

/// Files whose syncs, or whose writes to packs, wait while they are shut.
private final class GatedFiles: RepositoryFiles {
    private struct Gates: Sendable {
        var syncs = true
        var writes = true
    }

    private let inner: any RepositoryFiles
    private let gates = Monitor(Gates())

    init(_ inner: any RepositoryFiles) { self.inner = inner }

    func shut() { gates.change { $0.syncs = false } }
    func shutWrites() { gates.change { $0.writes = false } }
    func open() { gates.change { $0 = Gates() } }

    fileprivate func passSync() { gates.wait { $0.syncs ? () : nil } }
    fileprivate func passWrite() { gates.wait { $0.writes ? () : nil } }

    func open(
        _ path: String, _ mode: PackStore.FileMode
    ) throws(FileError) -> any RepositoryFile {
        GatedFile(try inner.open(path, mode), self)
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

private final class GatedFile: RepositoryFile {
    private let inner: any RepositoryFile
    private let files: GatedFiles

    init(_ inner: any RepositoryFile, _ files: GatedFiles) {
        self.inner = inner
        self.files = files
    }

    func byteCount() throws(FileError) -> UInt64 { try inner.byteCount() }
    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int { try inner.read(into: buffer, at: offset) }
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        files.passWrite()
        try inner.write(bytes, at: offset)
    }
    func startWriteback(_ range: Range<UInt64>) { inner.startWriteback(range) }
    func truncate(to byteCount: UInt64) throws(FileError) { try inner.truncate(to: byteCount) }
    func sync() throws(FileError) {
        files.passSync()
        try inner.sync()
    }
    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
    func isLocked() throws(FileError) -> Bool { try inner.isLocked() }
}
