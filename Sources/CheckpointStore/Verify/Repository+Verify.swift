import CheckpointFormat
import GuestModel
import Synchronization

// Verification in two passes.
//
//  1. Every pack is read from its first byte to its last: envelope, each record's checksum, each
//     page frame's table, the pack's index against its records, the footer.
//  2. Every checkpoint in the order of publication: manifest and id, page map and Merkle root, the
//     guest's state, and each page that it stored: decompressed, and digested. A page that an
//     earlier checkpoint stored must be in the index.
//
// What a writer appends meanwhile lies behind the index's read mark and is left alone.

extension Repository {
    /// Reads every byte of every pack and checks it, on all processors.
    ///
    /// Damage is collected, not thrown; what is thrown is a disk that cannot be read.
    ///
    /// - Parameter progress: called now and then, from any thread, with bytes done and in all.
    public func verify(
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) throws(RepositoryError) -> VerifyReport {
        let mark = try withIndex { try $0.readMark() }
        let packs = try PackName.list(reader.files)
        let (catalog, lease) = try leaseAll()
        defer { withExtendedLifetime(lease) {} }
        let forgotten = try withIndex { try $0.manifests() }.filter(\.isForgotten)
        let verification = Verification(repository: self, mark: mark, progress: progress)
        do {
            try verification.measure(packs, checkpointCount: catalog.count)
            try verification.readPacks(packs)
            verification.noteMissingPacks(packs, try withIndex { try $0.pruned() })
            try verification.walk(catalog)
            try verification.walk(forgotten: forgotten)
            try verification.findAffected(catalog)
            verification.finish()
            return verification.report()
        } catch {
            throw RepositoryError(indexFailure: error, path: path)
        }
    }
}

extension Repository {
    /// All checkpoints, and a lease of them.
    private func leaseAll() throws(RepositoryError) -> ([CatalogEntry], CheckpointLease) {
        while true {
            let catalog = try withIndex { try $0.catalog() }
            do throws(RepositoryError) {
                return (catalog, try lease(catalog.map(\.id)))
            } catch {
                // One was forgotten just now: the catalog lacks it already.
                if error.code != .unknownName { throw error }
            }
        }
    }
}

/// One verification under way.
private final class Verification: Sendable {
    private struct State: Sendable {
        var report = VerifyReport()
        var done = 0
        var total = 0
        var damagedDigests: Set<PageDigest> = []
        var affected: [CheckpointID] = []
    }

    private let repository: Repository
    private let mark: ReadMark
    private let progress: (@Sendable (Int, Int) -> Void)?
    private let state = Mutex(State())
    private var reader: PackReader { repository.reader }

    init(
        repository: Repository, mark: ReadMark, progress: (@Sendable (Int, Int) -> Void)?
    ) {
        self.repository = repository
        self.mark = mark
        self.progress = progress
    }

    func report() -> VerifyReport {
        state.withLock { state in
            var report = state.report
            var seen: Set<CheckpointID> = []
            report.affectedCheckpoints = state.affected.filter { seen.insert($0).inserted }
            return report
        }
    }

    private func note(_ corruption: Corruption) {
        state.withLock { $0.report.corruptions.append(corruption) }
    }

    private func advance(_ byteCount: Int) {
        let (done, total) = state.withLock { state in
            state.done += byteCount
            return (state.done, state.total)
        }
        progress?(min(done, total), total)
    }

    /// Each byte is read twice: for the records, and for the pages in them.
    func measure(_ packs: [UInt32], checkpointCount: Int) throws {
        var total = 0
        for pack in packs {
            // One that prune has removed since has none.
            total += (try? repository.byteCount(of: pack)) ?? 0
        }
        let sum = total
        state.withLock { state in
            state.total = 2 * sum
            state.report.packCount = packs.count
        }
    }

    // MARK: - Packs

    func readPacks(_ packs: [UInt32]) throws {
        let next = Atomic(0)
        let failure = Mutex<(any Error & Sendable)?>(nil)
        Threads.concurrently(min(Threads.processorCount, packs.count)) { _ in
            while true {
                let position = next.add(1, ordering: .relaxed).oldValue
                guard position < packs.count else { return }
                do {
                    try self.readPack(packs[position], isNewest: position == packs.count - 1)
                } catch let error as RepositoryError where error.corruption != nil {
                    error.corruption.map(self.note)
                } catch let error as RepositoryError {
                    failure.withLock { $0 = error }
                } catch let error as FileError {
                    failure.withLock { $0 = RepositoryError(error) }
                } catch {
                    preconditionFailure("reading a pack fails in two ways only: \(error)")
                }
            }
        }
        if let error = failure.withLock({ $0 }) { throw error }
    }

