import CheckpointFormat
import CheckpointIndex
import GuestModel
import PackStore

/// The verdict on one checkpoint.
struct RepairVerdict: Sendable {
    let checkpoint: Checkpoint
    /// Why its state or page map is unreadable; nil if both are readable.
    var problem: Corruption?
    /// Frames whose pages are unavailable.
    var missing: [(frame: PageFrameNumber, digest: PageDigest)] = []
    /// Lost parts of page maps with nothing that is needed: an empty part can replace them.
    var emptied: [RecordLocation] = []
}

extension RepairSurvey {
    /// Reads each existing checkpoint as a restore would.
    func judge(_ stock: RepairStock) throws -> [RepairVerdict] {
        var verdicts: [RepairVerdict] = []
        var last: (id: CheckpointID, map: PageMap)?
        for member in members where !member.isForgotten {
            var verdict = RepairVerdict(checkpoint: member.checkpoint)
            do {
                try checkState(of: member.checkpoint)
                let (map, emptied, differing) = try map(of: member.checkpoint, after: last)
                last = (member.checkpoint.id, map)
                try checkCounts(of: member.checkpoint, map, differing: differing)
                verdict.emptied = emptied
                verdict.missing = missing(in: map, stock)
            } catch let error as Unreadable {
                verdict.problem = error.corruption
                last = nil
            }
            verdicts.append(verdict)
        }
        return verdicts
    }

    private func checkState(of checkpoint: Checkpoint) throws {
        var bytes: [UInt8] = []
        for location in checkpoint.manifest.stateParts {
            bytes += try payload(at: location, .guestState)
            do throws(FormatError) {
                try checkpoint.manifest.checkOwns(records[location]?.entry.transaction ?? 0)
            } catch {
                throw unreadable(location, .guestState, error.reason)
            }
        }
        let location = checkpoint.manifest.stateParts.first ?? checkpoint.location
        let digest = bytes.withUnsafeBytes { PageDigest(hashing: $0) }
        guard digest == checkpoint.manifest.stateDigest else {
            throw unreadable(
                location, .guestState, "the state's digest is not the one in the manifest")
        }
        do throws(FormatError) {
            _ = try GuestStateCoding.decode(bytes)
        } catch {
            throw unreadable(location, .guestState, error.reason)
        }
    }

    private func unreadable(
        _ location: RecordLocation, _ type: RecordType, _ reason: String
    ) -> Unreadable {
        let place = records[location]
        return Unreadable(
            corruption: Corruption(
                file: place.map { salvages[$0.file].path } ?? PackName.path(location.pack),
                offset: UInt64(place?.entry.offset ?? location.offset), object: type.description,
                reason: reason))
    }

    // MARK: - Page maps

    /// A checkpoint's page map, and lost parts that it does not need.
    private func map(
        of checkpoint: Checkpoint, after last: (id: CheckpointID, map: PageMap)?
    ) throws -> (PageMap, emptied: [RecordLocation], differing: Int?) {
        // Its chain is checked first: a map in memory is as large as its parts say.
        let (chain, lost) = try self.chain(of: checkpoint)
        if let last, checkpoint.parent == last.id, !checkpoint.hasBaseMap,
            checkpoint.manifest.mapParts.allSatisfy({ records[$0] != nil })
        {
            let changed = try apply(checkpoint, to: last.map)
            // It contains every frame that differs from its parent.
            last.map.keep(checkpoint.manifest.volumes.map(\.number))
            if lost.isEmpty, last.map.hasRoots(of: checkpoint.manifest) {
                return (last.map, [], changed)
            }
        }
        let map = PageMap(disksIn: ScratchMemory.Place(files: files.files))
        for member in chain.reversed() { try apply(member, to: map) }
        map.keep(checkpoint.manifest.volumes.map(\.number))
        guard map.hasRoots(of: checkpoint.manifest) else {
            if let first = lost.first { throw Unreadable(corruption: self.lost(first, .mapPart)) }
            throw unreadable(
                checkpoint.location, .publish, "the page map's root is not the stated one")
        }
        // An empty part must have a place in its pack.
        for location in lost where !canEmpty(location) {
            throw Unreadable(corruption: self.lost(location, .mapPart))
        }
        return (map, lost, nil)
    }

