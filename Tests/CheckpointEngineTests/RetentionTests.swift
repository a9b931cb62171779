import CheckpointEngine
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

/// A ring of checkpoints that is thinned while it is captured.
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

    @Test func aRingStaysBoundedAndWhole() throws {
        let directory = TemporaryDirectory()
        let repository = try open(directory)
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
        var random = TestSeed.generator(900)
        var options = CaptureOptions()
        options.retention = Retention(RetentionPolicy(keepLast: 4))
        options.retention?.interval = .zero
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "ring", options: options)
        var copy: [UInt64: [UInt8]] = [:]
        var copies: [CheckpointID: [UInt64: [UInt8]]] = [:]
        var labelled: CheckpointID?
        let count = 400
        for index in 0..<count {
            write(guest, &copy, &random)
            let result = try session.capture(label: index == 7 ? "kept" : nil)
            copies[result.checkpoint.id] = copy
            if index == 7 { labelled = result.checkpoint.id }
        }
        session.close()
        let report = try #require(session.retentionReport)
        let kept = try repository.checkpoints(lineage: "ring")
        #expect(kept.count == 5 && kept.first?.id == labelled)
        #expect(report.forgottenCount == count - 5)
        #expect(report.failureCount == 0, "\(String(describing: report.lastFailure))")
        #expect(report.pruneCount > 0 && report.freedByteCount > 20 << 20)
        // 400 captures stored some 37 MB; 5 checkpoints of 1 MiB, and the open pack, are left.
        let stored = try repository.statistics().byteCount
        #expect(stored < 8 << 20, "\(stored) bytes are left")
        for checkpoint in kept {
            let other = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
            _ = try Restore.run(checkpoint, from: repository, into: other)
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
        let keeper = RetentionKeeper(
            Retention(RetentionPolicy(keepLast: 1)), of: repository, lineage: "ring")
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 8))
        let session = try CaptureSession(of: guest, in: repository, lineage: "ring")
        for _ in 0..<3 { _ = try session.capture() }
        session.close()
        // A closed repository forgets nothing.
        try repository.close()
        keeper.close()
        #expect(keeper.report.failureCount == 1 && keeper.report.forgottenCount == 0)
        #expect(keeper.report.lastFailure?.code == .readOnly)
        #expect(try repository.checkpoints(lineage: "ring").count == 3)
    }
}
