import CheckpointFormat
import GuestModel
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import PackStore

/// The map updates its counts, its layout and its tree as it changes; the oracle recounts them.
@Suite struct PageMapTests {
    @Test(arguments: [false, true]) func keepsUpWithEveryChange(isInFile: Bool) throws {
        var random = TestSeed.generator(31)
        // Some frames lie in chunks of their own.
        let frameEnd: UInt64 = 64 * 64 * 20
        let directory = TemporaryDirectory()
        let place = try ScratchMemoryTests.place(directory, ownByteCountMax: 0)
        let map = VolumeMap(in: isInFile ? place : .process)
        defer { #expect((map.byteCounts.file > 0) == isInFile) }
        var model: [UInt64: PageContent] = [:]
        for step in 0..<2000 {
            if step % 70 == 69 { map.releasePages() }
            if step % 100 == 99 {
                PageMapTests.adopt(PageMapTests.layout(frameEnd, &random), map, &model)
            } else if step % 20 == 7 {
                PageMapTests.setZero(PageMapTests.range(frameEnd, &random), map, &model)
            } else if step % 50 == 11 {
                PageMapTests.remove(PageMapTests.range(frameEnd, &random), map, &model)
            } else {
                let frame = UInt64.random(in: 0..<frameEnd, using: &random)
                let content: PageContent =
                    switch Int.random(in: 0..<4, using: &random) {
                    case 0: .absent
                    case 1: .zero
                    default: .present(PageMapTests.digest(&random))
                    }
                let old = model[frame] ?? .absent
                #expect(map.set(PageFrameNumber(frame), content) == (old != content))
                model[frame] = content == .absent ? nil : content
            }
            #expect(map.pageCount == model.count)
            #expect(map.zeroPageCount == model.values.count { $0 == .zero })
            let range = PageMapTests.range(frameEnd + 200, &random)
            #expect(
                map.zeroCount(from: range.first, atMost: range.count)
                    == range.frames.prefix { model[$0] == .zero }.count)
            #expect(
                map.absentCount(from: range.first, atMost: range.count)
                    == range.frames.prefix { model[$0] == nil }.count)
            guard step % 37 == 0 || step % 100 == 99 || step % 20 == 7 else { continue }
            PageMapTests.check(map, model)
        }
    }

    /// Compares the layout and the root with those of a map that is built at once.
    private static func check(_ map: VolumeMap, _ model: [UInt64: PageContent]) {
        var frames = DirtyBitmap()
        let fresh = VolumeMap()
        for (frame, content) in model {
            frames.insert(PageFrameNumber(frame))
            fresh.set(PageFrameNumber(frame), content)
        }
        #expect(map.layout == GuestLayout(runs: frames.runs()))
        #expect(map.root() == fresh.root())
        #expect(map.difference(from: fresh).isEmpty)
    }

    /// Trees of the same and of different heights, against a comparison of every frame.
    @Test func findsWhatDiffersBetweenTwoMaps() throws {
        var random = TestSeed.generator(33)
        for _ in 0..<60 {
            var models: [[UInt64: PageContent]] = [[:], [:]]
            for _ in 0..<Int.random(in: 0...200, using: &random) {
                let height = UInt64.random(in: 1...4, using: &random)
                let frame = UInt64.random(in: 0..<1 << (6 * height), using: &random)
                let content: PageContent =
                    Bool.random(using: &random) ? .zero : .present(PageMapTests.digest(&random))
                // Most are in both.
                let which = Int.random(in: 0..<8, using: &random)
                for number in 0..<2 where which != number { models[number][frame] = content }
            }
            let maps = models.map { model in
                let map = VolumeMap()
                for (frame, content) in model { map.set(PageFrameNumber(frame), content) }
                return map
            }
            let frames = Set(models[0].keys).union(models[1].keys)
            var expected = DirtyBitmap()
            for frame in frames where models[0][frame] != models[1][frame] {
                expected.insert(PageFrameNumber(frame))
            }
            #expect(maps[0].difference(from: maps[1]) == expected)
            #expect(maps[1].difference(from: maps[0]) == expected)
            #expect(maps[0].differingRuns(from: maps[1]) == expected.runs())
        }
    }

    private static func remove(
        _ range: PageRange, _ map: VolumeMap, _ model: inout [UInt64: PageContent]
    ) {
        var gone = DirtyBitmap()
        var held: [UInt64: PageDigest] = [:]
        for frame in range.frames {
            guard let content = model.removeValue(forKey: frame) else { continue }
            gone.insert(PageFrameNumber(frame))
            if case .present(let digest) = content { held[frame] = digest }
        }
        var (removed, replaced) = (DirtyBitmap(), [UInt64: PageDigest]())
        map.remove(range) {
            replaced[$0.rawValue] = $1
        } changed: {
            removed.insert(wordIndex: $0, mask: $1)
        }
        #expect(removed == gone && replaced == held)
    }

    private static func setZero(
        _ range: PageRange, _ map: VolumeMap, _ model: inout [UInt64: PageContent]
    ) {
        var (lost, changed): ([UInt64: PageDigest], DirtyBitmap) = ([:], DirtyBitmap())
        map.setZero(range) { frame, digest in
            lost[frame.rawValue] = digest
        } changed: { word, mask in
            changed.insert(wordIndex: word, mask: mask)
        }
        var (expectedLost, expected): ([UInt64: PageDigest], DirtyBitmap) = ([:], DirtyBitmap())
        for frame in range.frames where model[frame] != .zero {
            if case .present(let digest) = model[frame] { expectedLost[frame] = digest }
            expected.insert(PageFrameNumber(frame))
            model[frame] = .zero
        }
        #expect(lost == expectedLost)
        #expect(changed == expected)
    }

    private static func range(_ frameEnd: UInt64, _ random: inout SeededGenerator) -> PageRange {
        let first = UInt64.random(in: 0..<frameEnd, using: &random)
        let count = Int.random(in: 1...Int(min(frameEnd - first, 700)), using: &random)
        return PageRange(first: PageFrameNumber(first), count: count)
    }

    /// Zero frames may come as runs or one by one, and the parts are the same.
    @Test func zerosByTheRunMakeTheSameParts() throws {
        var random = TestSeed.generator(32)
        for _ in 0..<20 {
            var (byRun, byFrame): ([MapPart], [MapPart]) = ([], [])
            var runs = MapBuilder { (part) throws(RepositoryError) in byRun.append(part) }
            var frames = MapBuilder { (part) throws(RepositoryError) in byFrame.append(part) }
            var next: UInt64 = 0
            for _ in 0..<12 {
                next += UInt64.random(in: 0..<3, using: &random)
                let many = Bool.random(using: &random)
                let count = Int.random(in: 1...(many ? 300_000 : 5), using: &random)
                let range = PageRange(first: PageFrameNumber(next), count: count)
                try runs.append(range, .zero)
                for frame in range.frames {
                    try frames.append(PageFrameNumber(frame), .zero, ordinal: nil)
                }
                next = range.end.rawValue
                let digest = PageMapTests.digest(&random)
                for ordinal in [7, 8, nil] as [UInt32?] {
                    let frame = PageFrameNumber(next)
                    try runs.append(frame, .present(digest), ordinal: ordinal)
                    try frames.append(frame, .present(digest), ordinal: ordinal)
                    next += 1
                }
            }
            try runs.finish()
            try frames.finish()
            #expect(byRun == byFrame)
            #expect(
                byRun.allSatisfy { part in
                    part.runs.reduce(0) { $0 + $1.range.count } <= MapPart.frameCountMax
                })
        }
    }

    private static func adopt(
        _ layout: GuestLayout, _ map: VolumeMap, _ model: inout [UInt64: PageContent]
    ) {
        var changed = DirtyBitmap()
        var adopted: [UInt64: PageContent] = [:]
        for run in layout.runs {
            for frame in run.frames {
                adopted[frame] = model[frame] ?? .zero
                if model[frame] == nil { changed.insert(PageFrameNumber(frame)) }
            }
        }
        for frame in model.keys where adopted[frame] == nil {
            changed.insert(PageFrameNumber(frame))
        }
        #expect(map.adopt(layout) == changed)
        #expect(map.adopt(layout).isEmpty)
        model = adopted
    }

    private static func layout(
        _ frameEnd: UInt64, _ random: inout SeededGenerator
    ) -> GuestLayout {
        var frames = DirtyBitmap()
        for _ in 0..<4 {
            let first = UInt64.random(in: 0..<frameEnd, using: &random)
            let count = Int.random(in: 1...1500, using: &random)
            frames.insert(PageRange(first: PageFrameNumber(first), count: count))
        }
        return GuestLayout(runs: frames.runs())
    }

    private static func digest(_ random: inout SeededGenerator) -> PageDigest {
        PageDigest(
            bytes: (0..<PageDigest.byteCount).map { _ in
                UInt8(truncatingIfNeeded: random.next())
            })
    }
}
