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
    /// Frame numbers within a volume are below this: 16 TiB of memory, or of a disk.
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
        self.init(
            frameEnd: frameEnd,
            absentEnd: max(
                frameEnd,
                min(
                    MapBounds.frameEndMax,
                    MapBounds.holeEndMax + 2 * MapBounds.framesPerPage * pageCount)))
    }

    /// The bounds of a volume; those of a disk follow from its size.
    package init(_ volume: VolumeRecord) {
        if volume.isDisk {
            self.init(frameEnd: volume.frameEnd, absentEnd: MapBounds.frameEndMax)
        } else {
            self.init(frameEnd: volume.frameEnd, pageCount: volume.pageCount)
        }
    }

    private init(frameEnd: UInt64, absentEnd: UInt64) {
        self.frameEnd = frameEnd
        self.absentEnd = absentEnd
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
    private let volumes: [VolumeRecord]
    /// The end of the previous part.
    private var end: UInt64 = 0

    package init(_ manifest: Manifest) { volumes = manifest.volumes }

    /// Validates the next part; parts before it may have been skipped.
    package mutating func take(_ part: MapPart, at place: MapPlace) throws(FormatError) {
        // A part that was lost is replaced by one without runs.
        guard let first = part.runs.first, let last = part.runs.last else { return }
        guard first.range.first == place.firstFrame else {
            throw FormatError(
                offset: 16,
                reason: "it begins at frame \(first.range.first), but the manifest says "
                    + "\(place.firstFrame)")
        }
        guard first.range.first.rawValue >= end else {
            throw FormatError(offset: 16, reason: "it begins before the end of the previous part")
        }
        end = last.range.end.rawValue
        let number = first.range.volume
        guard let volume = volumes.first(where: { $0.number == number }) else {
            throw FormatError(
                offset: 16,
                reason: "it describes volume \(number.rawValue), which the checkpoint "
                    + "does not have")
        }
        let bounds = MapBounds(volume)
        for run in part.runs {
            let limit = run.content == .absent ? bounds.absentEnd : bounds.frameEnd
            guard run.range.end.rawValue <= number.firstFrame + limit else {
                throw FormatError(
                    offset: 16,
                    reason: "it describes frame \(run.range.end.rawValue - 1), but the manifest "
                        + "allows only frames below \(number.firstFrame + limit)")
            }
            guard run.content != .zero || !volume.isDisk else {
                throw FormatError(offset: 16, reason: "it calls a block of a disk zero")
            }
        }
    }
}
