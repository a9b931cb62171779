import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

/// The file `lock` is removed or replaced while a writer has it.
@Suite struct StoreLockTests {
    /// What is done to the lock.
    enum Event: String, CaseIterable {
        /// It is removed as a stale file.
        case removed
        /// It is replaced by another file.
        case replaced
        /// It is renamed.
        case renamed
    }

    private static let packByteCountMax = (256 + 100) << 10
    private static let pageCount = 64

    private let directory = TemporaryDirectory(inMemory: true)
    private var path: FilePath { directory.path.appending("store") }

    private struct Failure: Error {}

    private func make() throws {
        try? FileManager.default.removeItem(atPath: path.string)
        let repository = try Repository.create(at: path)
        let session = try CaptureSession(of: guest(1), in: repository, lineage: "web")
        _ = try session.capture()
        session.close()
        try repository.close()
    }

    /// A guest of incompressible pages, all of them different for each seed.
    private func guest(_ seed: UInt64) -> SimulatedGuest {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: StoreLockTests.pageCount))
        write(guest, seed)
        return guest
    }

    private func write(_ guest: SimulatedGuest, _ seed: UInt64) {
        var random = TestSeed.generator(9100 + seed)
        guest.with { guest in
            for frame in 0..<20 as Range<UInt64> {
                guest.write(frame, StoreLockTests.page(&random))
            }
        }
    }

    private static func page(_ random: inout SeededGenerator) -> [UInt8] {
        var words = [UInt64](repeating: 0, count: Page.byteCount / 8)
        for index in words.indices { words[index] = random.next() }
        return words.withUnsafeBytes { Array($0) }
    }

    private func happen(_ event: Event) throws {
        let lock = path.appending("lock").string
        let manager = FileManager.default
        switch event {
        case .removed: try manager.removeItem(atPath: lock)
        case .renamed: try manager.moveItem(atPath: lock, toPath: lock + ".old")
        case .replaced:
            try Data().write(to: URL(fileURLWithPath: lock + ".new"))
            _ = rename(lock + ".new", lock)
        }
    }

    private func open(
        locksDirectory: Bool, _ files: (any RepositoryFiles)? = nil
    ) throws -> Repository {
        try Repository.open(
            at: path, .writing,
            files: files ?? PosixFiles(root: path, locksDirectory: locksDirectory),
            packByteCountMax: StoreLockTests.packByteCountMax)
    }

    /// The checkpoints that the second writer published.
    private final class Second: @unchecked Sendable {
        // Unchecked: written in the event, read after it.
        var ids: [CheckpointID] = []
        var pages: [UInt64: [UInt8]] = [:]
        var error: (any Error)?
    }

    private func write(as second: Second, after event: Event) {
        do {
            try happen(event)
            let repository = try open(locksDirectory: false)
            let guest = guest(2)
            let session = try CaptureSession(of: guest, in: repository, lineage: "second")
            second.ids.append(try session.capture().checkpoint.id)
            write(guest, 3)
            second.ids.append(try session.capture().checkpoint.id)
            session.close()
            second.pages = guest.with { $0.pages }
            try repository.close()
        } catch {
            second.error = error
        }
    }

    /// The steps of the first writer: each returns what it stored, if anything.
    private func work(
        _ repository: Repository, _ session: CaptureSession, _ guest: SimulatedGuest, _ step: Int
    ) throws -> CheckpointID? {
        switch step {
        case 1:
            var position = 0
            var random = TestSeed.generator(9000)
            do {
                // Seals packs, which are removed again.
                _ = try repository.importImage(lineage: "cut") { buffer in
                    position += 1
                    guard position < 3 else { throw Failure() }
                    let count = min(buffer.count, 20 * Page.byteCount)
                    for start in stride(from: 0, to: count, by: Page.byteCount) {
                        UnsafeMutableRawBufferPointer(
                            rebasing: buffer[start..<start + Page.byteCount]
                        ).copyBytes(from: StoreLockTests.page(&random))
                    }
                    return count
                }
            } catch {
                // The failure was intended.
                if error.repositoryError != nil { throw error }
            }
            return nil
        case 3:
            let ids = try repository.checkpoints(lineage: "web").dropLast(2).map(\.id)
            try repository.forget(Array(ids))
            return nil
        case 4:
            var options = PruneOptions()
            options.unusedPercentMax = 0
            try repository.planPrune(options).execute()
            return nil
        default:
            write(guest, UInt64(10 + step))
            return try session.capture().checkpoint.id
        }
    }

    private struct Outcome {
        var stored: [CheckpointID] = []
        var refused = 0
    }

    private func run(_ files: FaultyFiles, _ what: String) throws -> Outcome {
        var outcome = Outcome()
        let repository: Repository
        do {
            repository = try open(locksDirectory: false, files)
        } catch let error as RepositoryError {
            #expect(error.code == .lockLost && !files.isEventAhead, "\(what): \(error)")
            outcome.refused = 1
            return outcome
        }
        let guest = guest(1)
        var options = CaptureOptions()
        options.workerCount = 1
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        for step in 0..<7 {
            let wasAhead = files.isEventAhead
            do {
                if let id = try work(repository, session, guest, step) {
                    outcome.stored.append(id)
                    #expect(wasAhead, "\(what): durable was said at step \(step)")
                }
            } catch {
                outcome.refused += 1
                let cause =
                    (error as? CheckpointError)?.repositoryError ?? error as? RepositoryError
                // Prune first reports that the repository has changed since it was planned.
                let allowed: Set<RepositoryError.Code> =
                    step == 4 ? [.lockLost, .planStale] : [.lockLost]
                #expect(
                    cause.map { allowed.contains($0.code) } == true, "\(what), \(step): \(error)")
                #expect(!files.isEventAhead, "\(what), \(step): \(error)")
            }
        }
        session.close()
        try? repository.close()
        return outcome
    }

    /// Where directories cannot be locked a second writer can open the store: nothing that it
    /// published is truncated, removed or overwritten, at whatever call it came.
    @Test(arguments: Event.allCases) func whatTheSecondWriterPublishedStays(event: Event) throws {
        var (calls, refused) = (0, 0)
        let step = event == .removed || TestSeed.isLong ? 1 : 5
        for call in stride(from: 0, to: 400, by: step) {
            try make()
            let files = FaultyFiles(PosixFiles(root: path, locksDirectory: false))
            let second = Second()
            let what = "\(event) at call \(call)"
            files.before(call: call) { write(as: second, after: event) }
            let outcome = try run(files, what)
            if files.isEventAhead { break }
            calls += 1
            refused += outcome.refused
            #expect(second.error == nil, "\(what): \(second.error.map { "\($0)" } ?? "")")
            let reader = try open(locksDirectory: true)
            let all = Set(try reader.checkpoints().map(\.id))
            #expect(second.ids.count == 2 && all.isSuperset(of: second.ids), "\(what)")
            // Those that existed before and were not forgotten.
            #expect(outcome.stored.suffix(1).allSatisfy { all.contains($0) }, "\(what)")
            #expect(try reader.verify().isClean, "\(what)")
            let target = SimulatedGuest(layout: .empty)
            _ = try reader.restore(try reader.checkpoint(named: "second"), into: target)
            #expect(target.with { $0.pages } == second.pages, "\(what)")
            try reader.close()
        }
        print("\(event): at each of \(calls) calls; \(refused) steps refused")
        #expect(calls > 40 / step && refused > calls)
    }

    /// Where directories can be locked no second writer can open the store while the first one
    /// lives.
    @Test(arguments: Event.allCases) func theDirectoryIsLockedToo(event: Event) throws {
        try make()
        let repository = try open(locksDirectory: true)
        let guest = guest(1)
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        try happen(event)
        let refused = #expect(throws: RepositoryError.self) { try open(locksDirectory: true) }
        #expect(refused?.code == .locked, "\(refused?.message ?? "")")
        let error = #expect(throws: CheckpointError.self) { try session.capture() }
        #expect(error?.repositoryError?.code == .lockLost, "\(error.map { "\($0)" } ?? "")")
        let message = error?.repositoryError?.message ?? ""
        #expect(message.contains("\(path)/lock was removed or replaced"), "\(message)")
        #expect(message.contains("open the repository again"), "\(message)")
        session.close()
        let closing = #expect(throws: RepositoryError.self) { try repository.close() }
        #expect(closing?.code == .lockLost)
        let next = try open(locksDirectory: true)
        #expect(try next.checkpoints().count == 1 && next.verify().isClean)
        try next.close()
    }

    /// A repair holds the lock for a long time.
    @Test func aRepairChangesNothingWhenItsLockIsGone() throws {
        try make()
        let pack = path.appending("packs/00000001.pack").string
        let handle = try #require(FileHandle(forUpdatingAtPath: pack))
        try handle.seek(toOffset: 3000)
        try handle.write(contentsOf: Data(repeating: 0xa5, count: 64))
        try handle.close()
        let plan = try Repository.planRepair(at: path)
        let before = try Data(contentsOf: URL(fileURLWithPath: pack))
        #expect(!plan.isEmpty)
        try happen(.removed)
        let error = #expect(throws: RepositoryError.self) { try plan.execute() }
        #expect(error?.code == .lockLost, "\(error?.message ?? "")")
        #expect(try Data(contentsOf: URL(fileURLWithPath: pack)) == before)
    }
}
