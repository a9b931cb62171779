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

@testable import CheckpointEngine

/// A system that has no thread or no memory left: an error where one is needed, and slower work
/// where not.
@Suite struct ShortageTests {
    private let directory = TemporaryDirectory()

    private func make() throws -> (SimulatedGuest, Repository) {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 3000))
        var random = SeededGenerator(seed: 5)
        guest.with { state in
            for frame in 0..<UInt64(3000) where frame % 7 != 0 {
                let word = random.next()
                state.write(
                    frame,
                    (0..<Page.byteCount).map { UInt8(truncatingIfNeeded: word >> ($0 % 57)) })
            }
        }
        return (guest, repository)
    }

    private func with<T>(threads count: Int, _ body: () throws -> T) rethrows -> T {
        try Threads.$shortage.withValue(Threads.Shortage(after: count), operation: body)
    }

    @Test(arguments: 0..<4) func everyNumberIsCalledOnce(threadCount: Int) {
        let called = Mutex<[Int]>([])
        with(threads: threadCount) {
            Threads.concurrently(4) { number in called.withLock { $0.append(number) } }
        }
        #expect(called.withLock { $0.sorted() } == [0, 1, 2, 3])
    }

    @Test func theErrorSaysWhatToDo() {
        let error = #expect(throws: RepositoryError.self) {
            try with(threads: 0) { _ = try Threads.Thread {} }
        }
        #expect(error?.code == .callFailed)
        #expect(error?.errno == EAGAIN)
        #expect(error?.message.contains("ulimit -u") == true)
        #expect(error?.message.contains("pids.max") == true)
    }

    /// Whichever thread of a session cannot be started: it is an error, and the guest is free.
    @Test func aSessionNeedsAllOfItsThreads() throws {
        var options = CaptureOptions()
        options.workerCount = 2
        options.retention = Retention(RetentionPolicy(keepLast: 2))
        let (guest, repository) = try make()
        for count in 0..<6 {
            let error = #expect(throws: CheckpointError.self) {
                try with(threads: count) {
                    _ = try CaptureSession(
                        of: guest, in: repository, lineage: "web", options: options)
                }
            }
            #expect(error?.repositoryError?.code == .callFailed, "\(count) threads")
        }
        let session = try with(threads: 6) {
            try CaptureSession(of: guest, in: repository, lineage: "web", options: options)
        }
        _ = try session.capture()
        session.close()
    }

    /// Threads that had been started would keep the repository.
    @Test func noThreadOfAFailedSessionIsLeft() throws {
        let (guest, made) = try make()
        var repository: Repository? = consume made
        weak let left = repository
        for count in 0..<5 {
            _ = #expect(throws: CheckpointError.self) {
                try with(threads: count) {
                    var options = CaptureOptions()
                    options.workerCount = 2
                    _ = try CaptureSession(
                        of: guest, in: #require(repository), lineage: "web", options: options)
                }
            }
        }
        repository = nil
        #expect(left == nil)
    }

    @Test func whatRunsOnItsOwnSaysSo() throws {
        let (guest, repository) = try make()
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let error = #expect(throws: CheckpointError.self) {
            try with(threads: 0) {
                _ = try PeriodicCapture(of: session, .init(every: .zero)) { _ in .stop }
            }
        }
        #expect(error?.repositoryError?.code == .callFailed)
        #expect(throws: RepositoryError.self) {
            try with(threads: 0) {
                _ = try RetentionKeeper(
                    Retention(RetentionPolicy(keepLast: 1)), of: repository, lineage: "web")
            }
        }
        #expect(throws: CheckpointError.self) {
            try with(threads: 2) { _ = try StreamImport(into: repository, lineage: "other") }
        }
        _ = try session.capture()
        #expect(throws: RepositoryError.self) { try with(threads: 0) { try repository.verify() } }
        #expect(try with(threads: 1) { try repository.verify().isClean })
        session.close()
    }

    /// Reading back needs no thread but the caller's.
    @Test func aRestoreNeedsNone() throws {
        let (guest, repository) = try make()
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let checkpoint = try session.capture().checkpoint
        session.close()
        let restored = SimulatedGuest(layout: .empty)
        try with(threads: 0) {
            _ = try repository.restore(checkpoint, into: restored)
            var count = 0
            try VolumeReader(checkpoint, from: repository).read { runs, _ in
                count += runs.reduce(0) { $0 + $1.count }
            }
            #expect(count == 3000)
        }
        let isEqual = restored.with { $0.pages } == guest.with { $0.pages }
        #expect(isEqual)
    }

    /// Missing memory is no damage of the store: the same call succeeds when there is some.
    @Test func missingMemoryForZstdIsAnErrorAndNoCorruption() throws {
        let (guest, repository) = try make()
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let checkpoint = try session.capture().checkpoint
        session.close()
        let failures: [() throws -> Void] = [
            { _ = try repository.restore(checkpoint, into: guest) },
            { _ = try VolumeReader(checkpoint, from: repository) },
            { _ = try BatchEncoder() },
        ]
        for (index, call) in failures.enumerated() {
            let error = #expect(throws: CheckpointError.self) {
                try CompressionMemoryError.$isForced.withValue(true, operation: call)
            }
            #expect(error?.repositoryError?.code == .callFailed, "call \(index)")
            #expect(error?.repositoryError?.errno == ENOMEM, "call \(index)")
        }
        #expect(throws: RepositoryError.self) {
            try CompressionMemoryError.$isForced.withValue(true) { _ = try PageFetcher(repository) }
        }
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        #expect(try repository.verify().isClean)
    }
}
