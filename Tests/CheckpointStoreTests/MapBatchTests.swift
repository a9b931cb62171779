import CheckpointFormat
import GuestModel
import Testing
import VarveTestSupport

@testable import CheckpointUpkeep

@Suite struct MapBatchTests {
    /// All frames of a kind, in order, however a part divides them, and no others.
    @Test(arguments: [MapRun.Content.storedHere, .storedBefore, .absent])
    func batchesHaveEveryPageOfAKind(_ content: MapRun.Content) {
        var random = TestSeed.generator(77)
        let contents: [MapRun.Content] = [.storedHere, .zero, .storedBefore, .storedHere, .absent]
        let counts = [16_000, 70, 20_000, 17_000, 9]
        var first: UInt64 = 5
        var runs: [MapRun] = []
        var digests: [PageDigest] = []
        var expected: [UInt64: PageDigest] = [:]
        for (kind, count) in zip(contents, counts) {
            let range = PageRange(first: PageFrameNumber(first), count: count)
            runs.append(MapRun(range: range, content: kind))
            for frame in range.frames where kind.hasDigests {
                let digest = PageDigest(words: (frame, random.next(), 0, 1))
                digests.append(digest)
                if kind == content { expected[frame] = digest }
            }
            first += UInt64(count) + 3
        }
        var found: [UInt64] = []
        var sizes: [Int] = []
        MapPart(runs: runs, digests: digests).forEachBatch(content) { batch in
            sizes.append(batch.count)
            for (frame, digest) in batch {
                found.append(frame.rawValue)
                #expect(expected[frame.rawValue] == digest)
            }
        }
        #expect(found == expected.keys.sorted())
        #expect(sizes.dropLast().allSatisfy { $0 == 16_384 } && sizes.allSatisfy { $0 > 0 })
    }
}
