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

/// Forget: what is removed, what is kept, and that the packs alone are enough to tell.
@Suite struct ForgetTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    /// A chain of checkpoints of one lineage, each with the label of its number, and their pages.
    private func chain(_ count: Int) throws -> [[UInt64: [UInt8]]] {
        try Repository.create(at: path).close()
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 64)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        var copies: [[UInt64: [UInt8]]] = []
        for step in 0..<count {
            guest.with { guest in
                for frame in 0..<8 as Range<UInt64> {
                    let place = (frame * 7 + UInt64(step) * 3) % 64
                    guest.write(place, [UInt8](repeating: UInt8(step + 1), count: Page.byteCount))
                }
            }
            _ = try session.capture(label: Label("step\(step)"))
            copies.append(guest.with { $0.pages })
        }
        session.close()
        try repository.close()
        return copies
    }

    private func check(_ copies: [[UInt64: [UInt8]]], gone: Set<Int>) throws {
        let repository = try Repository.open(at: path, .reading)
        #expect(
            try repository.checkpoints().compactMap(\.label?.text)
                == copies.indices.filter { !gone.contains($0) }.map { "step\($0)" })
        for (step, copy) in copies.enumerated() {
            if gone.contains(step) {
                #expect(throws: RepositoryError.self) {
                    try repository.checkpoint(named: "step\(step)")
                }
                continue
            }
            let checkpoint = try repository.checkpoint(named: "step\(step)")
            let guest = SimulatedGuest(layout: .empty)
            _ = try repository.restore(checkpoint, into: guest)
            #expect(guest.with { $0.pages } == copy, "step \(step)")
        }
        #expect(try repository.verify().isClean)
    }

    /// Checkpoints acknowledged since the last one are verified too, before the writer closes.
    @Test func aRecordThatForgetsIsVerifiedAtOnce() throws {
        _ = try chain(3)
        let repository = try Repository.open(at: path, .writing)
        try repository.forget([try repository.checkpoint(named: "step1").id])
        #expect(try repository.verify().isClean)
        let name = path.appending("packs/00000001.pack").string
        let url = URL(fileURLWithPath: name)
        let whole = try Data(contentsOf: url)
        for distance in 1...40 {
            var damaged = whole
            damaged[damaged.count - distance] ^= 0x10
            try damaged.write(to: url)
            #expect(try !repository.verify().isClean, "\(distance) bytes before the end")
        }
        try whole.write(to: url)
        #expect(try repository.verify().isClean)
    }

    @Test(arguments: [[0], [4], [8], [0, 1, 2, 3], [1, 3, 5, 7], [0, 8], [5, 6, 7, 8]])
    func theOthersAreWhatTheyWere(steps: [Int]) throws {
        let copies = try chain(9)
        let repository = try Repository.open(at: path, .writing)
        let before = try repository.checkpoints()
        try repository.forget(steps.map { before[$0].id })
        let newest = try repository.newest(ofLineage: "web")
        #expect(newest == before.indices.last { !steps.contains($0) }.map { before[$0] })
        try repository.close()
        try check(copies, gone: Set(steps))
        // The packs alone give the same result.
        try FileManager.default.removeItem(atPath: path.appending("index").string)
        try check(copies, gone: Set(steps))
    }

    @Test func whatIsNotThereFailsAndForgetsNothing() throws {
        let copies = try chain(4)
        let repository = try Repository.open(at: path, .writing)
        let ids = try repository.checkpoints().map(\.id)
        try repository.forget([ids[1], ids[1]])
        #expect(throws: RepositoryError.self) { try repository.forget([ids[0], ids[1]]) }
        try repository.forget([])
        try repository.close()
        try check(copies, gone: [1])
        let reader = try Repository.open(at: path, .reading)
        #expect(throws: RepositoryError.self) { try reader.forget([ids[0]]) }
        // Names skip it.
        #expect(try reader.checkpoint(named: "web~1").id == ids[2])
        #expect(try reader.checkpoint(named: "web~2").id == ids[0])
        #expect(throws: RepositoryError.self) { try reader.checkpoint(named: "web~3") }
        #expect(throws: RepositoryError.self) {
            try reader.checkpoint(named: String(ids[2].description.prefix(3)))
        }
        #expect(throws: RepositoryError.self) {
            try reader.checkpoint(named: String(ids[1].description.prefix(20)))
        }
    }

    @Test func aSessionGoesOnFromWhatWasForgotten() throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 32)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for step in 0..<6 as Range<UInt8> {
            guest.with { $0.write(UInt64(step), [UInt8](repeating: 9 + step, count: 4096)) }
            let result = try session.capture(label: step == 5 ? "step0" : nil)
            if step < 5 { try repository.forget([result.checkpoint.id]) }
        }
        #expect(try repository.lineages().count == 1)
        session.close()
        try repository.close()
        try check([guest.with { $0.pages }], gone: [])
    }

    @Test func aLabelGoesBackToTheOneBefore() throws {
        try Repository.create(at: path).close()
        let repository = try Repository.open(at: path, .writing)
        let guest = SimulatedGuest(
            layout: GuestLayout(runs: [PageRange(first: PageFrameNumber(0), count: 8)]))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        let ids = try (0..<3).map { _ in try session.capture(label: "same").checkpoint.id }
        #expect(try repository.checkpoint(named: "same").id == ids[2])
        try repository.forget([ids[2]])
        #expect(try repository.checkpoint(named: "same").id == ids[1])
        try repository.forget([ids[0], ids[1]])
        #expect(throws: RepositoryError.self) { try repository.checkpoint(named: "same") }
        #expect(throws: RepositoryError.self) { try repository.checkpoint(named: "web") }
        #expect(try repository.checkpoints().isEmpty)
        #expect(try repository.verify().isClean)
    }
}
