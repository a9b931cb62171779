import CheckpointFormat
public import CheckpointIndex
public import GuestModel
import LMDBTables
public import PackStore

extension Repository {
    /// All checkpoints in order of publication, or those of one lineage.
    ///
    /// Reads one small record per checkpoint; a long list is better read in pages
    /// (`CheckpointSelection`).
    public func checkpoints(lineage: LineageName? = nil) throws(RepositoryError) -> [Checkpoint] {
        try checkpoints(CheckpointSelection(lineage: lineage))
    }

    /// The checkpoints of a selection, in order of publication.
    ///
    /// Reads one small record per checkpoint returned, and their index entries; if the selection
    /// has times, the index entries of the whole lineage.
    public func checkpoints(
        _ selection: CheckpointSelection
    ) throws(RepositoryError) -> [Checkpoint] {
        try requireWhole()
        var failure: Corruption?
        let result = try checkpoints(selection) { failure = failure ?? $0 }
        if let failure { throw RepositoryError(failure) }
        return result
    }

    /// The same for a repository that may be damaged: returns those that can be read.
    ///
    /// - Parameter damaged: called for each damaged place found: by opening, and in records of
    ///   checkpoints.
    public func checkpoints(
        lineage: LineageName? = nil, damaged: (Corruption) -> Void
    ) throws(RepositoryError) -> [Checkpoint] {
        try checkpoints(CheckpointSelection(lineage: lineage), damaged: damaged)
    }

    /// The checkpoints of a selection, for a repository that may be damaged.
    ///
    /// - Parameter damaged: called for each damaged place found: by opening, and in records of
    ///   checkpoints.
    public func checkpoints(
        _ selection: CheckpointSelection, damaged: (Corruption) -> Void
    ) throws(RepositoryError) -> [Checkpoint] {
        for corruption in damage { damaged(corruption) }
        if let before = selection.before { _ = try checkpoint(id: before) }
        let catalog = try withCurrentIndex { try $0.catalog(selection) }
        var result: [Checkpoint] = []
        result.reserveCapacity(catalog.count)
        for entry in catalog {
            do throws(RepositoryError) {
                result.append(try read(entry))
            } catch {
                // Otherwise it was forgotten and pruned after the catalog was read.
                if let corruption = error.corruption {
                    damaged(corruption)
                } else if error.code != .unknownName {
                    throw error
                }
            }
        }
        return result
    }

    /// A checkpoint's label if the label refers to it: it refers to the newest checkpoint that has
    /// it.
    public func currentLabel(of checkpoint: Checkpoint) throws(RepositoryError) -> Label? {
        guard let label = checkpoint.label else { return nil }
        return try withCurrentIndex { try $0.labelled(label.text) } == checkpoint.id ? label : nil
    }

    /// All lineages with the newest checkpoint of each.
    public func lineages() throws(RepositoryError) -> [(name: LineageName, newest: CheckpointID)] {
        try withCurrentIndex { try $0.lineages() }.map { (LineageName(stored: $0), $1) }
    }

    /// The newest checkpoint of a lineage; nil if the lineage does not exist.
    ///
    /// Fails with `corrupted` if opening found damage: a later checkpoint may be damaged.
    public func newest(ofLineage lineage: LineageName) throws(RepositoryError) -> Checkpoint? {
        guard let id = try withCurrentIndex({ try $0.newest(lineage: lineage.text) }) else {
            return nil
        }
        try requireWhole()
        return try checkpoint(id: id)
    }

    /// The checkpoint with an ID.
    public func checkpoint(id: CheckpointID) throws(RepositoryError) -> Checkpoint {
        guard let entry = try withCurrentIndex({ try $0.entry(id) }) else { throw unknown(id) }
        if entry.isForgotten { throw forgotten(id) }
        return try read(entry)
    }

    /// The ancestor of a page map: a checkpoint that may have been forgotten.
    package func ancestor(_ id: CheckpointID) throws(RepositoryError) -> Checkpoint {
        guard let entry = try withCurrentIndex({ try $0.entry(id) }) else { throw unknown(id) }
        return try read(entry)
    }

    /// The checkpoint on whose page map that of a checkpoint is based; nil for a base map.
    package func mapAncestor(of checkpoint: Checkpoint) throws(RepositoryError) -> Checkpoint? {
        var walk = MapAncestry(of: checkpoint)
        return try mapAncestor(&walk)
    }

    /// The next checkpoint of a walk; nil after the base map.
    func mapAncestor(_ walk: inout MapAncestry) throws(RepositoryError) -> Checkpoint? {
        let last = walk.current
        return try walk.next { (id) throws(RepositoryError) in
            guard let entry = try withCurrentIndex({ try $0.entry(id) }) else {
                throw MapReader.lostAncestor(of: last, reader)
            }
            return try read(entry)
        } unfit: { checkpoint, error in
            MapReader.unfitAncestor(of: checkpoint, error, reader)
        }
    }

