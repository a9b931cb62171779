import Foundation
import Glibc
import Measuring
import Varve

/// A repository with a long history of one guest.
final class Chain {
    /// Which pages the guest writes.
    enum Writes: String, CaseIterable {
        /// Pages in a sixteenth of its memory, as programs do.
        case sixteenth
        /// Pages all over its memory: the worst case, where late checkpoints share pages with all
        /// others.
        case everywhere
    }

    let repository: Repository
    private(set) var checkpoints: [Checkpoint] = []
    let byteCount: Int
    /// A guest to restore into; its memory is already touched.
    private let restored = ProcessMemory(tracking: .compareAll)

    /// Takes `count` checkpoints, each after `dirtyCount` random pages were dirtied.
    ///
    /// - Parameter taken: called after each checkpoint but the first, with its number and the
    ///   seconds until it was durable.
    init(
        count: Int, byteCount: Int, dirtyCount: Int, writes: Writes, directory: String,
        taken: (_ number: Int, _ seconds: Double) -> Void = { _, _ in }
    ) throws {
        self.byteCount = byteCount
        repository = try Repository.create(at: FilePath(directory + "/store"))
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: byteCount)
        try GuestContent.fill(region.bytes)
        let session = try CaptureSession(of: memory, in: repository, lineage: "chain")
        checkpoints.append(try session.capture().checkpoint)
        let spread = writes == .sixteenth ? 16 : 1
        var stamp: UInt64 = 1 << 40
        for number in 2...max(2, count) {
            for _ in 0..<dirtyCount {
                let hot = Int.random(in: 0..<region.pages.count / spread)
                // Runs of four pages, as in a real guest.
                GuestContent.stamp(region.bytes, hot / 4 * 4 * spread + hot % 4, stamp)
                stamp += 1
            }
            let start = ContinuousClock.now
            checkpoints.append(try session.capture().checkpoint)
            taken(number, (ContinuousClock.now - start).seconds)
        }
        session.close()
        _ = try restored.allocate(byteCount: byteCount)
    }

    /// Restores the checkpoint with a number; the first one is 1.
    func restore(_ number: Int) throws -> RestoreResult {
        let checkpoint = checkpoints[number - 1]
        let result = try repository.restore(checkpoint, into: restored)
        guard result.root == checkpoint.memory.root else {
            throw Child.Failure(description: "checkpoint \(number) came back different")
        }
        return result
    }

    /// The restored guest's memory.
    var memory: UnsafeMutableRawBufferPointer? { restored.allRegions.first?.bytes }
}