    private func readPack(_ pack: UInt32, isNewest: Bool) throws {
        let path = PackName.path(pack)
        func damage(_ offset: UInt32, _ object: String, _ reason: String) {
            note(Corruption(file: path, offset: UInt64(offset), object: object, reason: reason))
        }
        if pack > mark.pack {
            // Nothing in it was published: it is a live writer's, or what a crash left of one.
            let size = Int(try reader.files.open(path, .read).byteCount())
            state.withLock { $0.report.abandonedByteCount += size }
            return advance(size)
        }
        // Not through the reader's cache: the envelope is read from the disk once more.
        reader.drop(pack)
        let file: PackFile
        do throws(RepositoryError) {
            file = try reader.file(pack)
        } catch {
            // Prune may have removed it since the packs were listed.
            if try repository.withIndex({ try $0.pruned() }).contains(pack) { return }
            throw error
        }
        let size = try file.file.byteCount()
        var sealed: PackScan?
        do {
            let scan = try PackScan.scan(file)
            sealed = scan.isSealed ? scan : nil
        } catch {
            guard let corruption = error.corruption else { throw error }
            note(corruption)
        }
        let end: UInt64
        if let last = sealed?.entries.last {
            end = UInt64(last.end)
        } else if pack == mark.pack {
            end = min(UInt64(mark.offset), size)
        } else {
            end = size
        }
        let found = try readRecords(file, end: end, known: sealed?.entries, damage)
        state.withLock { $0.report.byteCount += Int(size) }
        if let sealed, sealed.entries != found {
            damage(0, "pack index", "it does not agree with the pack's records")
        }
        if sealed == nil {
            checkUnsealed(pack, isNewest: isNewest, found, size: size, damage)
        }
        advance(Int(size))
    }

    /// Reads records up to `end`; goes on behind damage where the pack's index knows the next one.
    private func readRecords(
        _ file: PackFile, end: UInt64, known: [PackIndex.Entry]?,
        _ damage: (UInt32, String, String) -> Void
    ) throws -> [PackIndex.Entry] {
        var entries: [PackIndex.Entry] = []
        var offset = UInt32(Envelope.byteCount)
        while UInt64(offset) < end {
            do {
                let (header, record) = try PackReader.readRecord(file.file, at: offset)
                let entry = try PackScan.entry(
                    header, record, at: offset, isRewritten: file.isRewritten)
                entries.append(entry)
                offset = entry.end
            } catch let error as FormatError {
                let entry = known?.first { $0.offset == offset }
                damage(offset, entry?.type.description ?? "record", error.reason)
                guard let entry else { break }
                // The index's word stands in for the record, so that its pages are looked at.
                entries.append(entry)
                offset = entry.end
            }
        }
        return entries
    }

    private func checkUnsealed(
        _ pack: UInt32, isNewest: Bool, _ found: [PackIndex.Entry], size: UInt64,
        _ damage: (UInt32, String, String) -> Void
    ) {
        let end = found.last?.end ?? UInt32(Envelope.byteCount)
        if !isNewest && pack < mark.pack {
            damage(end, "pack index", "the pack is not sealed, and later packs exist")
        } else if pack == mark.pack && end < mark.offset {
            damage(end, "record", "the pack ends before what was published in it")
        }
        let kept = UInt64(mark.offset)
        if pack == mark.pack && size > kept {
            state.withLock { $0.report.abandonedByteCount += Int(size - kept) }
        }
    }

    /// Names packs that are not there and that prune did not remove.
    func noteMissingPacks(_ packs: [UInt32], _ pruned: PrunedRecord) {
        let present = Set(packs)
        for pack in 1..<max(1, mark.pack + (mark.offset > 0 ? 1 : 0)) {
            guard !present.contains(pack), !pruned.contains(pack) else { continue }
            note(
                Corruption(
                    file: PackName.path(pack), offset: 0, object: "pack",
                    reason: "the file is missing; restore it from a copy"))
        }
    }

    // MARK: - Checkpoints

    func walk(_ catalog: [CatalogEntry]) throws {
        var last: (id: CheckpointID, map: PageMap)?
        for entry in catalog {
            do {
                // Leased, so it is there also if it is forgotten meanwhile.
                let checkpoint = try repository.ancestor(entry.id)
                last = try checkMap(checkpoint, after: last)
                _ = try repository.state(of: checkpoint)
                try checkPages(of: checkpoint)
                state.withLock { $0.report.checkpointCount += 1 }
            } catch let error as RepositoryError where error.corruption != nil {
                last = nil
                let attributed = error.attributed(to: entry.id)
                state.withLock { state in
                    state.affected.append(entry.id)
                    // The same damaged record stops every checkpoint that needs it: name it once.
                    if let corruption = attributed.corruption,
                        !state.report.corruptions.contains(where: {
                            $0.file == corruption.file && $0.offset == corruption.offset
                        })
                    {
                        state.report.corruptions.append(corruption)
                    }
                }
            }
        }
    }

