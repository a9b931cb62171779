import CheckpointFormat
public import CheckpointIndex
public import GuestModel
import LMDBTables
public import PackStore

extension Repository {
    /// All checkpoints in the order of publication, or those of one lineage.
    ///
    /// Reads one small record a checkpoint: of very many, better a page at a time
    /// (`CheckpointSelection`).
    public func checkpoints(lineage: String? = nil) throws(RepositoryError) -> [Checkpoint] {
        try checkpoints(CheckpointSelection(lineage: lineage))
    }

    /// The checkpoints of a selection, in the order of publication.
    ///
    /// Reads one small record for each that it returns, and what the index says of them; with
    /// times in the selection, what the index says of the whole lineage.
    public func checkpoints(
        _ selection: CheckpointSelection
    ) throws(RepositoryError) -> [Checkpoint] {
        try requireWhole()
        var failure: Corruption?
        let result = try checkpoints(selection) { failure = failure ?? $0 }
        if let failure { throw RepositoryError(failure) }
        return result
    }

    /// The same of a repository that may be damaged: those that can be read.
    ///
    /// - Parameter damaged: called for each damaged place that was met: what opening found, and
    ///   records of checkpoints.
    public func checkpoints(
        lineage: String? = nil, damaged: (Corruption) -> Void
    ) throws(RepositoryError) -> [Checkpoint] {
        try checkpoints(CheckpointSelection(lineage: lineage), damaged: damaged)
    }

    /// Those of a selection, of a repository that may be damaged.
    ///
    /// - Parameter damaged: called for each damaged place that was met: what opening found, and
    ///   records of checkpoints.
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
                // Else forgotten and pruned since the catalog was read.
                if let corruption = error.corruption {
                    damaged(corruption)
                } else if error.code != .unknownName {
                    throw error
                }
            }
        }
        return result
    }

    /// A checkpoint's label if the label refers to it: it refers to the newest that has it.
    public func currentLabel(of checkpoint: Checkpoint) throws(RepositoryError) -> String? {
        guard let label = checkpoint.label else { return nil }
        return try withCurrentIndex { try $0.labelled(label) } == checkpoint.id ? label : nil
    }

    /// The lineages and the newest checkpoint of each.
    public func lineages() throws(RepositoryError) -> [(name: String, newest: CheckpointID)] {
        try withCurrentIndex { try $0.lineages() }
    }

    /// The newest checkpoint of a lineage; nil if the lineage does not exist.
    ///
    /// Fails with `corrupted` if opening found damage: a later one may be what is damaged.
    public func newest(ofLineage lineage: String) throws(RepositoryError) -> Checkpoint? {
        guard let id = try withCurrentIndex({ try $0.newest(lineage: lineage) }) else { return nil }
        try requireWhole()
        return try checkpoint(id: id)
    }

    /// The checkpoint with an id.
    public func checkpoint(id: CheckpointID) throws(RepositoryError) -> Checkpoint {
        guard let entry = try withCurrentIndex({ try $0.entry(id) }) else { throw unknown(id) }
        if entry.isForgotten { throw forgotten(id) }
        return try read(entry)
    }

    /// What a page map builds on: a checkpoint that may have been forgotten.
    package func ancestor(_ id: CheckpointID) throws(RepositoryError) -> Checkpoint {
        guard let entry = try withCurrentIndex({ try $0.entry(id) }) else { throw unknown(id) }
        return try read(entry)
    }

    /// The checkpoint on whose page map a checkpoint's own builds; nil for a base map.
    package func mapAncestor(of checkpoint: Checkpoint) throws(RepositoryError) -> Checkpoint? {
        guard let id = checkpoint.mapAncestor else { return nil }
        guard let entry = try withCurrentIndex({ try $0.entry(id) }) else {
            throw MapReader.lostAncestor(of: checkpoint, reader)
        }
        let ancestor = try read(entry)
        try MapReader.check(checkpoint, ancestor: ancestor, reader)
        return ancestor
    }

    /// The checkpoint with a name: an id or the beginning of one, four digits at least, a lineage
    /// (its newest) or a label (the newest checkpoint that has it).
    ///
    /// A whole id means itself. What is both the beginning of an id and a name of another
    /// checkpoint is refused (`ambiguousName`).
    ///
    /// Each may be followed by `~N`: N before it, each the parent of the one after it or, where
    /// that was forgotten, the next older one of the lineage. Of a repository in which opening
    /// found damage only ids are names, because what a lineage or label meant may be what is
    /// damaged.
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
            // A whole id means itself, whatever else has it for a name.
            if base.utf8.count == NameForm.idDigitCount, let id = ids.first {
                return try checkpoint(id: id)
            }
        }
        if let (kind, id) = try bearer(of: base) {
            if let other = ids.first(where: { $0 != id }) {
                throw RepositoryError(
                    .ambiguousName,
                    "'\(base)' is a \(kind), and the id of checkpoint \(other.short) begins so; "
                        + "give the id of the one that you mean: for the \(kind), \(id.short)")
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

    /// What a lineage or label means: its newest checkpoint.
    private func bearer(
        of name: String
    ) throws(RepositoryError) -> (kind: String, id: CheckpointID)? {
        if let id = try withCurrentIndex({ try $0.newest(lineage: name) }) {
            return ("lineage", id)
        }
        return try withCurrentIndex { try $0.labelled(name) }.map { ("label", $0) }
    }

    private func unknown(_ name: String) -> RepositoryError {
        // It may be what is damaged.
        if let corruption = damage.first { return RepositoryError(corruption) }
        let base = name.lastIndex(of: "~").map { String(name[..<$0]) } ?? name
        // Only words: a failure to find it is no other failure.
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

    /// Reads a manifest.
    ///
    /// Fails with `unknownName` if it was forgotten and taken by prune meanwhile.
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
            throw indexFailure(LMDBError.damagedValue("catalog entry"))
        }
        return Checkpoint(id: id, manifest: manifest, location: location).labelled(entry.label)
    }

    /// A checkpoint's page map, checked against its root.
    ///
    /// - Returns: the map, and how many stored maps it took.
    package func pageMap(
        of checkpoint: Checkpoint
    ) throws(RepositoryError) -> (map: PageMap, mapsRead: Int) {
        var chain = [checkpoint]
        while let last = chain.last, let ancestor = try mapAncestor(of: last) {
            chain.append(ancestor)
        }
        let map = PageMap()
        do throws(RepositoryError) {
            for step in chain.reversed() {
                try MapReader.apply(reader, step.manifest, to: map)
            }
        } catch {
            throw error.attributed(to: checkpoint.id)
        }
        guard map.root() == checkpoint.root else {
            throw reader.corrupted(
                checkpoint.location, .publish,
                FormatError(
                    offset: 32, reason: "the page map's root is \(map.root()), not what it states")
            ).attributed(to: checkpoint.id)
        }
        return (map, chain.count)
    }

    /// A checkpoint's state besides memory.
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

    /// The frames whose content differs between two checkpoints, as ascending runs.
    public func difference(
        from first: Checkpoint, to second: Checkpoint
    ) throws(RepositoryError) -> [PageRange] {
        let lease = try lease([first, second].map(\.id))
        defer { withExtendedLifetime(lease) {} }
        let before = try pageMap(of: first).map
        let after = try pageMap(of: second).map
        return after.difference(from: before).runs()
    }
}
