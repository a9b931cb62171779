import CheckpointEngine
import CheckpointFormat
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import CheckpointUpkeep
@testable import PackStore

/// The size of a store after a prune.
@Suite struct PruneSizeTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    /// Of 16 images 13 are forgotten; the rest is compared with a store that only ever had the
    /// others.
    @Test(arguments: [(0.0, 1.03), (5, 1.10)])
    func whatIsLeftIsLikeAFreshStore(percent: Double, ratio: Double) throws {
        // The ratio of pack size to store size is that of 64 MiB packs to a store of 160 MiB.
        let packByteCount = 4 << 20
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 1024))
        var random = TestSeed.generator(930)
        // In runs, as guests write: a block that is needed in part frees nothing.
        func change(_ runs: Int) {
            for _ in 0..<runs {
                let first = UInt64.random(in: 0..<32, using: &random) * 32
                for frame in first..<first + 32 {
                    let page = PruneTests.noise(&random)
                    guest.with { $0.write(frame, page) }
                }
            }
        }
        func open(_ name: String) throws -> (Repository, CaptureSession) {
            let path = directory.path.appending(name)
            try Repository.create(at: path).close()
            let repository = try Repository.open(
                at: path, .writing, files: PosixFiles(root: path), packByteCountMax: packByteCount)
            return (repository, try CaptureSession(of: guest, in: repository, lineage: "web"))
        }
        let (used, session) = try open("used")
        var images: [[UInt64: [UInt8]]] = []
        var gone: [CheckpointID] = []
        change(300)
        for step in 0..<16 {
            change(8)
            let id = try session.capture().checkpoint.id
            if [5, 10, 15].contains(step) {
                images.append(guest.with { $0.pages })
            } else {
                gone.append(id)
            }
        }
        session.close()
        try used.forget(gone)
        try used.planPrune(PruneOptions(unusedPercentMax: percent)).execute()
        #expect(try used.verify().isClean)
        try used.close()
        let (fresh, other) = try open("fresh")
        for image in images {
            for (frame, page) in image {
                guest.with { if $0.pages[frame] != page { $0.write(frame, page) } }
            }
            _ = try other.capture()
        }
        other.close()
        try fresh.close()
        let sizes = try ["used", "fresh"].map { name in
            let packs = directory.path.appending(name).appending("packs").string
            return try FileManager.default.contentsOfDirectory(atPath: packs).reduce(0) {
                let attributes = try FileManager.default.attributesOfItem(atPath: "\(packs)/\($1)")
                return $0 + (attributes[.size] as? Int ?? 0)
            }
        }
        print("3 of 16 images: \(sizes[0]) bytes of packs, \(sizes[1]) in a fresh store")
        #expect(Double(sizes[0]) <= ratio * Double(sizes[1]))
    }

    /// A prune after a capture finds the previous checkpoint unleased.
    ///
    /// The interval in question is short: only some of these captures hit it.
    @Test func whenACheckpointIsThereItsParentIsFree() throws {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 16))
        let repository = try Repository.create(at: path)
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        for step in 0..<500 {
            guest.with { $0.write(3, [UInt8](repeating: UInt8(step % 251), count: 4096)) }
            let id = try session.capture().checkpoint.id
            let holds = repository.activity.read { Array($0.sessionLeases.keys) }
            try #require(holds == [id], "capture \(step)")
        }
    }
}
