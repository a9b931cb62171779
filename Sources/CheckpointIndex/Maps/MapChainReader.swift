package import CheckpointFormat
package import GuestModel
package import LMDBTables
package import PackStore

/// Reads page maps along their chain, and caches the most recently read ones.
package struct MapChainReader {
    /// Maximum number of digests in cached maps: 32 MiB.
    private static let digestCountMax = 1 << 20
    private static let checkpointCountMax = 1 << 12

    package let reader: PackReader
    private let index: Index
    private var checkpoints: [CheckpointID: Checkpoint] = [:]
    private var maps: [CheckpointID: [MapPart]] = [:]
    /// The order in which they were read.
    private var order: [CheckpointID] = []
    private var digestCount = 0

    package init(index: Index, reader: PackReader) {
        self.index = index
        self.reader = reader
    }

    /// A checkpoint whose manifest is in the packs, forgotten or not.
    package mutating func checkpoint(_ id: CheckpointID) throws(IndexError) -> Checkpoint {
        if let known = checkpoints[id] { return known }
        guard let entry = try index.entry(id) else {
            throw .contradiction(in: "catalog")
        }
        let (found, manifest) = try IndexError.ofPacks(
            ManifestReader.read(reader, at: entry.location))
        guard found == id else {
            throw .repository(
                reader.corrupted(
                    entry.location, .publish,
                    FormatError(
                        offset: 0, reason: "it is checkpoint \(found.short), not \(id.short)")))
        }
        if checkpoints.count >= MapChainReader.checkpointCountMax { checkpoints.removeAll() }
        let checkpoint = Checkpoint(id: id, manifest: manifest, location: entry.location)
        checkpoints[id] = checkpoint
        return checkpoint
    }

    /// A checkpoint's own map, base or delta.
    ///
    /// - Parameter pruned: packs that were removed, if parts that prune removed are to be skipped.
    package mutating func map(
        of checkpoint: Checkpoint, passingOver pruned: PrunedRecord? = nil
    ) throws(IndexError) -> [MapPart] {
        if let known = maps[checkpoint.id] { return known }
        let parts = try IndexError.ofPacks(readParts(of: checkpoint, passingOver: pruned))
        let count = parts.reduce(0) { $0 + $1.digests.count }
        while digestCount + count > MapChainReader.digestCountMax, !order.isEmpty {
            let oldest = maps.removeValue(forKey: order.removeFirst()) ?? []
            digestCount -= oldest.reduce(0) { $0 + $1.digests.count }
        }
        maps[checkpoint.id] = parts
        order.append(checkpoint.id)
        digestCount += count
        return parts
    }

    private func readParts(
        of checkpoint: Checkpoint, passingOver pruned: PrunedRecord?
    ) throws(RepositoryError) -> [MapPart] {
        var parts: [MapPart] = []
        try MapReader.forEachPart(reader, checkpoint.manifest) {
            (location) throws(RepositoryError) in
            guard let pruned else { return false }
            return try reader.isPruned(location, pruned)
        } _: { part in
            parts.append(part)
        }
        return parts
    }

    /// The next checkpoint of a walk; nil after the base map.
    private mutating func next(_ walk: inout MapAncestry) throws(IndexError) -> Checkpoint? {
        let reader = reader
        return try walk.next { (id) throws(IndexError) in
            try checkpoint(id)
        } unfit: { checkpoint, error in
            .repository(MapReader.unfitAncestor(of: checkpoint, error, reader))
        }
    }

    /// A checkpoint and the ancestors of its page map, up to the base map.
    mutating func chain(from checkpoint: Checkpoint) throws(IndexError) -> [Checkpoint] {
        var result = [checkpoint]
        var walk = MapAncestry(of: checkpoint)
        while let ancestor = try next(&walk) { result.append(ancestor) }
        return result
    }

    /// Fails unless a checkpoint's page map can be based on the stated ancestors, up to the base
    /// map.
    ///
    /// - Parameter packsHold: called to check whether the packs contain a manifest that the index
    ///   lacks, before that of a checkpoint: if so, the index is damaged, otherwise the packs are.
    mutating func checkAncestor(
        of checkpoint: Checkpoint,
        packsHold: (CheckpointID, _ before: Checkpoint) throws(RepositoryError) -> Bool
    ) throws(IndexError) {
        var walk = MapAncestry(of: checkpoint)
        repeat {
            let last = walk.current
            guard let ancestor = last.mapAncestor else { return }
            if checkpoints[ancestor] == nil, try index.entry(ancestor) == nil {
                if try IndexError.ofPacks(packsHold(ancestor, last)) {
                    throw .contradiction(in: "catalog")
                }
                throw .repository(MapReader.lostAncestor(of: last, reader))
            }
        } while try next(&walk) != nil
    }

    /// Calls `body` with the distinct pages of a checkpoint in the given frames.
    ///
    /// Reads its maps until each of the frames was found. Frames of volumes that it does not have
    /// are skipped: maps on which its own is based may have them.
    package mutating func forEachPage(
        of id: CheckpointID, in frames: FrameSet,
        _ body: (PageFrameNumber, PageDigest) throws(IndexError) -> Void
    ) throws(IndexError) {
        guard !frames.isEmpty else { return }
        let checkpoint = try checkpoint(id)
        var wanted = checkpoint.manifest.framesOfItsVolumes(among: frames)
        guard !wanted.isEmpty else { return }
        var walk = MapAncestry(of: checkpoint)
        repeat {
            for part in try map(of: walk.current) {
                try part.forEachRun { (run, digests) throws(IndexError) in
                    if run.content.hasDigests {
                        for (frame, digest) in zip(run.range.frames, digests)
                        where wanted.contains(PageFrameNumber(frame)) {
                            try body(PageFrameNumber(frame), digest)
                        }
                    }
                    wanted.remove(run.range)
                }
            }
            if wanted.isEmpty { return }
        } while try next(&walk) != nil
    }

    /// Calls `body` with every page of a checkpoint.
    package mutating func forEachPage(
        of id: CheckpointID, _ body: (PageFrameNumber, PageDigest) throws(IndexError) -> Void
    ) throws(IndexError) {
        var frames = FrameSet()
        for step in try chain(from: checkpoint(id)) {
            for part in try map(of: step) { for run in part.runs { frames.insert(run.range) } }
        }
        try forEachPage(of: id, in: frames, body)
    }
}

