import CPageKernels
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore

/// Contents of a checkpoint's pages, verified, in memory.
final class StagedPages {
    private let map: VolumeMap
    private var supply: PageSupply
    private var parts: [StagedPart] = []

    init(map: VolumeMap, supply: PageSupply) {
        self.map = map
        self.supply = supply
    }

    /// Reads the pages of a set that are not staged yet.
    ///
    /// Zero and absent pages need no room.
    ///
    /// - Returns: bytes read from packs.
    func add(_ frames: DirtyBitmap, _ control: WorkControl) throws -> Int {
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        frames.forEachRun { run in
            for number in run.frames where !parts.contains(where: { $0.contains(number) }) {
                let frame = PageFrameNumber(number)
                guard case .present(let digest) = map[frame] else { continue }
                pages.append((frame, digest))
            }
        }
        guard !pages.isEmpty else { return 0 }
        var present = DirtyBitmap(frameEnd: UInt64(frames.words.count) * 64)
        for page in pages { present.insert(page.frame) }
        let part = StagedPart(present)
        supply.control = control
        let byteCount = try supply.read(pages, into: part)
        parts.append(part)
        return byteCount
    }

    /// Overwrites live pages with the checkpoint's, in place.
    ///
    /// - Returns: the number of pages that differed.
    func put(_ range: PageRange, to live: UnsafeMutableRawBufferPointer) -> Int {
        var written = 0
        forEachDiffering(range, from: live) { frame, page in
            copy(frame, to: page)
            written += 1
        }
        return written
    }

    /// Calls `body` with the frames whose live pages differ from the checkpoint's, and those pages.
    func forEachDiffering(
        _ range: PageRange, from live: UnsafeMutableRawBufferPointer,
        _ body: (PageFrameNumber, UnsafeMutableRawBufferPointer) -> Void
    ) {
        var position = 0
        for number in range.frames {
            let page = UnsafeMutableRawBufferPointer(
                rebasing: live[position..<position + Page.byteCount])
            position += Page.byteCount
            if differs(place(number), from: UnsafeRawBufferPointer(page)) {
                body(PageFrameNumber(number), page)
            }
        }
    }

    /// Prefetches a frame's page into the caches.
    func prefetch(_ frame: PageFrameNumber) { ckernels_prefetch(place(frame.rawValue)) }

    /// Copies the checkpoint's page to `page`.
    func copy(_ frame: PageFrameNumber, to page: UnsafeMutableRawBufferPointer) {
        guard let place = place(frame.rawValue) else {
            page.initializeMemory(as: UInt8.self, repeating: 0)
            return
        }
        page.copyMemory(from: UnsafeRawBufferPointer(start: place, count: Page.byteCount))
    }

    /// The address of a frame's page; nil: it is zero, or not in the layout.
    private func place(_ frame: UInt64) -> UnsafeRawPointer? {
        for part in parts where part.contains(frame) { return UnsafeRawPointer(part.page(frame)) }
        return nil
    }

    private func differs(_ place: UnsafeRawPointer?, from live: UnsafeRawBufferPointer) -> Bool {
        guard let place else { return !ckernels_is_zero(live.baseAddress, Page.byteCount) }
        return !ckernels_is_equal(place, live.baseAddress, Page.byteCount)
    }
}

/// Memory for the pages of a set, in the order of frames.
private final class StagedPart: PageTarget {
    private let frames: DirtyBitmap
    /// For each word of the set, the number of frames before it.
    private let ranks: [Int]
    // Each page is filled by one thread, then read; freed with this.
    private nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer

    init(_ frames: DirtyBitmap) {
        self.frames = frames
        var ranks: [Int] = []
        ranks.reserveCapacity(frames.words.count)
        var count = 0
        for word in frames.words {
            ranks.append(count)
            count += word.nonzeroBitCount
        }
        self.ranks = ranks
        bytes = PageMemory.allocate(byteCount: count * Page.byteCount)
    }

    deinit { PageMemory.deallocate(bytes) }

    func contains(_ frame: UInt64) -> Bool { frames.contains(PageFrameNumber(frame)) }

    /// The memory of a frame of the set.
    func page(_ frame: UInt64) -> UnsafeMutableRawPointer {
        let word = Int(frame / 64)
        let below = frames.words[word] & ((1 << (frame % 64)) - 1)
        let rank = ranks[word] + below.nonzeroBitCount
        return bytes.baseAddress.unsafelyUnwrapped + rank * Page.byteCount
    }

    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? {
        // Consecutive frames that are all in the set are contiguous.
        UnsafeMutableRawBufferPointer(start: page(range.first.rawValue), count: range.byteCount)
    }

    func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) {
        if isPlaced { return }
        page(range.first.rawValue).copyMemory(
            from: bytes.baseAddress.unsafelyUnwrapped, byteCount: range.byteCount)
    }
}