    /// The checkpoint with a name: an ID or a prefix of one, of at least four digits, a lineage
    /// (its newest checkpoint) or a label (the newest checkpoint that has it).
    ///
    /// A full ID always refers to its own checkpoint. A name that is both a prefix of an ID and the
    /// name of another checkpoint is rejected (`ambiguousName`).
    ///
    /// Any of these may be followed by `~N`: go back N checkpoints, each time to the parent or, if
    /// that was forgotten, to the next older one of the lineage. If opening found damage, only IDs
    /// are accepted, because the checkpoint that a lineage or label refers to may be damaged.
    public func checkpoint(named name: String) throws(RepositoryError) -> Checkpoint {
        var base = name[...]
        var steps = 0
        if let tilde = name.lastIndex(of: "~") {
            let digits = name[name.index(after: tilde)...]
            guard let count = digits.isEmpty ? 1 : Int(digits), count >= 0 else {
                throw unknown(name)
            }
            steps = count
            base = name[..<tilde]
        }
        var checkpoint = try self.checkpoint(base: String(base), name: name)
        for step in 0..<steps {
            guard let before = try before(checkpoint) else {
                throw RepositoryError(
                    .unknownName,
                    "'\(name)' goes back \(counted(steps, "checkpoint")) and '\(base)' has "
                        + "\(step) before it; 'varve log' lists them")
            }
            checkpoint = before
        }
        return checkpoint
    }

    /// A checkpoint's parent or, if that was forgotten, the next older one of its lineage.
    private func before(_ checkpoint: Checkpoint) throws(RepositoryError) -> Checkpoint? {
        guard let parent = checkpoint.parent else { return nil }
        if let entry = try withCurrentIndex({ try $0.entry(parent) }), !entry.isForgotten {
            return try read(entry)
        }
        try requireWhole()
        let older = CheckpointSelection(
            lineage: checkpoint.lineage, newest: 1, before: checkpoint.id)
        return try withCurrentIndex { try $0.catalog(older) }.last.map(read)
    }

    private func checkpoint(base: String, name: String) throws(RepositoryError) -> Checkpoint {
        var ids: [CheckpointID] = []
        if NameForm.isIDPrefix(base) {
            ids = try withCurrentIndex { try $0.ids(prefix: base, limit: 2) }
            // A full ID refers to its own checkpoint, even if it is also a name.
            if base.utf8.count == NameForm.idDigitCount, let id = ids.first {
                return try checkpoint(id: id)
            }
        }
        if let (kind, id) = try bearer(of: base) {
            if let other = ids.first(where: { $0 != id }) {
                throw RepositoryError(
                    .ambiguousName,
                    "'\(base)' is a \(kind), and the id of checkpoint \(other.short) begins with "
                        + "it; give the id of the one that you mean: for the \(kind), \(id.short)")
            }
            try requireWhole()
            return try checkpoint(id: id)
        }
        guard let id = ids.first else { throw unknown(name) }
        guard ids.count == 1 else {
            throw RepositoryError(
                .ambiguousName, "several checkpoints begin with '\(base)'; give more digits")
        }
        return try checkpoint(id: id)
    }

    /// The newest checkpoint of a lineage or label.
    private func bearer(
        of name: String
    ) throws(RepositoryError) -> (kind: String, id: CheckpointID)? {
        if let id = try withCurrentIndex({ try $0.newest(lineage: name) }) {
            return ("lineage", id)
        }
        return try withCurrentIndex { try $0.labelled(name) }.map { ("label", $0) }
    }

    private func unknown(_ name: String) -> RepositoryError {
        // The missing name may be due to the damage.
        if let corruption = damage.first { return RepositoryError(corruption) }
        let base = name.lastIndex(of: "~").map { String(name[..<$0]) } ?? name
        // Only a hint: if this fails, there is none.
        let near = (try? self.name(nearestTo: base)).flatMap { $0 }
        let hint = near.map { "; did you mean '\($0)'?" } ?? ";"
        return RepositoryError(
            .unknownName,
            "no lineage, label or checkpoint is called '\(PrintableText.escape(name))'\(hint) "
                + "'varve log' lists them")
    }

    private func unknown(_ id: CheckpointID) -> RepositoryError {
        if let corruption = damage.first { return RepositoryError(corruption) }
        return RepositoryError(
            .unknownName, "there is no checkpoint \(id.short); 'varve log' lists them")
    }

    /// Reads a checkpoint's manifest.
    ///
    /// Fails with `unknownName` if it was forgotten and pruned in the meantime.
    package func read(_ entry: CatalogEntry) throws(RepositoryError) -> Checkpoint {
        do throws(RepositoryError) {
            return try readOnce(entry)
        } catch {
            let isThere = try withIndex { try $0.entry(entry.id) } == entry
            guard error.corruption == nil || isThere else { throw forgotten(entry.id) }
            throw error
        }
    }

