import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import Varve
@testable import XenGuest

/// Reverts by `XenCheckpointer`: in place, or by a program in the place of `xl`.
@Suite struct XenRevertTests {
    private let home = TemporaryDirectory()
    private let xen = FakeXen()
    private let repository: Repository

    init() throws {
        repository = try Repository.create(at: home.path.appending("store"))
        xen.add(FakeDomain(Scene.number, frames: [0..<90], seed: 3))
        let uuid = xen.with(Scene.number) { XenConfiguration.text(ofUUID: $0.facts.handle) }
        xen.with { state in
            state.configuration = Array(
                "{\"c_info\": {\"name\": \"web\", \"uuid\": \"\(uuid)\"}}".utf8)
        }
        let program = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("fake-xl.sh")
        try FileManager.default.createSymbolicLink(
            atPath: home.path.appending("xl").string, withDestinationPath: program.path)
    }

    private func open() throws -> XenCheckpointer {
        var options = XenCheckpointer.Options()
        options.capture.acceptsGuestChange = true
        return try XenCheckpointer(
            of: try XenDomain(Scene.number, calls: xen, options: options.domain), in: repository,
            lineage: "web", options: options)
    }

    /// A checkpoint of a checkpointer that is gone.
    private func captureOnce() throws -> Checkpoint {
        let checkpointer = try open()
        defer { checkpointer.close() }
        return try checkpointer.capture().checkpoint
    }

    private func exists(_ name: String) -> Bool {
        FileManager.default.fileExists(atPath: home.path.appending(name).string)
    }

    private func put(_ text: String, _ name: String) {
        _ = FileManager.default.createFile(
            atPath: home.path.appending(name).string, contents: Data(text.utf8))
    }

    /// Does what `xl` does with domains, while a revert runs.
    private func revert(
        _ checkpointer: XenCheckpointer, to checkpoint: Checkpoint,
        _ method: XenRevertOptions.Method, status: Int = 0
    ) throws -> XenRevertResult {
        var options = XenRevertOptions()
        options.method = method
        options.xl = home.path.appending("xl").string
        put("\(status)\n", "status")
        let isOver = Atomic(false)
        let thread = Thread { [xen, self] in
            while !isOver.load(ordering: .relaxed) {
                usleep(2000)
                if exists("destroyed"), !exists("gone") {
                    xen.with { $0.domains[Scene.number] = nil }
                    put("", "gone")
                }
                if exists("done"), !exists("go") {
                    if status == 0 {
                        xen.add(FakeDomain(9, frames: [0..<10], seed: 1))
                        xen.with { $0.store["/local/domain/9/name"] = "web" }
                    }
                    put("", "go")
                }
            }
        }
        thread.start()
        defer { isOver.store(true, ordering: .relaxed) }
        return try checkpointer.revert(to: checkpoint, options: options)
    }

    @Test func aDomainIsRevertedInPlace() throws {
        let checkpointer = try open()
        let first = try checkpointer.capture().checkpoint
        let result = try revert(checkpointer, to: first, .automatic)
        #expect(result.domainID == Scene.number && result.inPlace != nil)
        #expect(!exists("destroyed") && result.replacedBecause == nil)
        _ = try checkpointer.capture()
        checkpointer.close()
        #expect(xen.complaints(Scene.number).isEmpty)
    }

    @Test func aReplacementIsTheCheckpointUnderTheSameName() throws {
        let checkpointer = try open()
        let first = try checkpointer.capture().checkpoint
        let result = try revert(checkpointer, to: first, .replace)
        #expect(result.domainID == 9 && result.inPlace == nil && result.replacedBecause == nil)
        #expect(exists("passed"))
        checkpointer.close()
    }

    /// A domain that was ballooned cannot take the checkpoint's layout in place.
    @Test func whatCannotBeDoneInPlaceIsDoneByAReplacement() throws {
        let checkpointer = try open()
        let first = try checkpointer.capture().checkpoint
        xen.with(Scene.number) { $0.take(95) }
        let error = failure { _ = try revert(checkpointer, to: first, .inPlace) }
        #expect(error?.code == .sizeMismatch && !exists("destroyed"))
        let result = try revert(checkpointer, to: first, .automatic)
        #expect(result.domainID == 9)
        #expect(result.replacedBecause?.contains("it was ballooned since") == true)
        checkpointer.close()
    }

    /// No domain is destroyed for the checkpoint of another guest.
    @Test(arguments: [XenRevertOptions.Method.automatic, .replace])
    func anotherGuestsCheckpointIsRefused(method: XenRevertOptions.Method) throws {
        let first = try captureOnce()
        xen.with(Scene.number) { $0.facts.handle[0] ^= 1 }
        let checkpointer = try open()
        let error = failure { _ = try revert(checkpointer, to: first, method) }
        #expect(error?.code == .stateRejected && !exists("destroyed"))
        checkpointer.close()
        #expect(xen.complaints(Scene.number).isEmpty)
    }

    @Test func aReplacementThatFailsNamesTheCommand() throws {
        let checkpointer = try open()
        let first = try checkpointer.capture().checkpoint
        do {
            _ = try revert(checkpointer, to: first, .replace, status: 3)
            Issue.record("nothing was thrown")
        } catch let error as CheckpointError {
            #expect(error.message.contains("varve xen restore STORE \(first.id)"))
            #expect(isSentence(error.message), "\(error.message)")
        }
        checkpointer.close()
    }
}
