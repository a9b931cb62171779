import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import LMDBTables

@Suite struct IndexPacingTests {
    /// One round through a file of any size covers every byte once.
    @Test(arguments: [1, 4096, 300_000, 1 << 20, 579_018_752] as [UInt64])
    func everyByteHasItsTurn(byteCount: UInt64) {
        var random = TestSeed.generator(9_300)
        var pacing = WritebackPacing()
        var waited = Duration.zero
        var end: UInt64 = 0
        while end < byteCount {
            let elapsed = Duration.microseconds(.random(in: 1...50_000, using: &random))
            waited += elapsed
            guard let share = pacing.share(after: elapsed, of: byteCount) else { continue }
            #expect(share.lowerBound == end, "shares follow each other")
            #expect(!share.isEmpty && share.upperBound <= byteCount)
            end = share.upperBound
        }
        // The last part, however small, waits until it is worth a call.
        let least = min(WritebackPacing.shareByteCountMin, byteCount)
        let wait = WritebackPacing.roundDuration * (Double(least) / Double(byteCount))
        #expect(waited <= WritebackPacing.roundDuration + wait + .milliseconds(50))
        let next = pacing.share(after: WritebackPacing.roundDuration, of: byteCount)
        #expect(next == 0..<byteCount, "and then from the beginning")
    }

    @Test func aFileThatWasMadeAnewBeginsAtItsBeginning() {
        var pacing = WritebackPacing()
        _ = pacing.share(after: WritebackPacing.roundDuration / 2, of: 100 << 20)
        #expect(pacing.share(after: WritebackPacing.roundDuration, of: 1 << 20) == 0..<1 << 20)
        #expect(pacing.share(after: .seconds(1), of: 0) == nil)
    }
}
