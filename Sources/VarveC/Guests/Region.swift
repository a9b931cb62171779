import CVarve
import CheckpointFormat
import GuestModel

/// A part of a guest's memory, as the program described it.
struct Region: Sendable {
    let pages: PageRange
    // The program, or the mapping, keeps the memory there as long as the guest exists.
    nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer

    /// Number of words of a bitmap of its pages.
    var wordCount: Int { (pages.count + 63) / 64 }

    /// The memory of frames, all of which are in the region.
    func memory(of range: PageRange) -> UnsafeMutableRawBufferPointer {
        let offset = Int(range.first.rawValue - pages.first.rawValue) * Page.byteCount
        return UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + range.byteCount])
    }
}

/// The regions of a guest; owns the mappings of those that were given by descriptors.
final class RegionSet: Sendable {
    /// In the program's order, which is that of its bitmaps.
    let regions: [Region]
    /// By their frames.
    private let ascending: [Region]
    let layout: GuestLayout
    private let mappings: [Mapping]

    /// A mapping, which ends with this.
    private final class Mapping: Sendable {
        nonisolated(unsafe) let bytes: UnsafeMutableRawBufferPointer
        let file: FileRange

        init(_ region: varve_region) throws(Failure) {
            let count = Int(region.byte_count)
            let status = try Syscalls.fileStatus(region.descriptor)
            let end = region.offset.addingReportingOverflow(region.byte_count)
            guard !end.overflow, end.partialValue <= UInt64(status.byteCount) else {
                throw RegionSet.invalid(
                    region, "ends past the end of its file, which has \(status.byteCount) bytes")
            }
            file = FileRange(
                device: status.device, number: status.number,
                bytes: region.offset..<end.partialValue)
            bytes = try Syscalls.map(region.descriptor, region.offset, count)
        }

        deinit { Syscalls.unmap(bytes) }
    }

    /// Bytes of a file, whatever descriptor leads to it.
    private struct FileRange {
        let device: UInt64
        let number: UInt64
        let bytes: Range<UInt64>

        func overlaps(_ other: FileRange) -> Bool {
            device == other.device && number == other.number && bytes.overlaps(other.bytes)
        }
    }

    /// The program's regions, checked and mapped.
    init(_ pointer: UnsafePointer<varve_region>?, count: Int) throws(Failure) {
        guard let pointer, count > 0 else {
            throw Failure(VARVE_INVALID_ARGUMENT, "there must be at least one region")
        }
        guard count <= RegionSet.countMax else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "\(count) regions are too many; at most \(RegionSet.countMax) are possible")
        }
        var regions: [Region] = []
        var mappings: [Mapping] = []
        try varve_region.forEach(of: pointer, count: count, "regions") {
            (region) throws(Failure) in
            let pages = try RegionSet.pages(of: region)
            if let address = region.address {
                let bytes = UnsafeMutableRawBufferPointer(start: address, count: pages.byteCount)
                regions.append(Region(pages: pages, bytes: bytes))
            } else {
                let mapping = try Mapping(region)
                if mappings.contains(where: { $0.file.overlaps(mapping.file) }) {
                    throw RegionSet.invalid(region, "overlaps another one in its file")
                }
                mappings.append(mapping)
                regions.append(Region(pages: pages, bytes: mapping.bytes))
            }
        }
        self.regions = regions
        self.mappings = mappings
        ascending = regions.sorted { $0.pages.first < $1.pages.first }
        try RegionSet.checkOverlaps(ascending)
        layout = GuestLayout(runs: ascending.map(\.pages))
        try RegionSet.check(layout)
    }

    private static let countMax = 1 << 16

    private static func invalid(_ region: varve_region, _ reason: String) -> Failure {
        Failure(
            VARVE_INVALID_ARGUMENT,
            "the region at guest address 0x\(String(region.guest_address, radix: 16)) \(reason)")
    }

    private static func pages(of region: varve_region) throws(Failure) -> PageRange {
        let unit = UInt64(Page.byteCount)
        guard region.byte_count > 0, region.byte_count % unit == 0,
            region.guest_address % unit == 0
        else {
            throw invalid(
                region,
                "has \(region.byte_count) bytes; address and size must be multiples of 4096, "
                    + "and the size positive")
        }
        guard region.address != nil || region.offset % unit == 0 else {
            throw invalid(region, "has the offset \(region.offset), which is no multiple of 4096")
        }
        let (first, count) = (region.guest_address / unit, region.byte_count / unit)
        // Both are below 2^52, so the sum is exact.
        guard first + count <= MapBounds.frameEndMax else {
            throw invalid(
                region, "ends beyond 2^44; only frames below 2^32 can be checkpointed")
        }
        return PageRange(first: PageFrameNumber(first), count: Int(count))
    }

    private static func checkOverlaps(_ ascending: [Region]) throws(Failure) {
        for (one, other) in zip(ascending, ascending.dropFirst())
        where one.pages.end > other.pages.first {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the regions of frames \(one.pages) and \(other.pages) overlap")
        }
        let byMemory = ascending.sorted { one, other in
            UInt(bitPattern: one.bytes.baseAddress) < UInt(bitPattern: other.bytes.baseAddress)
        }
        for (one, other) in zip(byMemory, byMemory.dropFirst())
        where UInt(bitPattern: one.bytes.baseAddress) + UInt(one.bytes.count)
            > UInt(bitPattern: other.bytes.baseAddress)
        {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the regions of frames \(one.pages) and \(other.pages) overlap in this process's "
                    + "memory")
        }
    }

    private static func check(_ layout: GuestLayout) throws(Failure) {
        guard MapBounds.allow(frameEnd: layout.frameEnd, pageCount: UInt64(layout.pageCount)) else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the regions have \(layout.pageCount) pages and one at frame "
                    + "\(layout.frameEnd - 1); holes this large are possible only below frame "
                    + "\(MapBounds.holeEndMax)")
        }
    }

    // MARK: - Memory

    /// The region of a frame.
    private func region(of frame: PageFrameNumber) -> Region? {
        var (low, high) = (0, ascending.count)
        while low < high {
            let middle = (low + high) / 2
            if ascending[middle].pages.end <= frame { low = middle + 1 } else { high = middle }
        }
        guard low < ascending.count, ascending[low].pages.contains(frame) else { return nil }
        return ascending[low]
    }

    /// The memory of a run within one region; nil for others.
    func memory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        guard let region = region(of: range.first), range.end <= region.pages.end else {
            return nil
        }
        return region.memory(of: range)
    }

    /// Calls `body` with the memory of a run, region by region.
    func forEachPiece(
        of run: PageRange, _ body: (UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) {
        var frame = run.first
        while frame < run.end {
            guard let region = region(of: frame) else {
                throw GuestError(
                    code: .invalidRange, message: "frame \(frame) is not in any of the regions")
            }
            let end = min(run.end, region.pages.end)
            body(
                region.memory(
                    of: PageRange(first: frame, count: Int(end.rawValue - frame.rawValue))))
            frame = end
        }
    }
}
