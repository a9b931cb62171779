import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// Pages that are known to be unreadable without trying: their pack is gone, or nothing readable
// gives their location any more. They are recorded by digest, like damaged pages, because the
// checkpoint that stored them may be lost too, and no checkpoint that contains them can be
// restored.

extension Verification {
    /// Finds the locations of pages, sorted by location, and reports those without one.
    ///
    /// The presence in the pack is checked even if all packs are whole: an index older than the
    /// packs refers to pages that prune has since removed.
    func find(
        _ pages: [(frame: PageFrameNumber, digest: PageDigest)], for checkpoint: CheckpointID
    ) throws(RepositoryError) -> [PageRequest] {
        let requests: [PageRequest]
        do throws(RepositoryError) {
            requests = try repository.locate(pages)
        } catch {
            guard let corruption = error.attributed(to: checkpoint).corruption else { throw error }
            requests = try repository.locateKnown(pages)
            let known = Set(requests.map(\.digest))
            for page in pages where !known.contains(page.digest) {
                findings.note(corruption, page.digest, storedBy: checkpoint)
            }
            findings.note(corruption, for: checkpoint)
        }
        return try withPlaces(requests, for: checkpoint)
    }

    /// Those of the given pages whose packs contain their locations; reports the others.
    ///
    /// - Parameter requests: sorted by location.
    private func withPlaces(
        _ requests: [PageRequest], for checkpoint: CheckpointID
    ) throws(RepositoryError) -> [PageRequest] {
        var kept: [PageRequest] = []
        kept.reserveCapacity(requests.count)
        var current: (pack: UInt32, place: PackPlace)?
        for request in requests {
            let pack = request.location.pack
            let place: PackPlace
            if let current, current.pack == pack {
                place = current.place
            } else {
                place = try self.place(of: pack)
                current = (pack, place)
            }
            guard let corruption = place.corruption(at: request.location) else {
                kept.append(request)
                continue
            }
            // Prune may have moved or removed it since it was looked up.
            guard try repository.location(of: request.digest) == request.location else { continue }
            findings.note(corruption, request.digest, storedBy: checkpoint)
        }
        return kept
    }

    private func place(of pack: UInt32) throws(RepositoryError) -> PackPlace {
        let file: PackFile
        do throws(RepositoryError) {
            file = try reader.file(pack)
        } catch {
            guard let corruption = error.corruption else { throw error }
            return .lost(corruption)
        }
        do throws(FileError) {
            return .file(file, byteCount: try file.file.byteCount())
        } catch {
            throw RepositoryError(error)
        }
    }

    /// Submits the pages in page maps that were not read, because the map that says which
    /// checkpoint stored them is lost.
    ///
    /// Called only after damage was found: it reads the page maps again, and needs about 16 bytes
    /// of memory per block of pages.
    func checkUnread(_ catalog: [CatalogEntry], _ pages: VerifyPages) throws(RepositoryError) {
        guard depth != .structure else { return }
        var read = ReadPages()
        for entry in catalog {
            try forEachRequest(of: entry, .storedHere) { requests in
                for request in requests { read.insert(request.location) }
            }
        }
        for entry in catalog {
            try forEachRequest(of: entry, .storedBefore) { requests in
                submit(requests.filter { read.insert($0.location) }, of: entry.id, pages)
            }
        }
    }

    /// Calls `body` with pages of a checkpoint's own map, as far as it is readable.
    private func forEachRequest(
        of entry: CatalogEntry, _ content: MapRun.Content, _ body: ([PageRequest]) -> Void
    ) throws(RepositoryError) {
        do throws(RepositoryError) {
            let checkpoint = try repository.read(entry)
            let pruned = try repository.withIndex { try $0.pruned() }
            try MapReader.forEachPart(reader, checkpoint.manifest) {
                (location) throws(RepositoryError) in
                try reader.isPruned(location, pruned)
            } _: { (part) throws(RepositoryError) in
                try part.forEachBatch(content) { (batch) throws(RepositoryError) in
                    let known = try repository.locateKnown(batch)
                    body(try withPlaces(known, for: entry.id))
                }
            }
        } catch {
            // Already reported; or pruned in the meantime.
            guard error.corruption != nil || error.code == .unknownName else { throw error }
        }
    }

    // MARK: - Checkpoints

    /// Checkpoints that are in the repository's own index but no longer in any pack, although they
    /// were not forgotten; and those that were forgotten according to that index only.
    ///
    /// - Parameter known: all checkpoints in the packs.
    func lostCheckpoints(
        _ known: [CatalogEntry]
    ) throws(RepositoryError) -> (lost: [CatalogEntry], forgotten: Set<CheckpointID>) {
        guard repository.temporaryIndex?.isFromPacks == true, let hints = try ownHints() else {
            return ([], [])
        }
        let ids = Set(known.map(\.id))
        let pruned = try repository.withIndex { try $0.pruned() }
        var lost: [CatalogEntry] = []
        for entry in hints.manifests where !entry.isForgotten && !ids.contains(entry.id) {
            if try !isPruned(entry.location, pruned) { lost.append(entry) }
        }
        return (lost, Set(hints.manifests.filter(\.isForgotten).map(\.id)))
    }