// MARK: - Differences

extension MapChainReader {
    /// The frames in which a checkpoint may differ from another.
    ///
    /// They are all those in which it does, and few others. Two checkpoints may differ in every
    /// frame of a volume that only one of them has.
    ///
    /// Reads the maps between each of the two and their first common ancestor.
    ///
    /// - Parameter other: nil to get the frames that exist.
    mutating func differing(
        _ checkpoint: Checkpoint, from other: CheckpointID?
    ) throws(IndexError) -> FrameSet {
        let mine = try chain(from: checkpoint)
        guard let other else { return try frames(of: mine) }
        let second = try self.checkpoint(other)
        var result = checkpoint.manifest.framesOfVolumes(notIn: second.manifest)
        result.formUnion(second.manifest.framesOfVolumes(notIn: checkpoint.manifest))
        if checkpoint.mapAncestor == other {
            return result.union(try frames(of: [checkpoint]))
        }
        let theirs = try chain(from: second)
        let ids = Set(mine.map(\.id))
        let common = theirs.first { ids.contains($0.id) }?.id
        let old = PageMap(disksIn: .process)
        let path = Array(theirs.prefix { $0.id != common })
        for step in path.reversed() {
            for part in try map(of: step) { MapReader.apply(part, to: old) }
        }
        var named = try frames(of: path)
        var seen = FrameSet()
        for step in mine.prefix(while: { $0.id != common }) {
            for part in try map(of: step) {
                part.forEachContent { frame, content in
                    guard !seen.contains(frame) else { return }
                    if !named.contains(frame) || old[frame] != content { result.insert(frame) }
                }
            }
            seen.formUnion(try frames(of: [step]))
        }
        // Frames only in the other's maps: there this one has the common ancestor's content, or
        // none.
        named.subtract(seen)
        result.formUnion(named)
        return result
    }

    /// The frames in the maps of the given checkpoints.
    private mutating func frames(of steps: [Checkpoint]) throws(IndexError) -> FrameSet {
        var frames = FrameSet()
        for step in steps {
            for part in try map(of: step) { for run in part.runs { frames.insert(run.range) } }
        }
        return frames
    }
}
