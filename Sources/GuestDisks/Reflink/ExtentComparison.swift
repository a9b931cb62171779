import CLinux
import Glibc
import GuestModel

/// Compares where two clones of a file are stored: what both have in the same place is equal.
///
/// Blocks are never overwritten while two files share them, and both clones stand, so the same
/// place means the same bytes. What `FIEMAP` cannot place for certain (compressed, inline, delayed)
/// counts as changed. Preallocated extents and holes read as zeros.
///
/// A file system may move extents while this looks, as `btrfs balance` and `xfs_fsr` do, and a
/// place that one clone had before may be the other's afterwards. Everything is therefore looked
/// at twice, and the answer counts only if nothing has moved.
struct ExtentComparison {
    let new: OpenFile
    let old: OpenFile
    let newByteCount: UInt64
    let oldByteCount: UInt64

    private enum Place: Hashable {
        case zeros
        case at(UInt64)
        case uncertain
    }

    /// The changed blocks; nil if that cannot be known.
    func changedBlocks() throws(GuestError) -> [BlockRange]? {
        guard try ExtentComparison.isComparable(new), try ExtentComparison.isComparable(old),
            try new.status().st_dev == old.status().st_dev
        else { return nil }
        for _ in 0..<3 {
            var ranges = BlockRanges(
                blockCount: GuestDisk(name: "", byteCount: newByteCount).blockCount)
            guard let first = try pass({ ranges.add(bytes: $0) }) else { return nil }
            guard let second = try pass({ _ in true }) else { return nil }
            if first == second { return ranges.ranges }
        }
        return nil
    }

    /// On file systems of several devices other than btrfs, an offset may be one of any device.
    ///
    /// fstatfs(2); magic numbers from include/uapi/linux/magic.h.
    private static func isComparable(_ file: OpenFile) throws(GuestError) -> Bool {
        guard let type = file.withDescriptor(system_fileSystem) else {
            throw GuestError.call("fstatfs", file.path.printable)
        }
        return type == 0x5846_5342 || type == 0x9123_683e
    }

    /// Reports differing bytes in ascending order, and returns a fingerprint of all extents seen.
    ///
    /// - Returns: nil if `FIEMAP` is not supported, its answer makes no sense, or `report` does not
    ///   accept more.
    private func pass(
        _ report: (Range<UInt64>) -> Bool
    ) throws(GuestError) -> UInt64? {
        var (newWalk, oldWalk) = (Walk(new), Walk(old))
        var position: UInt64 = 0
        let common = min(newByteCount, oldByteCount)
        while position < common {
            guard let (newPlace, newEnd) = try newWalk.place(at: position),
                let (oldPlace, oldEnd) = try oldWalk.place(at: position)
            else { return nil }
            let end = min(newEnd, oldEnd, common)
            if newPlace != oldPlace || newPlace == .uncertain {
                guard report(position..<end) else { return nil }
            }
            position = end
        }
        // A last block that has become shorter reads as zeros behind the new end.
        let tail = newByteCount < oldByteCount && newByteCount % UInt64(Page.byteCount) != 0
        if tail, newByteCount > 0 {
            guard report(newByteCount - 1..<newByteCount) else { return nil }
        }
        if newByteCount > oldByteCount {
            guard report(oldByteCount..<newByteCount) else { return nil }
        }
        return newWalk.fingerprint &* 31 &+ oldWalk.fingerprint
    }

    /// Goes through the extents of a file from its beginning.
    private struct Walk {
        private let file: OpenFile
        private var extents: [clinux_extent] = []
        private var next = 0
        private var isAtEnd = false
        private(set) var fingerprint: UInt64 = 0xcbf2_9ce4_8422_2325

        init(_ file: OpenFile) { self.file = file }

        /// What is at a byte, and where that ends; nil if it cannot be known.
        ///
        /// The bytes of successive calls ascend.
        mutating func place(at position: UInt64) throws(GuestError) -> (Place, UInt64)? {
            while true {
                while next < extents.count,
                    extents[next].logical + extents[next].length <= position
                {
                    next += 1
                }
                if next < extents.count {
                    let extent = extents[next]
                    guard extent.logical <= position else { return (.zeros, extent.logical) }
                    let end = extent.logical + extent.length
                    if extent.flags & UInt32(CLINUX_EXTENT_UNCERTAIN) != 0 {
                        return (.uncertain, end)
                    }
                    if extent.flags & UInt32(CLINUX_EXTENT_UNWRITTEN) != 0 { return (.zeros, end) }
                    return (.at(extent.physical &+ (position - extent.logical)), end)
                }
                if isAtEnd { return (.zeros, UInt64.max) }
                guard try refill(from: position) else { return nil }
            }
        }

        private mutating func refill(from position: UInt64) throws(GuestError) -> Bool {
            extents = Array(repeating: clinux_extent(), count: 256)
            let count = file.withDescriptor { system_extents($0, from: position, &extents) }
            guard count >= 0 else {
                if errno == EOPNOTSUPP || errno == ENOTTY { return false }
                throw GuestError.call("FIEMAP", file.path.printable)
            }
            extents.removeLast(extents.count - Int(count))
            next = 0
            isAtEnd = extents.last.map { $0.flags & UInt32(CLINUX_EXTENT_LAST) != 0 } ?? true
            var end: UInt64 = 0
            for extent in extents {
                let (extentEnd, isTooLarge) = extent.logical.addingReportingOverflow(extent.length)
                guard extent.length > 0, extent.logical >= end, !isTooLarge else { return false }
                end = extentEnd
                for value in [
                    extent.logical, extent.physical, extent.length, UInt64(extent.flags),
                ] {
                    // FNV-1a by words, mixed so that high bits count as well.
                    fingerprint = (fingerprint ^ value) &* 0x100_0000_01b3
                    fingerprint ^= fingerprint >> 29
                }
            }
            // Else the same question would be asked again.
            return isAtEnd || end > position
        }
    }
}
