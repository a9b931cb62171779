import SoakRuns
import SystemPackage
import Testing
import VarveTestSupport

/// A few seconds of what Scripts/soak runs for hours.
@Suite struct SoakTests {
    @Test func aRandomWalkLosesNothing() throws {
        var walk = try RandomWalk(seed: TestSeed.value)
        for _ in 0..<(TestSeed.isLong ? 20_000 : 1000) { try walk.step() }
        try walk.checkAll()
        print(walk.summary)
    }

    @Test func aStoreThatIsPrunedMeanwhileStaysSmall() throws {
        let directory = TemporaryDirectory()
        let count = TestSeed.isLong ? 2000 : 300
        let result = try StoreSoak(
            at: directory.path.appending("store"), checkpointCount: count, seed: TestSeed.value
        ).run()
        #expect(result.restoredCount >= count / 10)
        // 2,000 pages, and the metadata of 200 and some checkpoints of 20 pages.
        #expect(result.byteCountMax < 40 << 20)
    }
}
