package import GuestModel

// The payload of a map part: a contiguous section of a page map. A map is a sequence of parts, and
// each is decoded independently.
//
//   offset  size
//        0     4  D, number of digests that follow
//        4     4  Z, stored size of the runs in bytes
//        8     4  R, uncompressed size of the runs; Z = R: stored raw, else one zstd frame
//       12     4  zero
//       16     Z  the runs
//     16+Z  32*D  the digests of present frames, in frame order
//
// The runs, uncompressed, until the end:
//   varint  frames between the end of the previous run (0 at first) and this one
//   varint  frames in the run, at least 1
//   u8      content: 0 absent, 1 zero, 2 present and stored by this transaction,
//                    3 present and stored before
//   content 2 only: zigzag  ordinal of the run's first page within the transaction, less one more
//                    than that of the previous such page (0 at first); a run's ordinals ascend

// A part describes at most 131,072 frames of one volume, which bounds the cost of reading it,
// however few bytes it has. Frame numbers contain the volume's (VolumeRecord.swift). A block of a
// disk that is zero is in no base map; a delta map calls it absent.

/// One run of a map part; its digests are stored separately.
package struct MapRun: Hashable, Sendable {
    /// The content of a run's frames; the numbers are those of the format.
    package enum Content: UInt8, Sendable {
        case absent = 0
        case zero = 1
        case storedHere = 2
        case storedBefore = 3

        /// True if each frame of the run has a digest.
        package var hasDigests: Bool { self == .storedHere || self == .storedBefore }
    }

    package let range: PageRange
    package let content: Content
    /// For `storedHere`: the ordinal of the run's first page.
    package let firstOrdinal: UInt32

    package init(range: PageRange, content: Content, firstOrdinal: UInt32 = 0) {
        self.range = range
        self.content = content
        self.firstOrdinal = firstOrdinal
    }
}

/// A decoded section of a page map.
package struct MapPart: Hashable, Sendable {
    /// The runs, ascending.
    package let runs: [MapRun]
    /// The digests of the runs that have them, in frame order.
    package let digests: [PageDigest]

    /// Maximum number of frames in one part: 4 MiB of digests.
    package static let frameCountMax = 1 << 17

    package init(runs: [MapRun], digests: [PageDigest]) {
        precondition(
            runs.reduce(0) { $0 + ($1.content.hasDigests ? $1.range.count : 0) } == digests.count,
            "one digest per present frame")
        self.runs = runs
        self.digests = digests
    }

    /// Calls `body` with each run and its digests (none for absent and zero runs).
    package func forEachRun<E: Error>(
        _ body: (MapRun, ArraySlice<PageDigest>) throws(E) -> Void
    ) throws(E) {
        var next = 0
        for run in runs {
            let count = run.content.hasDigests ? run.range.count : 0
            try body(run, digests[next..<next + count])
            next += count
        }
    }
}

extension MapPart {
    /// Encodes the payload.
    package func encoded(compressor: borrowing Compressor) -> [UInt8] {
        var columns = ByteWriter(reserving: runs.count * 5)
        var end: UInt64 = 0
        var ordinal: Int64 = 0
        for run in runs {
            precondition(run.range.first.rawValue >= end, "runs must ascend")
            columns.writeVarint(run.range.first.rawValue - end)
            columns.writeVarint(UInt64(run.range.count))
            columns.write(run.content.rawValue)
            end = run.range.end.rawValue
            if run.content == .storedHere {
                columns.writeZigzag(Int64(run.firstOrdinal) - ordinal)
                ordinal = Int64(run.firstOrdinal) + Int64(run.range.count)
            }
        }
        return encoded(columns.bytes, stored: MapPart.pack(columns.bytes, compressor: compressor))
    }

    /// The payload of a part without frames.
    package static var emptyPayload: [UInt8] {
        MapPart(runs: [], digests: []).encoded([], stored: [])
    }

