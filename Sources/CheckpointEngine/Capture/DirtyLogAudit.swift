import CheckpointStore
import GuestModel

// Does the dirty log name every page that was written? A capture can check a random sample of the
// pages that it calls clean:
//
//   before the pause   frames are drawn from the layout
//   in the pause       those that the final log names are left out; the others are copied to the
//                      pool, with their contents at the very moment of the checkpoint
//   after the pause    they are digested and compared with the finished page map
//
// So a page that is written after the guest runs again is not a miss, and nothing slow is done in
// the pause. A miss fails the capture before it is published: its page map is known to be wrong.

/// The result of an audit of the dirty log.
public struct CaptureAudit: Hashable, Sendable {
    /// The number of pages that were checked.
    public let sampledPageCount: Int
    /// The number of pages that the log called clean, from which the sample was drawn.
    public let cleanPageCount: Int
    /// The number of checked pages that had been written although the log called them clean.
    public let missedPageCount: Int

    /// The probability that a sample of this size has at least one missed page, if the log misses
    /// `count` pages.
    ///
    /// The sample is drawn without replacement: 1 - C(N - m, n) / C(N, n) for n of N pages, of
    /// which m are missed.
    public func probabilityOfFinding(missedPages count: Int) -> Double {
        guard count > 0, sampledPageCount > 0 else { return 0 }
        guard count <= cleanPageCount - sampledPageCount else { return 1 }
        // Loop over the smaller one: n and m are interchangeable.
        let (steps, other) = (min(count, sampledPageCount), max(count, sampledPageCount))
        var allMissed = 1.0
        for step in 0..<steps {
            allMissed *= Double(cleanPageCount - other - step) / Double(cleanPageCount - step)
        }
        return 1 - allMissed
    }
}

/// Frames drawn for an audit, before it is known which of them are clean.
struct AuditCandidates {
    private let frames: [PageFrameNumber]

    /// Draws frames of a layout; all subsets of this size are equally likely.
    init(_ layout: GuestLayout, count: Int) {
        let total = layout.pageCount
        var drawn: Set<Int> = []
        if count >= total {
            drawn = Set(0..<total)
        } else {
            // Floyd's algorithm: one number per drawn frame, and no list of all frames.
            for limit in total - count..<total {
                let number = Int.random(in: 0...limit)
                if !drawn.insert(number).inserted { drawn.insert(limit) }
            }
        }
        var frames: [PageFrameNumber] = []
        frames.reserveCapacity(drawn.count)
        var runs = layout.runs[...]
        var before = 0
        for number in drawn.sorted() {
            while let run = runs.first, number >= before + run.count {
                before += run.count
                runs.removeFirst()
            }
            guard let run = runs.first else { break }
            frames.append(PageFrameNumber(run.first.rawValue + UInt64(number - before)))
        }
        self.frames = frames
    }

    /// The frames that exist and are clean, as ascending runs.
    func runs(in layout: GuestLayout, outside dirty: DirtyBitmap) -> [PageRange] {
        var runs: [PageRange] = []
        for frame in frames where !dirty.contains(frame) && layout.contains(frame) {
            runs.appendJoining(PageRange(first: frame, count: 1))
        }
        return runs
    }
}

/// Pages that the log called clean, as they were in the pause.
struct AuditSample: Sendable {
    let batches: [StagedBatch]
    let cleanPageCount: Int

    /// Compares them with the checkpoint's page map.
    func compare(with draft: CheckpointDraft) -> CaptureAudit {
        var classifier = PageClassifier()
        var (sampled, missed) = (0, 0)
        for batch in batches {
            let frames = batch.runs.flatMap(\.frames)
            let pages = batch.slot.bytes[..<(frames.count * Page.byteCount)]
            classifier.classify(UnsafeRawBufferPointer(rebasing: pages))
            missed += draft.differing(frames.span, from: classifier.contents.span).count
            sampled += frames.count
        }
        return CaptureAudit(
            sampledPageCount: sampled, cleanPageCount: cleanPageCount, missedPageCount: missed)
    }
}