    private func readOnce(_ entry: CatalogEntry) throws(RepositoryError) -> Checkpoint {
        let (id, location) = (entry.id, entry.location)
        let (found, manifest) = try ManifestReader.read(reader, at: location)
        guard found == id else {
            throw reader.corrupted(
                location, .publish,
                FormatError(offset: 0, reason: "it is checkpoint \(found.short), not \(id.short)"))
        }
        guard entry.agrees(with: manifest) else {
            throw indexFailure(IndexError.damagedValue("catalog entry"))
        }
        return Checkpoint(id: id, manifest: manifest, location: location).labelled(entry.label)
    }

    /// The page maps of a checkpoint's volumes, each verified against its root.
    ///
    /// Takes 0.8 % of what they hold: of the memory's in memory, of large disks' in a file.
    ///
    /// - Parameter volumes: those that are wanted; nil: all.
    /// - Returns: the map, and the number of stored maps read.
    package func pageMap(
        of checkpoint: Checkpoint, volumes: Set<VolumeNumber>? = nil
    ) throws(RepositoryError) -> (map: PageMap, mapsRead: Int) {
        var chain = [checkpoint]
        var walk = MapAncestry(of: checkpoint)
        while let ancestor = try mapAncestor(&walk) { chain.append(ancestor) }
        let map = emptyPageMap()
        do throws(RepositoryError) {
            for step in chain.reversed() {
                try MapReader.apply(reader, step.manifest, of: volumes, to: map)
            }
        } catch {
            throw error.attributed(to: checkpoint.id)
        }
        // Maps on which its own is based may have disks that it does not have.
        map.keep(checkpoint.manifest.volumes.map(\.number))
        for volume in checkpoint.manifest.volumes
        where volumes?.contains(volume.number) ?? true {
            let root = map[volume.number].root()
            guard root != volume.root else { continue }
            throw reader.corrupted(
                checkpoint.location, .publish,
                FormatError(
                    offset: 144,
                    reason: "the root of the page map of '\(volume.name)' is \(root), not the "
                        + "stated one")
            ).attributed(to: checkpoint.id)
        }
        map.releasePages()
        return (map, chain.count)
    }

    /// A checkpoint's state other than memory.
    public func state(of checkpoint: Checkpoint) throws(RepositoryError) -> GuestState {
        var bytes: [UInt8] = []
        for location in checkpoint.manifest.stateParts {
            let (header, payload) = try reader.record(at: location, .guestState)
            do throws(FormatError) {
                try checkpoint.manifest.checkOwns(header.transaction)
            } catch {
                throw reader.corrupted(location, .guestState, error)
                    .attributed(to: checkpoint.id)
            }
            bytes += payload
        }
        let location = checkpoint.manifest.stateParts.first ?? checkpoint.location
        let digest = bytes.withUnsafeBytes { PageDigest(hashing: $0) }
        guard digest == checkpoint.manifest.stateDigest else {
            throw reader.corrupted(
                location, .guestState,
                FormatError(offset: 0, reason: "the state's digest is not what the manifest states")
            ).attributed(to: checkpoint.id)
        }
        do {
            return try GuestStateCoding.decode(bytes)
        } catch {
            throw reader.corrupted(location, .guestState, error).attributed(to: checkpoint.id)
        }
    }

    /// The pages in which a volume differs between two checkpoints, as ascending runs: frames of
    /// the memory, or blocks of 4 KiB of a disk.
    ///
    /// Blocks, and takes room for both page maps of the volume: memory, or that of a file.
    ///
    /// - Parameter volume: a name that both checkpoints have.
    public func difference(
        from first: Checkpoint, to second: Checkpoint, volume: String = "memory"
    ) throws(RepositoryError) -> [PageRange] {
        let lease = try lease([first, second].map(\.id))
        defer { withExtendedLifetime(lease) {} }
        let maps = try [first, second].map { (checkpoint) throws(RepositoryError) in
            let number = try checkpoint.volume(named: volume).record.number
            return try pageMap(of: checkpoint, volumes: [number]).map[number]
        }
        return maps[1].differingRuns(from: maps[0])
    }
}

extension Checkpoint {
    /// The volume with a name; throws `unknownName` if it has none.
    public func volume(named name: String) throws(RepositoryError) -> Volume {
        if let found = volumes.first(where: { NameForm.areSame($0.name, name) }) { return found }
        let names = volumes.map { "'\($0.name)'" }.joined(separator: ", ")
        throw RepositoryError(
            .unknownName,
            "checkpoint \(id.short) has no volume '\(PrintableText.escape(name).prefix(80))'; it "
                + "has \(names)")
    }
}
