import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

// Pages that cannot be read though no one has tried: their pack is gone, or nothing that can be
// read says any more where they are. They are noted by digest, as damaged pages are, because
// the checkpoint that stored them may be lost too, and none that holds them can be restored.

extension Verification {
    /// Finds where pages lie, sorted by place, and notes those that have none.
    ///
    /// That a pack has something at the place is asked too where all packs are whole: an index that
    /// is older than the packs names pages that prune took since.
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

    /// Those of some pages whose packs reach to where they lie; notes the others.
    ///
    /// - Parameter requests: sorted by place.
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
            // Prune may have put it elsewhere since it was looked up, or taken it.
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

    /// Hands in the pages that page maps name and that were not read, because the map is lost that
    /// says that its checkpoint stored them.
    ///
    /// Asked only once something is damaged: it reads the page maps again, and needs some 16 bytes
    /// of memory for each block of pages.
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

    /// Calls `body` with pages of a checkpoint's own map, as far as it can be read.
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
                let known = try repository.locateKnown(part.pages(content))
                body(try withPlaces(known, for: entry.id))
            }
        } catch {
            // Named already; or pruned meanwhile.
            guard error.corruption != nil || error.code == .unknownName else { throw error }
        }
    }

    // MARK: - Checkpoints

    /// Checkpoints that the repository's own index knows, and that are in no pack any more, though
    /// they were not forgotten; and those of which only it knows that they were forgotten.
    ///
    /// - Parameter known: all that the packs say.
    func lostCheckpoints(
        _ known: [CatalogEntry]
    ) throws -> (lost: [CatalogEntry], forgotten: Set<CheckpointID>) {
        guard repository.temporaryIndex?.isFromPacks == true,
            try reader.files.foreignOwner() == nil
        else { return ([], []) }
        let hints = try RepairHints(
            RepairFiles(reader.files, repository.id), path: repository.path)
        let ids = Set(known.map(\.id))
        let pruned = try repository.withIndex { try $0.pruned() }
        let lost = try hints.manifests.filter { entry in
            guard !entry.isForgotten, !ids.contains(entry.id) else { return false }
            return try !isPruned(entry.location, pruned)
        }
        return (lost, Set(hints.manifests.filter(\.isForgotten).map(\.id)))
    }

    /// True if prune took a record, and the index that names it is older than that.
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

    /// Finds and notes checkpoints whose manifests are whole, and which no index has because what
    /// they name cannot be read.
    ///
    /// - Parameters:
    ///   - known: all that an index knows.
    ///   - forgotten: those of which only the repository's own index knows that they were.
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
                    FormatError(offset: 0, reason: "what it names cannot be read")
                ).attributed(to: id).corruption
            if let corruption { findings.note(corruption, for: id) }
        }
        return found
    }

    /// What a record at a place in the file holds; nil if it cannot be read.
    ///
    /// In a damaged pack that was rewritten, addresses may lead nowhere.
    private func payload(
        at offset: UInt32, of pack: UInt32
    ) throws(RepositoryError) -> [UInt8]? {
        do {
            let file = try reader.file(pack)
            let (header, bytes) = try PackReader.readRecord(file.file, at: offset)
            let end = RecordHeader.byteCount + header.payloadCount
            return Array(bytes[RecordHeader.byteCount..<end])
        } catch let error as RepositoryError {
            guard error.corruption != nil else { throw error }
            return nil
        } catch let error as FileError {
            throw RepositoryError(error)
        } catch {
            // Named when its pack was read.
            return nil
        }
    }

    /// Notes what lost a checkpoint of which only the index knows.
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

/// What there is of a pack.
private enum PackPlace {
    case file(PackFile, byteCount: UInt64)
    case lost(Corruption)

    /// Why nothing can be at a place; nil if something may be.
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

/// Pages that were read, by their places.
private struct ReadPages {
    /// The slots of each block: it has 64 at most.
    private var slots: [UInt64: UInt64] = [:]

    /// - Returns: true if it was not in it.
    @discardableResult
    mutating func insert(_ location: PageLocation) -> Bool {
        let bit = UInt64(1) << UInt64(location.slot)
        let known = slots[location.place, default: 0]
        slots[location.place] = known | bit
        return known & bit == 0
    }
}
