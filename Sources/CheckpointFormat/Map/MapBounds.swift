import GuestModel

// Limits on what a page map may demand of a reader. A map in memory takes some bytes for every 64
// frames up to the highest one, so a number in a store must not determine that size unchecked: it
// is limited by the manifest, and the manifest by what its parts can describe.
//
//   a part      describes at most 131,072 frames, ascending, and begins after the previous part
//   frame end   at most 2^32; above 2^26 (256 GiB) at most 2^26 plus 4 for each page that
//               exists, so that large guests may have holes and those of small ones cost little
//   absent      frames that a delta map marks as no longer existing are below 2^26 plus 8 for
//               each page: a delta describes at most half as many frames as there are pages, so no
//               layout between it and its ancestor had more than 1.5 times its pages

/// The frames that a page map may describe.
package struct MapBounds: Hashable, Sendable {
    /// Frame numbers are below this: 16 TiB of guest memory.
    package static let frameEndMax: UInt64 = 1 << 32
    /// Frames below this may exist in any guest: 256 GiB.
    package static let holeEndMax: UInt64 = 1 << 26
    private static let framesPerPage: UInt64 = 4

    /// Frames that exist are below this.
    package let frameEnd: UInt64
    /// Frames marked as no longer existing are below this.
    package let absentEnd: UInt64

    package init(frameEnd: UInt64, pageCount: UInt64) {
        let pageCount = min(pageCount, MapBounds.frameEndMax)
        self.frameEnd = frameEnd
        absentEnd = max(
            frameEnd,
            min(
                MapBounds.frameEndMax,
                MapBounds.holeEndMax + 2 * MapBounds.framesPerPage * pageCount))
    }

    /// True if a guest with `pageCount` pages may have its highest frame there.
    ///
    /// - Parameter frameEnd: one more than the highest frame that exists.
    package static func allow(frameEnd: UInt64, pageCount: UInt64) -> Bool {
        guard frameEnd <= frameEndMax, pageCount <= frameEnd, (frameEnd == 0) == (pageCount == 0)
        else { return false }
        return frameEnd <= holeEndMax || (frameEnd - holeEndMax) / framesPerPage <= pageCount
    }
}

/// Validates the parts of one page map, in order, against its manifest.
package struct MapCheck {
    private let bounds: MapBounds
    /// The end of the previous part.
    private var end: UInt64 = 0

    package init(_ manifest: Manifest) {
        bounds = MapBounds(frameEnd: manifest.frameEnd, pageCount: manifest.pageCount)
    }

    /// Validates the next part; parts before it may have been skipped.
    package mutating func take(_ part: MapPart) throws(FormatError) {
        guard let first = part.runs.first, let last = part.runs.last else { return }
        guard first.range.first.rawValue >= end else {
            throw FormatError(offset: 16, reason: "it begins before the end of the previous part")
        }
        end = last.range.end.rawValue
        for run in part.runs {
            let limit = run.content == .absent ? bounds.absentEnd : bounds.frameEnd
            guard run.range.end.rawValue <= limit else {
                throw FormatError(
                    offset: 16,
                    reason: "it describes frame \(run.range.end.rawValue - 1), but the manifest "
                        + "allows only frames below \(limit)")
            }
        }
    }
}
