import CheckpointStore
import GuestModel

// Does the dirty log name every page that was written? A capture can look at a random sample of the
// pages that it calls clean:
//
//   before the pause   frames are drawn from the layout
//   in the pause       those that the final log names are left out; the others are copied to the
//                      ring: what they hold at the very moment of the checkpoint
//   afterwards         they are digested and compared with the finished page map
//
// So a page that is written after the guest runs again is no miss, and nothing slow is done in the
// pause. A miss fails the capture before it is published: its page map is known to be wrong.

/// What an audit of the dirty log came to.
public struct CaptureAudit: Hashable, Sendable {
    /// Pages that were looked at.
    public let sampledPageCount: Int
    /// Pages that the log called clean, of which they were drawn.
    public let cleanPageCount: Int
    /// Of those looked at, pages that had been written all the same.
    public let missedPageCount: Int

    /// With which probability a sample of this size finds that the log misses at least one page, if
    /// it misses so many.
    ///
    /// Drawn without putting back: 1 - C(N - m, n) / C(N, n) for n of N pages and m missed ones.
    public func probabilityOfFinding(missedPages count: Int) -> Double {
        guard count > 0, sampledPageCount > 0 else { return 0 }
        guard count <= cleanPageCount - sampledPageCount else { return 1 }
        // The smaller of the two factors: n and m may change places.
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

    /// Draws frames of a layout, each set of them as likely as any other.
    init(_ layout: GuestLayout, count: Int) {
        let total = layout.pageCount
        var drawn: Set<Int> = []
        if count >= total {
            drawn = Set(0..<total)
        } else {
            // Floyd: as many numbers as are wanted, and no list of all.
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

    /// Those that exist and are clean, as ascending runs.
    func runs(in layout: GuestLayout, outside dirty: DirtyBitmap) -> [PageRange] {
        var runs: [PageRange] = []
        for frame in frames where !dirty.contains(frame) && layout.contains(frame) {
            if let last = runs.last, last.end == frame {
                runs[runs.count - 1] = PageRange(first: last.first, count: last.count + 1)
            } else {
                runs.append(PageRange(first: frame, count: 1))
            }
        }
        return runs
    }
}

/// Pages that the log called clean, as they were in the pause.
struct AuditSample: Sendable {
    let batches: [StagedBatch]
    let cleanPageCount: Int

    /// Compares them with what the checkpoint says of them.
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
