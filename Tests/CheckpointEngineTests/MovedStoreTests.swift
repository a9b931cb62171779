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

/// A store that is renamed, removed or replaced during a session: no checkpoint is reported durable
/// that is not at the path, and nothing is written to the file or directory that replaced it.
@Suite struct MovedStoreTests {
    enum Event: String, CaseIterable {
        /// It was renamed, and nothing has the old name.
        case renamed
        /// All of it was removed.
        case removed
        /// Another store is at its path.
        case replaced
        /// The same directory has another store in it.
        case refilled
        /// The folder of packs was renamed.
        case packsRenamed
        /// The open pack was replaced by a copy.
        case packCopied
        /// The file `repository` names another repository.
        case otherEnvelope
    }

    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }
    private var aside: FilePath { directory.path.appending("aside") }

    private func shell(_ line: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", "cd '\(directory.path)' && \(line)"]
        _ = try? process.runToEnd()
    }

    private func make(_ name: String) throws -> SimulatedGuest {
        let repository = try Repository.create(at: directory.path.appending(name))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        guest.with { guest in
            for frame in 0..<20 as Range<UInt64> {
                guest.write(frame, [UInt8](repeating: UInt8(frame + 1), count: Page.byteCount))
            }
        }
        let session = try CaptureSession(of: guest, in: repository, lineage: "other")
        _ = try session.capture()
        session.close()
        try repository.close()
        return guest
    }

    /// The bytes of each file below a directory.
    private func contents(_ name: String) throws -> [String: Data] {
        let root = directory.path.appending(name).string
        var found: [String: Data] = [:]
        for case let file as String in FileManager.default.enumerator(atPath: root) ?? .init() {
            var isDirectory: ObjCBool = false
            let whole = "\(root)/\(file)"
            if FileManager.default.fileExists(atPath: whole, isDirectory: &isDirectory),
                !isDirectory.boolValue
            {
                found[file] = try Data(contentsOf: URL(fileURLWithPath: whole))
            }
        }
        return found
    }

    private func happen(_ event: Event) {
        switch event {
        case .renamed: shell("mv store aside")
        case .removed: shell("rm -rf store")
        case .replaced: shell("mv store aside && cp -a other store")
        case .refilled:
            shell("mkdir aside && mv store/* aside/ && cp -a other/. store/")
        case .packsRenamed: shell("mv store/packs aside && mkdir store/packs")
        case .packCopied:
            shell(
                "f=$(ls store/packs | tail -1); mkdir aside; mv store/packs/$f aside/; "
                    + "cp aside/$f store/packs/")
        case .otherEnvelope: shell("cp other/repository store/repository")
        }
    }

    /// Where the session's store is after an event; nil if no whole store exists.
    private func place(_ event: Event) -> FilePath? {
        switch event {
        case .renamed, .replaced, .refilled: aside
        case .removed, .packsRenamed, .packCopied: nil
        case .otherEnvelope: nil
        }
    }

    private struct Outcome {
        var stored: [CheckpointID] = []
        var errors: [RepositoryError.Code] = []
        /// True if the event came before the last capture began.
        var mustBeNoticed = false
    }

    /// Captures until the event has happened and for some time after it.
    private func run(
        _ files: FaultyFiles, _ call: Int, _ event: Event
    ) throws -> (outcome: Outcome, came: Bool) {
        let repository = try Repository.open(at: path, .writing, files: files)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        var options = CaptureOptions()
        options.workerCount = 1
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "web", options: options)
        var outcome = Outcome()
        files.before(call: call) { happen(event) }
        for step in 0..<5 as Range<UInt64> {
            guest.with {
                $0.write(step, [UInt8](repeating: UInt8(step + 100), count: Page.byteCount))
            }
            let wasAhead = files.isEventAhead
            outcome.mustBeNoticed = !wasAhead
            do {
                let stored = try session.capture().checkpoint.id
                outcome.stored.append(stored)
                #expect(wasAhead, "durable was said after \(event) at call \(call)")
            } catch {
                let cause = try #require(error.repositoryError, "\(error)")
                outcome.errors.append(cause.code)
                // The writer's lock file was moved away with its store.
                let code: RepositoryError.Code = event == .refilled ? .lockLost : .moved
                #expect(cause.code == code, "\(event) at call \(call): \(cause.message)")
                #expect(cause.message.contains("open the repository"))
                #expect(cause.message.contains(path.string), "\(cause.message)")
            }
        }
        session.close()
        try? repository.close()
        return (outcome, !files.isEventAhead)
    }

    @Test(arguments: Event.allCases) func nothingIsDurableThatIsNotThere(event: Event) throws {
        _ = try make("other")
        let other = try contents("other")
        var (calls, refused, kept) = (0, 0, 0)
        for call in 0..<200 {
            shell("rm -rf store aside")
            _ = try make("store")
            let files = FaultyFiles(PosixFiles(root: path))
            let (outcome, came) = try run(files, call, event)
            if !came { break }
            calls += 1
            refused += outcome.errors.count
            kept += outcome.stored.count
            #expect(
                !outcome.errors.isEmpty || !outcome.mustBeNoticed,
                "\(event) at call \(call) was not noticed")
            #expect(
                try contents("other") == other, "\(event) at call \(call): the other was written")
            switch event {
            case .replaced, .refilled:
                #expect(try contents("store") == other, "\(event) at call \(call)")
            case .renamed, .removed:
                #expect(!FileManager.default.fileExists(atPath: path.string))
            case .packsRenamed, .packCopied, .otherEnvelope: break
            }
            guard let place = place(event) else { continue }
            // Every checkpoint that was reported durable is there, and no refused one is.
            let moved = try Repository.open(at: place, .writing)
            let ids = Set(try moved.checkpoints(lineage: "web").map(\.id))
            if event == .refilled {
                // Without the lock nothing is truncated: a record that was being published may be
                // whole.
                let extra = ids.subtracting(outcome.stored)
                #expect(ids.isSuperset(of: outcome.stored) && extra.count <= 1)
            } else {
                #expect(ids == Set(outcome.stored), "\(event) at call \(call)")
            }
            #expect(try moved.verify().isClean)
            try moved.close()
        }
        print("\(event): at each of \(calls) calls; \(kept) captures stored, \(refused) refused")
        #expect(calls > 8)
    }

    /// A store that returns to its path is written again.
    @Test func aStoreThatIsPutBackGoesOn() throws {
        _ = try make("store")
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        _ = try session.capture()
        shell("mv store aside")
        guest.with { $0.write(3, [UInt8](repeating: 7, count: Page.byteCount)) }
        #expect(throws: CheckpointError.self) { try session.capture() }
        shell("mv aside store")
        let last = try session.capture().checkpoint
        session.close()
        try repository.close()
        let reader = try Repository.open(at: path, .reading)
        #expect(try reader.verify().isClean)
        let target = SimulatedGuest(layout: .empty)
        _ = try reader.restore(try reader.checkpoint(id: last.id), into: target)
        #expect(target.with { $0.pages } == guest.with { $0.pages })
    }

    /// Forget, prune and close.
    @Test(arguments: [Event.renamed, .replaced, .refilled, .removed])
    func forgettingSaysItToo(event: Event) throws {
        _ = try make("other")
        let other = try contents("other")
        _ = try make("store")
        let repository = try Repository.open(at: path, .writing)
        let id = try repository.checkpoint(named: "other").id
        happen(event)
        let error = #expect(throws: RepositoryError.self) { try repository.forget([id]) }
        #expect(
            error?.code == (event == .refilled ? .lockLost : .moved), "\(error?.message ?? "")")
        try? repository.close()
        if let place = place(event) {
            #expect(try contents("other") == other)
            let moved = try Repository.open(at: place, .reading)
            #expect(try moved.checkpoints().map(\.id) == [id])
        }
    }

    /// A reader can read the files that it opened; it reports missing ones as missing, not as
    /// damage.
    @Test func aReaderReadsOnOrSaysIt() throws {
        let guest = try make("store")
        let reader = try Repository.open(at: path, .reading)
        shell("mv store aside && mkdir store")
        let target = SimulatedGuest(layout: .empty)
        _ = try reader.restore(try reader.checkpoint(named: "other"), into: target)
        #expect(target.with { $0.pages } == guest.with { $0.pages })
        shell("rm -rf store && mv aside store")
        let second = try Repository.open(at: path, .reading)
        second.reader.drop(1)
        shell("rm -rf store")
        let error = #expect(throws: RepositoryError.self) {
            try second.restore(
                try second.checkpoint(named: "other"), into: SimulatedGuest(layout: .empty))
        }
        #expect(error?.code == .moved, "\(error?.message ?? "")")
    }

    /// A relative path, and a process that changes its working directory.
    @Test func aRelativePathIsWhatItWasWhenItWasOpened() async {
        await #expect(processExitsWith: .success) {
            let directory = TemporaryDirectory()
            let manager = FileManager.default
            let here = directory.path.string
            try manager.createDirectory(
                atPath: "\(here)/elsewhere", withIntermediateDirectories: true)
            try #require(manager.changeCurrentDirectoryPath(here))
            let repository = try Repository.create(at: "store")
            try #require(manager.changeCurrentDirectoryPath("\(here)/elsewhere"))
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 64))
            let session = try CaptureSession(of: guest, in: repository, lineage: "web")
            for step in 0..<3 as Range<UInt64> {
                guest.with {
                    $0.write(step, [UInt8](repeating: UInt8(step + 1), count: Page.byteCount))
                }
                _ = try session.capture()
            }
            session.close()
            try repository.forget([try repository.checkpoint(named: "web~1").id])
            try #require(try repository.verify().isClean)
            try repository.close()
            try #require(try manager.contentsOfDirectory(atPath: ".").isEmpty)
            let reader = try Repository.open(at: "../store", .reading)
            try #require(manager.changeCurrentDirectoryPath("/"))
            try #require(try reader.verify().isClean)
            try #require(try reader.checkpoints().count == 2)
            try #require(try manager.contentsOfDirectory(atPath: "\(here)/elsewhere").isEmpty)
        }
    }
}