    private func encoded(_ columns: [UInt8], stored: [UInt8]) -> [UInt8] {
        var writer = ByteWriter(reserving: 16 + stored.count + digests.count * 32)
        writer.write(UInt32(digests.count))
        writer.write(UInt32(stored.count))
        writer.write(UInt32(columns.count))
        writer.writeZeros(4)
        writer.write(raw: stored)
        for digest in digests { writer.write(digest) }
        return writer.bytes
    }

    private static func pack(_ columns: [UInt8], compressor: borrowing Compressor) -> [UInt8] {
        let room = Compressor.bound(columns.count)
        var count: Int?
        let packed = [UInt8](unsafeUninitializedCapacity: room) { buffer, initializedCount in
            let destination = UnsafeMutableRawBufferPointer(buffer)
            count = columns.withUnsafeBytes { compressor.compress($0, into: destination) }
            initializedCount = count ?? 0
        }
        return count == nil ? columns : packed
    }

    /// Decodes a payload.
    package static func decode(
        _ payload: UnsafeRawBufferPointer, decompressor: borrowing Decompressor
    ) throws(FormatError) -> MapPart {
        var reader = ByteReader(payload)
        let digestCount = Int(try reader.read(UInt32.self))
        let storedCount = Int(try reader.read(UInt32.self))
        let columnCount = Int(try reader.read(UInt32.self))
        try reader.readZeros(4, "a reserved field of the page map")
        // A run has at least one frame, and takes at most 14 bytes.
        guard columnCount <= 16 * frameCountMax else {
            throw FormatError(offset: 8, reason: "its runs claim \(columnCount) bytes")
        }
        let stored = try reader.read(raw: storedCount)
        let runs: [MapRun]
        if storedCount == columnCount {
            runs = try decodeRuns(stored)
        } else {
            let columns = UnsafeMutableRawBufferPointer.allocate(
                byteCount: columnCount, alignment: 1)
            defer { columns.deallocate() }
            try decompressor.decompress(stored, into: columns)
            runs = try decodeRuns(UnsafeRawBufferPointer(columns))
        }
        let needed = runs.reduce(0) { $0 + ($1.content.hasDigests ? $1.range.count : 0) }
        guard needed == digestCount, reader.remaining == digestCount * PageDigest.byteCount else {
            throw FormatError(offset: 0, reason: "the digests do not match the runs")
        }
        var digests: [PageDigest] = []
        digests.reserveCapacity(digestCount)
        for _ in 0..<digestCount { digests.append(try reader.readDigest()) }
        return MapPart(runs: runs, digests: digests)
    }

    private static func decodeRuns(
        _ columns: UnsafeRawBufferPointer
    ) throws(FormatError) -> [MapRun] {
        var reader = ByteReader(columns)
        var runs: [MapRun] = []
        var end: UInt64 = 0
        var ordinal: Int64 = 0
        var frameCount = 0
        while reader.remaining > 0 {
            let start = reader.position
            let (first, overflow) = end.addingReportingOverflow(try reader.readVarint())
            let count = try reader.readVarint(
                limit: frameCountMax - frameCount, "the part's frame count")
            guard !overflow, count > 0, first < PageRange.frameLimit,
                UInt64(count) <= PageRange.frameLimit - first
            else {
                throw FormatError(offset: start, reason: "a run is out of range")
            }
            frameCount += count
            guard let content = MapRun.Content(rawValue: try reader.read(UInt8.self)) else {
                throw FormatError(offset: start, reason: "a run's content is unknown")
            }
            var firstOrdinal: UInt32 = 0
            if content == .storedHere {
                let (value, overflow) = ordinal.addingReportingOverflow(try reader.readZigzag())
                guard !overflow, let exact = UInt32(exactly: value),
                    value + Int64(count) <= Int64(UInt32.max)
                else {
                    throw FormatError(offset: start, reason: "an ordinal is out of range")
                }
                firstOrdinal = exact
                ordinal = value + Int64(count)
            }
            end = first + UInt64(count)
            runs.append(
                MapRun(
                    range: PageRange(first: PageFrameNumber(first), count: count),
                    content: content, firstOrdinal: firstOrdinal))
        }
        return runs
    }
}