    /// Checks a manifest against what it counts.
    private func checkCounts(
        of checkpoint: Checkpoint, _ map: PageMap, differing: Int?
    ) throws {
        do throws(FormatError) {
            try checkpoint.manifest.check(map, differing: differing)
            guard let totals else { return }
            try checkpoint.manifest.check(
                totals[checkpoint.manifest.transaction] ?? TransactionTotals())
        } catch {
            throw unreadable(checkpoint.location, .publish, error.reason)
        }
    }

    /// The checkpoints whose maps make up one's own, newest first, and those of their parts that
    /// are lost.
    private func chain(
        of checkpoint: Checkpoint
    ) throws -> (members: [Checkpoint], lost: [RecordLocation]) {
        var chain = [checkpoint]
        var walk = MapAncestry(of: checkpoint)
        while let ancestor = try walk.next(
            { (id) throws(Unreadable) in
                guard let position = positions[id] else {
                    throw Unreadable(corruption: lostManifest(id))
                }
                return members[position].checkpoint
            },
            unfit: { unreadable($0.location, .publish, $1.reason) })
        {
            chain.append(ancestor)
        }
        return (chain, chain.flatMap(\.manifest.mapParts).filter { records[$0] == nil })
    }

    /// True if a plan reports a damaged place by itself, whatever it lost.
    func isNamed(_ corruption: Corruption) -> Bool {
        if wrong.values.contains(where: {
            $0.file == corruption.file && $0.offset == corruption.offset
        }) {
            return true
        }
        let name = String(corruption.file.dropFirst(StoreDirectory.packs.utf8.count + 1))
        if let pack = PackName.number(name), missing.contains(where: { $0.contains(pack) }) {
            return true
        }
        return salvages.contains { salvage in
            salvage.path == corruption.file
                && salvage.damages.contains { $0.range.lowerBound == corruption.offset }
        }
    }

    /// True if prune removed a record: its pack was removed, or is whole and was rewritten without
    /// it.
    func isPruned(_ location: RecordLocation) -> Bool {
        if pruned.contains(location.pack) { return true }
        guard let file = packs[location.pack], records[location] == nil else { return false }
        return salvages[file].isRewritten && salvages[file].damages.isEmpty
    }

    /// Where the manifest of a checkpoint was, as far as known.
    func lostManifest(_ id: CheckpointID) -> Corruption {
        if let entry = hints.manifests.first(where: { $0.id == id }) {
            return lost(entry.location, .publish)
        }
        return Corruption(
            file: StoreDirectory.packs, offset: 0, object: RecordType.publish.description,
            reason: "no pack has the manifest of \(id.short), on whose page map its own is based")
    }

    /// - Returns: the number of frames that changed.
    @discardableResult
    private func apply(_ checkpoint: Checkpoint, to map: PageMap) throws -> Int {
        var changed = 0
        for location in checkpoint.manifest.mapParts where records[location] != nil {
            changed += MapReader.apply(try mapPart(at: location), to: map)
        }
        return changed
    }

    /// True if an empty part can have a place in its pack.
    private func canEmpty(_ location: RecordLocation) -> Bool {
        guard let file = packs[location.pack], wrong[location] == nil else { return false }
        let start = UInt64(location.offset)
        let end = start + UInt64(RepairSurvey.emptyPartByteCount)
        return end <= UInt64(UInt32.max)
            && !salvages[file].entries.contains {
                $0.addresses.lowerBound < end && start < $0.addresses.upperBound
            }
    }

    /// An empty part of a page map.
    static let emptyPart = MapPart.emptyPayload
    private static let emptyPartByteCount = RecordHeader.recordByteCount(payload: emptyPart.count)

    private func missing(
        in map: PageMap, _ stock: RepairStock
    ) -> [(frame: PageFrameNumber, digest: PageDigest)] {
        guard !stock.missing.isEmpty else { return [] }
        var result: [(frame: PageFrameNumber, digest: PageDigest)] = []
        map.forEachPage(of: map.volumes) { frame, digest in
            if stock.missing.contains(digest) { result.append((frame, digest)) }
        }
        return result
    }
}
