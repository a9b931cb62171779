import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@Suite struct MemoryRangeTests {
    private let directory = TemporaryDirectory(inMemory: true)
    /// Two runs with a hole between them.
    private let layout = GuestLayout(runs: [
        PageRange(first: PageFrameNumber(3), count: 90),
        PageRange(first: PageFrameNumber(200), count: 40),
    ])

    /// A chain of checkpoints, and the memory at each, from address 0 on.
    private func chain(
        _ generator: inout SeededGenerator
    ) throws -> (Repository, [(checkpoint: Checkpoint, memory: [UInt8])]) {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: layout)
        let session = try CaptureSession(of: guest, in: repository, lineage: "a")
        var result: [(Checkpoint, [UInt8])] = []
        for _ in 0..<6 {
            for _ in 0..<20 {
                let run = layout.runs[Int.random(in: 0..<2, using: &generator)]
                let frame = UInt64.random(in: run.frames, using: &generator)
                let page = (0..<Page.byteCount).map { UInt8(truncatingIfNeeded: $0 * Int(frame)) }
                let first = UInt8.random(in: 0 ... .max, using: &generator)
                guest.with { $0.write(frame, [first] + page.dropFirst()) }
            }
            let checkpoint = try session.capture().checkpoint
            let memory = guest.with { state in
                (0..<256).flatMap {
                    state.pages[$0] ?? [UInt8](repeating: 0, count: Page.byteCount)
                }
            }
            result.append((checkpoint, memory))
        }
        session.close()
        return (repository, result)
    }

    @Test func everyRangeEqualsTheMemoryOfItsMoment() throws {
        var generator = TestSeed.generator(61)
        let (repository, chain) = try chain(&generator)
        for (checkpoint, memory) in chain {
            let reader = try VolumeReader(checkpoint, from: repository)
            for _ in 0..<200 {
                let start = Int.random(in: 0..<memory.count, using: &generator)
                let longest = min(memory.count - start, 5 * Page.byteCount)
                let count = Int.random(in: 0...longest, using: &generator)
                var bytes = [UInt8](repeating: 0xAA, count: count)
                var elements = bytes.mutableSpan
                var span = elements.mutableBytes
                try reader.readBytes(at: UInt64(start), into: &span)
                #expect(bytes[...] == memory[start..<start + count], "from \(start), \(count)")
            }
        }
    }

    @Test func aRangeOfTheWholeGuestHasHolesAsZeros() throws {
        var generator = TestSeed.generator(61)
        let (repository, chain) = try chain(&generator)
        let reader = try VolumeReader(chain[5].checkpoint, from: repository)
        var bytes = [UInt8](repeating: 0xAA, count: 256 * Page.byteCount)
        var elements = bytes.mutableSpan
        var span = elements.mutableBytes
        try reader.read(PageRange(first: PageFrameNumber(0), count: 256), into: &span)
        #expect(bytes == chain[5].memory)
    }

    @Test(arguments: [UInt64(1) << 44, UInt64.max - 9000, UInt64.max - 4096, UInt64.max])
    func addressesBeyondTheGuestReadAsZerosOrAreRefused(address: UInt64) throws {
        var generator = TestSeed.generator(61)
        let (repository, chain) = try chain(&generator)
        let reader = try VolumeReader(chain[0].checkpoint, from: repository)
        var bytes = [UInt8](repeating: 0xAA, count: 6000)
        var elements = bytes.mutableSpan
        var span = elements.mutableBytes
        if address > UInt64.max - 8000 {
            do throws(CheckpointError) {
                try reader.readBytes(at: address, into: &span)
                Issue.record("bytes beyond the last address were read")
            } catch {
                #expect(error.code == .sizeMismatch)
            }
        } else {
            try reader.readBytes(at: address, into: &span)
            #expect(bytes.allSatisfy { $0 == 0 })
        }
    }

    /// A reader protects its checkpoint from prune.
    @Test func aForgottenCheckpointIsReadToItsEnd() throws {
        var generator = TestSeed.generator(61)
        let (repository, chain) = try chain(&generator)
        let reader = try VolumeReader(chain[2].checkpoint, from: repository)
        try repository.forget(chain.prefix(5).map(\.checkpoint.id))
        _ = try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
        var bytes = [UInt8](repeating: 0xAA, count: 256 * Page.byteCount)
        var elements = bytes.mutableSpan
        var span = elements.mutableBytes
        try reader.readBytes(at: 0, into: &span)
        #expect(bytes == chain[2].memory)
    }
}
