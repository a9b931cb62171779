import CheckpointIndex
import CheckpointStore
public import GuestModel

// Single pages and ranges of a checkpoint, in any order: for introspection and for serving a
// checkpoint to others. Each read costs as much as the pages it requests; only opening the reader
// takes time in proportion to the guest's size, because the page map is read then.

extension VolumeReader {
    /// The frames that exist and are not zero, as ascending runs that do not touch.
    ///
    /// Takes time in proportion to the page map; nothing is read from the disk.
    package var contentRuns: [PageRange] { map.contentRuns() }

    /// Reads the pages of a range of frames, and verifies each against its digest.
    ///
    /// Frames that do not exist read as zeros; `layout` lists those that do. Blocks for the disk.
    /// The range may have any length. In addition to `destination` the call needs 40 bytes of
    /// memory for each of at most 8,192 pages at a time. It cannot be cancelled.
    ///
    /// When it throws, `destination` holds verified pages, zeros and its previous bytes, and
    /// nothing unverified.
    ///
    /// - Parameters:
    ///   - range: the frames.
    ///   - destination: exactly as long as the range, 4096 bytes for each frame.
    public func read(
        _ range: PageRange, into destination: inout MutableRawSpan
    ) throws(CheckpointError) {
        precondition(
            destination.byteCount == range.byteCount, "the destination is as long as the range")
        do {
            try destination.withUnsafeMutableBytes { try read(range, $0) }
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// Reads bytes of the volume from an address, as `read(_:into:)` reads pages.
    ///
    /// A page of which only a part is requested is read and verified whole.
    ///
    /// - Parameters:
    ///   - address: the first byte; frame n begins at 4096 times n.
    ///   - destination: as long as the bytes to read.
    public func readBytes(
        at address: UInt64, into destination: inout MutableRawSpan
    ) throws(CheckpointError) {
        let pageByteCount = UInt64(Page.byteCount)
        guard destination.byteCount > 0 else { return }
        var frame = address / pageByteCount
        let skipped = Int(address % pageByteCount)
        let pageCount = (UInt64(destination.byteCount) + UInt64(skipped)) / pageByteCount + 1
        guard pageCount <= PageRange.frameLimit - frame else {
            throw CheckpointError(
                .sizeMismatch,
                "\(destination.byteCount) bytes from address 0x\(String(address, radix: 16)) on "
                    + "end beyond 2^64; request less")
        }
        do {
            try destination.withUnsafeMutableBytes { bytes in
                var done = 0
                // The end of a page, whole pages, the beginning of a page.
                while done < bytes.count {
                    let rest = UnsafeMutableRawBufferPointer(rebasing: bytes[done...])
                    let inPage = done == 0 ? skipped : 0
                    let count = try readFirst(PageFrameNumber(frame), inPage, rest)
                    frame += UInt64((inPage + count) / Page.byteCount)
                    done += count
                }
            }
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// Reads the first bytes of a request: whole pages, or a part of one.
    ///
    /// - Returns: the byte count.
    private func readFirst(
        _ frame: PageFrameNumber, _ inPage: Int, _ bytes: UnsafeMutableRawBufferPointer
    ) throws -> Int {
        let wholeCount = inPage == 0 ? bytes.count / Page.byteCount : 0
        if wholeCount > 0 {
            let range = PageRange(first: frame, count: wholeCount)
            try read(range, UnsafeMutableRawBufferPointer(rebasing: bytes[..<range.byteCount]))
            return range.byteCount
        }
        let count = min(bytes.count, Page.byteCount - inPage)
        let page = PageMemory.allocate(byteCount: Page.byteCount)
        defer { PageMemory.deallocate(page) }
        try read(PageRange(first: frame, count: 1), page)
        bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: page[inPage..<inPage + count]))
        return count
    }

    /// Reads a range, one window at a time.
    private func read(_ range: PageRange, _ bytes: UnsafeMutableRawBufferPointer) throws {
        var done = 0
        while done < range.count {
            let part = PageRange(
                first: PageFrameNumber(range.first.rawValue + UInt64(done)),
                count: min(range.count - done, VolumeReader.windowPageCount))
            let start = done * Page.byteCount
            let place = UnsafeMutableRawBufferPointer(
                rebasing: bytes[start..<start + part.byteCount])
            try fill(RangeTarget(first: part.first, bytes: place), part)
            done += part.count
        }
    }

    private func fill(_ target: RangeTarget, _ range: PageRange) throws {
        let end = layout.frameEnd
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        for number in range.frames {
            let frame = PageFrameNumber(number)
            let content = number < end ? map[frame] : .absent
            switch content {
            case .present(let digest): pages.append((frame, digest))
            case .zero, .absent:
                target.memory(of: PageRange(first: frame, count: 1))
                    .initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
        _ = try PageSupply(
            repository: repository, checkpoint: checkpoint, volume: volume.number
        )
        .read(pages, into: target)
    }
}

/// Memory of the caller for consecutive frames.
private struct RangeTarget: PageTarget, @unchecked Sendable {
    // Unchecked: the memory outlives the call that fills it, and no two threads get one frame.
    let first: PageFrameNumber
    let bytes: UnsafeMutableRawBufferPointer

    func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? { memory(of: range) }

    func take(_ range: PageRange, _ contents: UnsafeRawBufferPointer, isPlaced: Bool) {
        if !isPlaced { memory(of: range).copyMemory(from: contents) }
    }

    func memory(of range: PageRange) -> UnsafeMutableRawBufferPointer {
        let start = Int(range.first.rawValue - first.rawValue) * Page.byteCount
        return UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + range.byteCount])
    }
}
