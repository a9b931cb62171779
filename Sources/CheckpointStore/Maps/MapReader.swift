package import CheckpointFormat
package import GuestModel

// How a page map is reached: from the checkpoint back over `mapAncestor` to a base map, then
// forward again, each delta over the one before. The number of maps is the digit sum of the
// position in base 4 plus one: at most 3 * log4(n) + 1 for the n-th map of a series.

/// Reads page maps from packs.
package enum MapReader {
    /// Reads one part.
    package static func part(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> MapPart {
        let (_, payload) = try reader.record(at: location, .mapPart)
        let decompressor = Decompressor()
        do throws(FormatError) {
            return try payload.withUnsafeBufferPointer { (bytes) throws(FormatError) -> MapPart in
                try MapPart.decode(UnsafeRawBufferPointer(bytes), decompressor: decompressor)
            }
        } catch {
            throw reader.corrupted(location, .mapPart, error)
        }
    }

    /// Applies a checkpoint's own map, base or delta, to `map`.
    package static func apply(
        _ reader: PackReader, _ manifest: Manifest, to map: PageMap
    ) throws(RepositoryError) {
        for location in manifest.mapParts {
            let part = try part(reader, at: location)
            if let last = part.runs.last, last.range.end.rawValue > PageMap.frameEndMax {
                throw reader.corrupted(
                    location, .mapPart,
                    FormatError(offset: 16, reason: "it names frame numbers beyond 2^32"))
            }
            apply(part, to: map)
        }
    }

    /// Applies a stretch of a map to `map`.
    static func apply(_ part: MapPart, to map: PageMap) {
        part.forEachContent { frame, content in map.set(frame, content) }
    }

    /// The frames that a checkpoint's own map names.
    package static func frames(
        _ reader: PackReader, _ manifest: Manifest
    ) throws(RepositoryError) -> DirtyBitmap {
        var frames = DirtyBitmap()
        for location in manifest.mapParts {
            for run in try part(reader, at: location).runs { frames.insert(run.range) }
        }
        return frames
    }
}

/// The rule for which map a delta map builds on.
package enum MapSeries {
    /// The position that the map at `position` builds on: its lowest digit in base 4 that is not
    /// zero, less one.
    ///
    /// Position 0 is the base map.
    ///
    /// A map at position n covers 4^j checkpoints, where j counts the zeros that n ends with: 0.75
    /// a level and checkpoint on average, where clearing the lowest set bit costs 0.5 a level but
    /// has twice the levels plus one.
    package static func ancestor(of position: UInt32) -> UInt32 {
        precondition(position > 0, "a base map builds on nothing")
        let zeros = position.trailingZeroBitCount / 2 * 2
        return position - (1 << UInt32(zeros))
    }
}
