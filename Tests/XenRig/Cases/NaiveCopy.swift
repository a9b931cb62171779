import CheckpointFormat
import CheckpointStore
import Glibc
import Varve
import XenGuest

/// A full copy of a domain's memory, made page by page without the dirty log: the oracle.
///
/// Used only on the thread that captures.
final class NaiveCopy: @unchecked Sendable {
    private let domain: UInt32
    private let calls: LibxenCalls
    private let frames: [UInt]
    private let copy: UnsafeMutableRawBufferPointer
    private let zeros: UnsafeMutableRawBufferPointer
    private var digests: [PageDigest?]
    /// Pages that the last `refresh` found changed.
    private(set) var changedCount = 0

    /// Queries the type of every frame number.
    init(_ domain: UInt32) throws {
        let calls = try LibxenCalls()
        self.domain = domain
        self.calls = calls
        var frames: [UInt] = []
        let end = try calls.frameCount(domain)
        for first in stride(from: 0, to: end, by: 1024) {
            var types = (first..<min(end, first + 1024)).map { UInt($0) }
            try types.withUnsafeMutableBufferPointer { try calls.frameTypes(domain, $0) }
            for (index, type) in types.enumerated() where type >> 28 & 0xf < 0xd {
                frames.append(UInt(first + index))
            }
        }
        self.frames = frames
        copy = .allocate(byteCount: frames.count * Page.byteCount, alignment: Page.byteCount)
        copy.initializeMemory(as: UInt8.self, repeating: 0)
        zeros = .allocate(byteCount: Page.byteCount, alignment: Page.byteCount)
        zeros.initializeMemory(as: UInt8.self, repeating: 0)
        digests = Array(repeating: nil, count: frames.count)
    }

    deinit {
        copy.deallocate()
        zeros.deallocate()
    }

    var pageCount: Int { frames.count }

    /// Compares every page of the domain with the copy, and updates the copy.
    func refresh() throws {
        changedCount = 0
        for first in stride(from: 0, to: frames.count, by: 1024) {
            let batch = Array(frames[first..<min(frames.count, first + 1024)])
            var errors = [Int32](repeating: 0, count: batch.count)
            let address = try batch.withUnsafeBufferPointer { batch in
                try errors.withUnsafeMutableBufferPointer {
                    try calls.map(domain, batch, isWritable: false, errors: $0)
                }
            }
            defer { calls.unmap(address, pageCount: batch.count) }
            for index in batch.indices {
                guard errors[index] == 0 else { throw Failed("frame \(batch[index]) is gone") }
                let live = UnsafeRawBufferPointer(
                    start: address + index * Page.byteCount, count: Page.byteCount)
                let offset = (first + index) * Page.byteCount
                let mine = UnsafeMutableRawBufferPointer(
                    rebasing: copy[offset..<offset + Page.byteCount])
                if isEqual(UnsafeRawBufferPointer(mine), live), digests[first + index] != nil {
                    continue
                }
                mine.copyMemory(from: live)
                digests[first + index] =
                    isEqual(live, UnsafeRawBufferPointer(zeros)) ? .none : PageDigest(hashing: live)
                changedCount += 1
            }
        }
    }

    /// Frames whose page differs from the checkpoint's.
    func differences(from checkpoint: Checkpoint, in repository: Repository) throws -> [UInt] {
        let map = try repository.pageMap(of: checkpoint).map.memory
        guard map.layout.pageCount == frames.count else {
            throw Failed("the checkpoint has \(map.layout.pageCount) pages, not \(frames.count)")
        }
        return zip(frames, digests).compactMap { frame, digest in
            let isEqual =
                switch map[PageFrameNumber(UInt64(frame))] {
                case .absent: false
                case .zero: digest == PageDigest.none
                case .present(let known): digest == known
                }
            return isEqual ? nil : frame
        }
    }

    /// Frames whose content, read from the packs, differs from the copy's.
    func differingContents(
        of checkpoint: Checkpoint, in repository: Repository
    ) throws -> [UInt] {
        var found: [UInt] = []
        var position = 0
        try VolumeReader(checkpoint, from: repository).read { runs, contents in
            var offset = 0
            for frame in runs.flatMap(\.frames) {
                let stored = UnsafeRawBufferPointer(
                    rebasing: contents[offset..<offset + Page.byteCount])
                offset += Page.byteCount
                let start = position * Page.byteCount
                let mine = UnsafeRawBufferPointer(
                    rebasing: UnsafeRawBufferPointer(copy)[start..<start + Page.byteCount])
                if UInt(frame) != frames[position] || !isEqual(mine, stored) {
                    found.append(UInt(frame))
                }
                position += 1
            }
        }
        guard position == frames.count else { throw Failed("\(position) pages were read") }
        return found
    }

    private func isEqual(_ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer) -> Bool {
        guard let left = left.baseAddress, let right = right.baseAddress else { return false }
        return memcmp(left, right, Page.byteCount) == 0
    }
}

/// A case that failed.
struct Failed: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