    /// Checks what is still there of forgotten checkpoints: the pages that others have from them.
    ///
    /// Their page maps, where others build on them, were read with those.
    func walk(forgotten: [CatalogEntry]) throws {
        let pruned = try repository.withIndex { try $0.pruned() }
        for entry in forgotten {
            do {
                if try reader.isPruned(entry.location, pruned) { continue }
                let checkpoint = try repository.read(entry)
                for location in checkpoint.manifest.mapParts
                where try !reader.isPruned(location, pruned) {
                    let pages = try MapReader.part(reader, at: location).pages(.storedHere)
                    try check(try repository.locateKnown(pages), of: checkpoint)
                }
                advance(checkpoint.addedByteCount)
            } catch let error as RepositoryError
                where error.corruption != nil || error.code == .unknownName
            {
                // A damaged record was named when its pack was read; what prune took is no damage.
                continue
            }
        }
    }

    /// Says that all is done.
    func finish() {
        progress.map { report in state.withLock { report($0.total, $0.total) } }
    }

    /// Checks a page map against its root.
    ///
    /// Where the checkpoint follows the one before, its delta over that one's map is enough: it
    /// names every frame that differs.
    private func checkMap(
        _ checkpoint: Checkpoint, after last: (id: CheckpointID, map: PageMap)?
    ) throws -> (CheckpointID, PageMap) {
        if let last, checkpoint.parent == last.id, !checkpoint.hasBaseMap {
            try MapReader.apply(reader, checkpoint.manifest, to: last.map)
            if last.map.root() == checkpoint.root { return (checkpoint.id, last.map) }
        }
        // Read as a restore would; it throws if the root is wrong.
        return (checkpoint.id, try repository.pageMap(of: checkpoint).map)
    }

    /// Decompresses and digests the pages that a checkpoint stored; looks up the others.
    private func checkPages(of checkpoint: Checkpoint) throws {
        for location in checkpoint.manifest.mapParts {
            let part = try MapReader.part(reader, at: location)
            _ = try repository.locate(part.pages(.storedBefore))
            try check(try repository.locate(part.pages(.storedHere)), of: checkpoint)
        }
        advance(checkpoint.addedByteCount)
    }

    private func check(_ requests: [PageRequest], of checkpoint: Checkpoint) throws {
        let threadCount = min(Threads.processorCount, 1 + requests.count / 2048)
        let failure = Mutex<RepositoryError?>(nil)
        Threads.concurrently(threadCount) { thread in
            let start = requests.count * thread / threadCount
            let end = requests.count * (thread + 1) / threadCount
            var fetcher = PageFetcher(self.repository)
            do {
                try fetcher.fetch(requests[start..<end]) { corruption, request in
                    // A page of a forgotten checkpoint may have been pruned just now.
                    guard try self.repository.location(of: request.digest) != nil else { return }
                    self.note(corruption, request, checkpoint.id)
                } deliver: { _, _ in
                }
            } catch {
                let wrapped = RepositoryError(indexFailure: error, path: self.repository.path)
                failure.withLock { $0 = wrapped }
            }
        }
        state.withLock { $0.report.pageCount += requests.count }
        if let error = failure.withLock({ $0 }) { throw error }
    }

    /// Notes a damaged page; a block of many damaged pages is named once.
    private func note(
        _ corruption: Corruption, _ request: PageRequest, _ checkpoint: CheckpointID
    ) {
        state.withLock { state in
            state.damagedDigests.insert(request.digest)
            var named = corruption
            named.checkpoint = checkpoint
            let isKnown = state.report.corruptions.contains {
                $0.file == named.file && $0.offset == named.offset && $0.object == named.object
            }
            if !isKnown { state.report.corruptions.append(named) }
        }
    }

    /// Finds the checkpoints that hold a damaged page, whoever stored it.
    func findAffected(_ catalog: [CatalogEntry]) throws {
        let damaged = state.withLock { $0.damagedDigests }
        guard !damaged.isEmpty else { return }
        for entry in catalog {
            guard let checkpoint = try? repository.ancestor(entry.id),
                let map = try? repository.pageMap(of: checkpoint).map
            else { continue }
            let isAffected = map.layout.runs.contains { run in
                run.frames.contains { frame in
                    guard case .present(let digest) = map[PageFrameNumber(frame)] else {
                        return false
                    }
                    return damaged.contains(digest)
                }
            }
            if isAffected { state.withLock { $0.affected.append(entry.id) } }
        }
    }
}

extension MapPart {
    /// The frames of one kind and their digests.
    func pages(_ content: MapRun.Content) -> [(frame: PageFrameNumber, digest: PageDigest)] {
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        forEachRun { run, digests in
            guard run.content == content else { return }
            for (frame, digest) in zip(run.range.frames, digests) {
                pages.append((PageFrameNumber(frame), digest))
            }
        }
        return pages
    }
}
