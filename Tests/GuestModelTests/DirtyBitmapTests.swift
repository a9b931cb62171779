import GuestModel
import Testing
import VarveTestSupport

/// Compares the bitmap with a set of numbers.
@Suite struct DirtyBitmapTests {
    @Test(arguments: 0..<50)
    func agreesWithASet(round: Int) {
        var random = TestSeed.generator(UInt64(100 + round))
        var bitmap = DirtyBitmap(frameEnd: .random(in: 0...300, using: &random))
        var set: Set<UInt64> = []
        for _ in 0..<60 {
            let range = PageRange(
                first: PageFrameNumber(.random(in: 0..<500, using: &random)),
                count: .random(in: 1...150, using: &random))
            var other = DirtyBitmap()
            other.insert(range)
            switch Int.random(in: 0..<6, using: &random) {
            case 0:
                bitmap.insert(range.first)
                set.insert(range.first.rawValue)
            case 1:
                bitmap.remove(range)
                set.subtract(range.frames)
            case 2:
                bitmap.subtract(other)
                set.subtract(range.frames)
            case 3 where round % 3 == 0:
                bitmap.formIntersection(other)
                set.formIntersection(range.frames)
            case 4:
                bitmap.formUnion(other)
                set.formUnion(range.frames)
            default:
                bitmap.insert(range)
                set.formUnion(range.frames)
            }
            check(bitmap, set, &random)
        }
    }

    private func check(
        _ bitmap: DirtyBitmap, _ set: Set<UInt64>, _ random: inout SeededGenerator
    ) {
        #expect(bitmap.count == set.count)
        #expect(bitmap.isEmpty == set.isEmpty)
        let limit = Int.random(in: 1...100, using: &random)
        let runs = bitmap.runs(limit: limit)
        #expect(runs.flatMap { Array($0.frames) } == set.sorted())
        #expect(runs.allSatisfy { $0.count <= limit })
        for (left, right) in zip(bitmap.runs(), bitmap.runs().dropFirst()) {
            #expect(left.end < right.first, "runs are as long as can be")
        }
        for frame in 0..<700 as Range<UInt64> {
            #expect(bitmap.contains(PageFrameNumber(frame)) == set.contains(frame))
        }
    }

    @Test func equalityIgnoresRoom() {
        var small = DirtyBitmap(frameEnd: 10)
        var large = DirtyBitmap(frameEnd: 10_000)
        #expect(small == large)
        small.insert(PageFrameNumber(3))
        #expect(small != large)
        large.insert(PageFrameNumber(3))
        #expect(small == large && large == small)
    }

    @Test func mergesRawWords() {
        var bitmap = DirtyBitmap()
        bitmap.formUnion(words: ([0b101, 1 << 63] as [UInt64]).span, firstWord: 2)
        #expect(bitmap.runs().flatMap { Array($0.frames) } == [128, 130, 255])
    }
}

@Suite struct GuestLayoutTests {
    @Test func joinsAndSortsRuns() {
        let layout = GuestLayout(runs: [
            PageRange(first: PageFrameNumber(100), count: 5),
            PageRange(first: PageFrameNumber(0), count: 10),
            PageRange(first: PageFrameNumber(10), count: 2),
        ])
        #expect(layout.runs.map(\.count) == [12, 5])
        #expect(layout.pageCount == 17)
        #expect(layout.frameEnd == 105)
        let frames = (0..<120).filter { layout.contains(PageFrameNumber($0)) }
        #expect(frames == Array(0..<12) + Array(100..<105))
    }

    @Test func emptyHasNothing() {
        #expect(GuestLayout(pageCount: 0) == .empty)
        #expect(!GuestLayout.empty.contains(PageFrameNumber(0)))
        #expect(GuestLayout.empty.frameEnd == 0)
    }
}

@Suite struct PageDigestTests {
    @Test func bytesAndTextComeBack() throws {
        let bytes = (0..<32).map { UInt8($0 * 7) }
        let digest = PageDigest(bytes: bytes)
        #expect(digest.bytes == bytes)
        #expect(digest.description.hasPrefix("00070e15"))
        #expect(PageDigest(hexadecimal: digest.description) == digest)
        #expect(PageDigest(hexadecimal: digest.description.dropLast()) == nil)
        #expect(PageDigest(hexadecimal: String(repeating: "g", count: 64)) == nil)
    }
}

@Suite struct PausedGuestTests {
    private struct Trouble: Error {}

    @Test func leavingAScopeResumes() throws {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 1))
        func fail() throws {
            let paused = try PausedGuest(pausing: guest)
            #expect(guest.pausesOpen == 1)
            if guest.pausesOpen == 1 { throw Trouble() }
            try paused.resume()
        }
        #expect(throws: Trouble.self) { try fail() }
        #expect(guest.pausesOpen == 0)
    }

    @Test func aFailedResumeIsTriedOnceMore() throws {
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 1))
        let paused = try PausedGuest(pausing: guest)
        guest.failCall(0)
        try paused.resume()
        #expect(guest.pausesOpen == 0)
    }
}
