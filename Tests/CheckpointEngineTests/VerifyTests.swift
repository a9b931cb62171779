import CheckpointEngine
import CheckpointFormat
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import Testing
import VarveTestSupport

/// What verification finds, and how it reports it.
@Suite struct VerifyTests {
    /// Four checkpoints over several packs; only the last lacks frame 0's first page.
    private func make() throws -> CrashWorld {
        let world = CrashWorld(packByteCountMax: (256 + 80) << 10, seed: 1)
        try world.create()
        for step in 0..<3 {
            world.write("web", (step * 10)..<(step * 10 + 20), value: step)
            try world.capture()
        }
        world.write("web", 0..<1, value: 77)
        try world.capture()
        world.close()
        return world
    }

    private func report(
        _ world: CrashWorld, _ depth: VerifyDepth, _ image: DiskImage
    ) throws -> VerifyReport {
        world.disk.image = image
        let reader = try Repository.open(
            at: world.disk.indexRoot, .reading, files: world.disk.boot())
        return try reader.verify(depth)
    }

    @Test func eachFindingNamesTheCheckpointsThatNeedIt() throws {
        let world = try make()
        let image = world.disk.image
        let ids = world.acknowledged.map(\.id)
        let pack = try #require(image.contents("packs/00000001.pack"))
        var random = TestSeed.generator(31)
        var found = 0
        for _ in 0..<60 {
            var damaged = image
            let byte = Int.random(in: Envelope.byteCount..<pack.count, using: &random)
            let bit = Int.random(in: 0..<8, using: &random)
            _ = damaged.flipBit("packs/00000001.pack", byte: byte, bit: bit)
            let result = try report(world, .full, damaged)
            #expect(!result.isClean, "byte \(byte)")
            let reader = try Repository.open(
                at: world.disk.indexRoot, .reading, files: world.disk.boot())
            for id in ids {
                let restored = SimulatedGuest(layout: .empty)
                let outcome = Result {
                    try reader.restore(try reader.checkpoint(id: id), into: restored)
                }
                let isNamed = result.findings.contains { $0.affectedCheckpoints.contains(id) }
                if case .failure = outcome {
                    found += 1
                    #expect(isNamed, "byte \(byte), checkpoint \(id.short)")
                }
                #expect(result.affectedCheckpoints.contains(id) == isNamed)
            }
        }
        #expect(found > 60, "damage made checkpoints unreadable")
    }

    @Test func theStructureIsCheckedWithoutPages() throws {
        let world = try make()
        let image = world.disk.image
        let whole = try report(world, .structure, image)
        #expect(whole.isClean && whole.pageCount == 0 && whole.checkpointCount == 4)
        let full = try report(world, .full, image)
        #expect(full.isClean && full.pageCount > 40 && whole.byteCount < full.byteCount)
        // The first page group of a sealed pack: 16 pages after the heads.
        var damaged = image
        _ = damaged.flipBit("packs/00000001.pack", byte: 2000, bit: 3)
        #expect(try report(world, .structure, damaged).isClean)
        #expect(try !report(world, .full, damaged).isClean)
        // The pack's index.
        damaged = image
        let size = try #require(image.contents("packs/00000001.pack")).count
        _ = damaged.flipBit("packs/00000001.pack", byte: size - 60, bit: 3)
        #expect(try !report(world, .structure, damaged).isClean)
        damaged = image
        damaged.cutShort("packs/00000002.pack", to: 1000)
        #expect(try !report(world, .structure, damaged).isClean)
    }

    /// A sample finds one damaged block with the reported probability.
    @Test func aSampleFindsWhatItSays() throws {
        let world = try make()
        var damaged = world.disk.image
        _ = damaged.flipBit("packs/00000001.pack", byte: 2000, bit: 3)
        world.disk.image = damaged
        let reader = try Repository.open(
            at: world.disk.indexRoot, .reading, files: world.disk.boot())
        let depth = VerifyDepth.sample(share: 0.25, seed: 1)
        #expect(depth.probabilityOfFinding(damagedBlocks: 1) == 0.25)
        #expect(abs(depth.probabilityOfFinding(damagedBlocks: 10) - 0.9437) < 0.0001)
        var hits = 0
        for seed in 0..<400 {
            let result = try reader.verify(.sample(share: 0.25, seed: UInt64(seed)))
            if !result.isClean { hits += 1 }
        }
        // 100 are expected; five standard deviations are 43.
        #expect((57...143).contains(hits), "\(hits) of 400")
        #expect(try reader.verify(depth).pageCount == reader.verify(depth).pageCount)
    }
}
