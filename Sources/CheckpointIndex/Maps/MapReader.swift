package import CheckpointFormat
package import GuestModel
package import PackStore

// How a page map is read: from the checkpoint back through `mapAncestor` to a base map, then
// forward again, applying each delta to the previous map. The number of maps is the digit sum of
// the position in base 4 plus one: at most 3 * log4(n) + 1 for the n-th map of a chain.

// Each manifest on the way is checked against that rule, and each part against its manifest
// (`MapCheck`), before memory is allocated for the sizes that they state.

/// Reads page maps from packs.
package enum MapReader {
    /// Reads one part of a checkpoint's own map.
    package static func part(
        _ reader: PackReader, at location: RecordLocation, of manifest: Manifest
    ) throws(RepositoryError) -> MapPart {
        let (header, payload) = try reader.record(at: location, .mapPart)
        let decompressor = try Decompressor.allocate()
        do throws(FormatError) {
            try manifest.checkOwns(header.transaction)
            return try payload.withUnsafeBufferPointer { (bytes) throws(FormatError) -> MapPart in
                try MapPart.decode(UnsafeRawBufferPointer(bytes), decompressor: decompressor)
            }
        } catch {
            throw reader.corrupted(location, .mapPart, error)
        }
    }

    /// Applies a checkpoint's own map, base or delta, to `map`.
    ///
    /// - Parameter volumes: those that are wanted; nil: all.
    /// - Returns: the number of frames that changed.
    @discardableResult
    package static func apply(
        _ reader: PackReader, _ manifest: Manifest, of volumes: Set<VolumeNumber>? = nil,
        to map: PageMap
    ) throws(RepositoryError) -> Int {
        var changed = 0
        try forEachPart(reader, manifest, of: volumes) { part in changed += apply(part, to: map) }
        return changed
    }

    /// Calls `body` with the parts of a checkpoint's own map, in order, each validated against the
    /// manifest.
    ///
    /// - Parameters:
    ///   - volumes: those that are wanted; nil: all. Parts of others are not read.
    ///   - passesOver: called before each part is read; true to skip it.
    package static func forEachPart(
        _ reader: PackReader, _ manifest: Manifest, of volumes: Set<VolumeNumber>? = nil,
        passingOver passesOver: (RecordLocation) throws(RepositoryError) -> Bool = { _ in false },
        _ body: (MapPart) throws(RepositoryError) -> Void
    ) throws(RepositoryError) {
        var check = MapCheck(manifest)
        for place in manifest.maps where try !passesOver(place.location) {
            if let volumes, !volumes.contains(place.firstFrame.volume) { continue }
            let part = try part(reader, at: place.location, of: manifest)
            do throws(FormatError) {
                try check.take(part, at: place)
            } catch {
                throw reader.corrupted(place.location, .mapPart, error)
            }
            try body(part)
        }
    }

    /// The error for a checkpoint whose page map cannot be based on that of its ancestor.
    package static func unfitAncestor(
        of checkpoint: Checkpoint, _ error: FormatError, _ reader: PackReader
    ) -> RepositoryError {
        reader.corrupted(checkpoint.location, .publish, error).attributed(to: checkpoint.id)
    }

    /// The error for a checkpoint whose page map is based on one that is in no pack.
    package static func lostAncestor(
        of checkpoint: Checkpoint, _ reader: PackReader
    ) -> RepositoryError {
        let name = CheckpointID(checkpoint.manifest.mapAncestor).short
        return reader.corrupted(
            checkpoint.location, .publish,
            FormatError(
                offset: 56,
                reason: "its page map is based on checkpoint \(name), and no pack has its manifest "
                    + "before this one")
        ).attributed(to: checkpoint.id)
    }

    /// Applies a part of a map to `map`.
    ///
    /// - Returns: the number of frames that changed.
    @discardableResult
    package static func apply(_ part: MapPart, to map: PageMap) -> Int {
        var changed = 0
        part.forEachRun { run, digests in
            let volume = map[run.range.volume]
            // Holes are long, and some maps consist mostly of them.
            if run.content == .zero {
                volume.setZero(run.range.inVolume) { changed += $1.nonzeroBitCount }
            } else {
                MapPart.forEachContent(of: run, digests) { frame, content in
                    changed += volume.set(frame.inVolume, content) ? 1 : 0
                }
            }
        }
        return changed
    }

    /// The frames in a checkpoint's own map.
    package static func frames(
        _ reader: PackReader, _ manifest: Manifest
    ) throws(RepositoryError) -> FrameSet {
        var frames = FrameSet()
        try forEachPart(reader, manifest) { part in
            for run in part.runs { frames.insert(run.range) }
        }
        return frames
    }
}

extension Checkpoint {
    /// Fails unless this one's delta map can be based on the map of another one.
    func check(ancestor: Checkpoint) throws(FormatError) {
        guard ancestor.location < location else {
            throw FormatError(
                offset: 56,
                reason: "its page map is based on checkpoint \(ancestor.id.short), which was "
                    + "published after it")
        }
        try manifest.check(ancestor: ancestor.manifest)
    }
}