    /// What the repository's own index knows; nil if it is another user's.
    private func ownHints() throws(RepositoryError) -> RepairHints? {
        do throws(FileError) {
            guard try reader.files.foreignOwner() == nil else { return nil }
            return try RepairHints(
                RepairFiles(reader.files, repository.id), path: repository.path)
        } catch {
            throw RepositoryError(error)
        }
    }

    /// True if prune removed a record that an older index still refers to.
    private func isPruned(
        _ location: RecordLocation, _ pruned: PrunedRecord
    ) throws(RepositoryError) -> Bool {
        if pruned.contains(location.pack) { return true }
        do throws(RepositoryError) {
            let file = try reader.file(location.pack)
            guard file.offset(ofRecord: location.offset) == nil else { return false }
            return try PackScan.scan(file, isNewest: false).isSealed
        } catch {
            guard error.corruption != nil else { throw error }
            return false
        }
    }

    /// Finds and reports checkpoints whose manifests are whole, but which no index has because what
    /// they refer to is unreadable.
    ///
    /// - Parameters:
    ///   - known: all checkpoints in an index.
    ///   - forgotten: those that were forgotten according to the repository's own index only.
    func unindexedCheckpoints(
        _ known: [CatalogEntry], _ forgotten: Set<CheckpointID>
    ) throws(RepositoryError) -> [(CheckpointID, RecordLocation)] {
        var passed = forgotten.union(known.map(\.id))
        let places = Set(known.map(\.location))
        let (manifests, forgets) = state.withLock { ($0.manifests, $0.forgets) }
        var found: [(CheckpointID, RecordLocation)] = []
        for (location, offset) in manifests where !places.contains(location) {
            guard let payload = try payload(at: offset, of: location.pack) else { continue }
            guard (try? Manifest.decode(payload)) != nil else { continue }
            let digest = payload.withUnsafeBytes { PageDigest(hashing: $0) }
            found.append((CheckpointID(digest), location))
        }
        guard !found.isEmpty else { return [] }
        for (location, offset) in forgets {
            guard let payload = try payload(at: offset, of: location.pack),
                let record = try? ForgetRecord.decode(payload)
            else { continue }
            passed.formUnion(record.ids.map { CheckpointID($0) })
        }
        found = found.filter { passed.insert($0.0).inserted }
        for (id, location) in found {
            let path = PackName.path(location.pack)
            let corruption =
                repository.damage.first {
                    $0.file == path && $0.offset == UInt64(location.offset)
                }
                ?? reader.corrupted(
                    location, .publish,
                    FormatError(offset: 0, reason: "what it refers to cannot be read")
                ).attributed(to: id).corruption
            if let corruption { findings.note(corruption, for: id) }
        }
        return found
    }

    /// The payload of a record at an offset in the file; nil if it is unreadable.
    ///
    /// In a damaged rewritten pack, addresses may not resolve.
    private func payload(
        at offset: UInt32, of pack: UInt32
    ) throws(RepositoryError) -> [UInt8]? {
        do {
            let file = try reader.file(pack)
            let (header, bytes) = try PackReader.readRecord(file.file, at: offset).get()
            let end = RecordHeader.byteCount + header.payloadCount
            return Array(bytes[RecordHeader.byteCount..<end])
        } catch let error as RepositoryError {
            guard error.corruption != nil else { throw error }
            return nil
        } catch let error as FileError {
            throw RepositoryError(error)
        } catch {
            // Reported when its pack was read.
            return nil
        }
    }

    /// Reports what lost a checkpoint that only the index has.
    func note(lost entry: CatalogEntry) throws(RepositoryError) {
        do throws(RepositoryError) {
            let (found, _) = try ManifestReader.read(reader, at: entry.location)
            guard found != entry.id else { return }
            throw reader.corrupted(
                entry.location, .publish,
                FormatError(
                    offset: 0,
                    reason: "it is checkpoint \(found.short), not \(entry.id.short)"))
        } catch {
            guard let corruption = error.attributed(to: entry.id).corruption else { throw error }
            findings.note(corruption, for: entry.id)
        }
    }
}

/// What exists of a pack.
private enum PackPlace {
    case file(PackFile, byteCount: UInt64)
    case lost(Corruption)

    /// Why nothing can be at a location; nil if something may be.
    func corruption(at location: PageLocation) -> Corruption? {
        switch self {
        case .lost(let corruption): return corruption
        case .file(let file, let byteCount):
            let offset = file.offset(
                ofBlock: location.blockOffset, byteCount: location.blockByteCount)
            if let offset, offset + UInt64(location.blockByteCount) <= byteCount { return nil }
            return Corruption(
                file: PackName.path(location.pack), offset: UInt64(location.blockOffset),
                object: "page group",
                reason: offset == nil ? "the pack lacks it" : "the pack ends before it")
        }
    }
}

/// Pages that were read, by location.
private struct ReadPages {
    /// The slots of each block: at most 64.
    private var slots: [UInt64: UInt64] = [:]

    /// - Returns: true if it was not yet contained.
    @discardableResult
    mutating func insert(_ location: PageLocation) -> Bool {
        let bit = UInt64(1) << UInt64(location.slot)
        let known = slots[location.place, default: 0]
        slots[location.place] = known | bit
        return known & bit == 0
    }
}
