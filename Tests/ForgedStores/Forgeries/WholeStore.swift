import CheckpointEngine
import CheckpointIndex
package import CheckpointStore
import Foundation
import GuestModel
import PackStore
package import SystemPackage
import VarveTestSupport

/// The store from which forgeries are made: several packs, of which prune rewrote one and removed
/// some, an open one, branches, labels, states, and forgotten checkpoints.
package enum WholeStore {
    static let pageCount = 48

    /// Creates it in a new directory.
    ///
    /// - Parameter isPruned: false to leave out the prune: a transaction's records are verified
    ///   only if none were removed since.
    package static func make(at path: FilePath, seed: UInt64, isPruned: Bool = true) throws {
        // With one seed in 20, prune removes packs and rewrites none: rewritten packs would not be
        // tried.
        for attempt in 0..<8 as Range<UInt64> {
            try make(at: path, SeededGenerator(seed: seed &+ attempt << 32), isPruned: isPruned)
            if try !isPruned || ForgedStore(path).packs.contains(where: \.isRewritten) { return }
            try FileManager.default.removeItem(atPath: path.string)
        }
        throw NotRewritten(seed: seed)
    }

    private static func make(
        at path: FilePath, _ random: SeededGenerator, isPruned: Bool
    ) throws {
        var random = random
        try Repository.create(at: path).close()
        let repository = try open(path)
        let web = try capture(repository, "web", 7, &random)
        try repository.forget([web[1].id, web[2].id, web[4].id])
        if isPruned { try repository.planPrune(.everything).execute() }
        let mail = try capture(repository, "mail", 4, &random)
        try repository.forget([mail[1].id])
        try repository.setLabel("kept", of: mail[2].id)
        _ = try capture(repository, "web", 3, &random)
        try repository.close()
    }

    /// Prune has rewritten no pack.
    private struct NotRewritten: Error {
        let seed: UInt64
    }

    /// Packs are sealed early.
    package static func open(_ path: FilePath) throws -> Repository {
        try Repository.open(
            at: path, .writing, files: PosixFiles(root: path),
            packByteCountMax: 256 << 10 + 72 << 10)
    }

    private static func capture(
        _ repository: Repository, _ lineage: String, _ count: Int,
        _ random: inout SeededGenerator
    ) throws -> [Checkpoint] {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: pageCount))
        guest.with { $0.state = GuestState(records: [.init(kind: "cpu", bytes: [1, 2, 3, 4])]) }
        let start = try repository.newest(ofLineage: LineageName(lineage))
        if let start { _ = try repository.restore(start, into: guest) }
        let session = try CaptureSession(
            of: guest, in: repository, lineage: LineageName(lineage), parent: start)
        defer { session.close() }
        return try (0..<count).map { step in
            for index in 0..<(step == 0 && start == nil ? pageCount - 8 : 5) {
                let frame =
                    step == 0 && start == nil
                    ? index : Int.random(in: 0..<pageCount, using: &random)
                let noise = (0..<Page.byteCount / 8).map { word -> UInt64 in
                    word < 160 ? random.next() : 7
                }
                let page = noise.withUnsafeBytes { Array($0) }
                guest.with { $0.write(UInt64(frame), page) }
            }
            return try session.capture(label: step % 2 == 0 ? try Label("\(lineage)-\(step)") : nil)
                .checkpoint
        }
    }
}
