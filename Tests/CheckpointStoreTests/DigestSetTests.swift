import GuestModel
import Testing
import VarveTestSupport

@testable import CheckpointStore

@Suite struct DigestSetTests {
    /// Compares the set with `Set`; some of the digests differ in only one word.
    @Test func holdsWhatASetHolds() {
        var random = TestSeed.generator(9_200)
        var digests = DigestSet()
        for round in 0..<3 {
            var model: Set<PageDigest> = []
            for _ in 0..<20_000 {
                let words = (0..<4).map { _ in UInt64.random(in: 0..<12, using: &random) }
                let spread = Bool.random(using: &random) ? random.next() : 1
                let digest = PageDigest(words: (words[0] &* spread, words[1], words[2], words[3]))
                guard digest != .none else { continue }
                #expect(digests.insert(digest) == model.insert(digest).inserted)
            }
            #expect(digests.count == model.count && model.count > 10_000, "round \(round)")
            #expect(model.allSatisfy { !digests.insert($0) })
            digests.removeAll()
            #expect(digests.count == 0)
        }
    }
}
