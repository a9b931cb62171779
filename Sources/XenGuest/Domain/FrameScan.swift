import GuestModel

/// Which frames of a domain have a page.
struct FrameScan: Sendable {
    /// The most frames per hypercall: `XEN_DOMCTL_getpageframeinfo3` refuses more.
    static let batchFrameCount = 1024
    private static let typeMask: UInt = 0xf << 28
    /// `XEN_DOMCTL_PFINFO_XALLOC`, `_BROKEN` and `_XTAB`: nothing to copy.
    private static let typesWithout: Set<UInt> = [0xd << 28, 0xe << 28, 0xf << 28]

    /// The hypervisor's count of the domain's pages at that time.
    let pageCount: Int
    /// One more than the highest frame number at that time.
    let frameCount: Int
    /// The frames that were found.
    let layout: GuestLayout

    /// What is known already.
    init(layout: GuestLayout, pageCount: Int, frameCount: Int) {
        self.layout = layout
        self.pageCount = pageCount
        self.frameCount = frameCount
    }

    /// Queries each frame from 0.
    init(
        _ domain: UInt32, _ calls: any XenCalls, pageCount: Int, frameCount: Int
    ) throws(GuestError) {
        self.pageCount = pageCount
        self.frameCount = frameCount
        var runs: [PageRange] = []
        var first = 0
        while first < frameCount {
            let count = min(FrameScan.batchFrameCount, frameCount - first)
            let frames = (first..<first + count).map { UInt($0) }
            for (index, hasPage) in try FrameScan.havePages(frames, domain, calls).enumerated()
            where hasPage {
                let frame = PageFrameNumber(UInt64(first + index))
                runs.appendJoining(PageRange(first: frame, count: 1))
            }
            first += count
        }
        layout = GuestLayout(runs: runs)
    }

    /// Those of some frames that have a page.
    static func existing(
        _ frames: DirtyBitmap, _ domain: UInt32, _ calls: any XenCalls
    ) throws(GuestError) -> DirtyBitmap {
        var candidates: [UInt] = []
        frames.forEachRun { run in candidates += run.frames.map { UInt($0) } }
        var result = DirtyBitmap()
        while !candidates.isEmpty {
            let batch = Array(candidates.prefix(batchFrameCount))
            candidates.removeFirst(batch.count)
            for (frame, hasPage) in zip(batch, try havePages(batch, domain, calls)) where hasPage {
                result.insert(PageFrameNumber(UInt64(frame)))
            }
        }
        return result
    }

    /// Which of at most 1,024 frames have a page.
    static func havePages(
        _ frames: [UInt], _ domain: UInt32, _ calls: any XenCalls
    ) throws(GuestError) -> [Bool] {
        var types = frames
        try types.withUnsafeMutableBufferPointer { (types) throws(GuestError) in
            try calls.frameTypes(domain, types)
        }
        return types.map { !typesWithout.contains($0 & typeMask) }
    }
}
