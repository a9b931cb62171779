import CheckpointFormat
import CheckpointIndex
import CheckpointStore
public import GuestModel
import LMDBTables
public import PackStore

// A repair, in an order in which a crash at any point loses nothing that is whole:
//
//   1. Files that are not packs get a second name in the directory `damaged`, which is synced; then
//      their first names are removed. Misplaced packs get temporary names, then the right ones.
//   2. Lost checkpoints are forgotten, saved pages are stored again, and missing packs are listed,
//      as a writer would do it: after the records of the open pack, or in a new one if that is
//      sealed; it is synced.
//   3. Each pack that is rewritten gets a second name in the directory `damaged`, which is synced;
//      then the new version is written beside it, and synced.
//   4. The index, which until then may be the only source for a page, is emptied, and the new packs
//      replace the old ones.
//   5. The head is removed. The repository is opened, which rebuilds the index, and verified;
//      closing it creates a new head.
//
// Until the last pack is in its place the repository is damaged, and the next repair does the rest.
// If this ends before step 4, a writer can write as before, with the old index; everything that
// needs disk space, except for the last index, happens before that. After a failure in step 4,
// which is one txn of LMDB and a few renames, damage that the old index had read past is found
// again.

extension RepairPlan {
    /// Carries out a plan, and then verifies every byte.
    ///
    /// If this throws, completed steps remain done, nothing that was whole is lost, and a new plan
    /// does the rest. A plan can be executed only once.
    ///
    /// - Parameters:
    ///   - keepsOriginals: whether the original packs are kept in the directory `damaged`. Files
    ///     that are not packs are always kept.
    ///   - cancellation: ends it with `cancelled` before the next pack is written; once the new
    ///     packs begin to replace the old ones, only the verification at the end is cancelled.
    ///   - progress: called in phase `rewriting` with packs, then in phase `verifying` with bytes.
    public func execute(
        keepsOriginals: Bool = true, cancellation: Cancellation? = nil,
        progress: ProgressHandler? = nil
    ) throws(RepositoryError) -> RepairOutcome {
        let control = WorkControl(
            "the repair was cancelled; nothing that was whole is lost, and another repair does "
                + "the rest", cancellation, progress)
        if let refusal = preparation.lock.refusal { throw refusal }
        guard preparation.lock.isHeld else {
            throw RepositoryError(.planStale, "this repair was done already; plan another one")
        }
        do {
            try Repository.checkRepairable(preparation.path, preparation.files)
            try Repository.removeStrays(preparation.files)
            var run = RepairOperation(self, keepsOriginals: keepsOriginals)
            try run.moveFiles(movedFiles)
            try run.writeRecords()
            try run.rewritePacks(control)
            try StoreHead.remove(preparation.files)
            let repository = try Repository.openRepaired(
                preparation.path, preparation.repository, preparation.files,
                packByteCountMax: preparation.packByteCountMax, lock: preparation.lock.take)
            let report = try repository.verify(.full, control)
            try repository.close()
            return RepairOutcome(report: report, keptByteCount: run.keptByteCount)
        } catch {
            let failure = IndexFailure.resolve(error, at: preparation.path, preparation.files)
            guard failure.code == .noSpace else { throw failure }
            throw RepositoryError(
                .noSpace,
                "no space is left to repair \(preparation.path); nothing intact was lost; free "
                    + "some space and repair it again", errno: failure.errno)
        }
    }
}

/// A plan being carried out.
private struct RepairOperation {
    private static let pagesOfFrame = PageGroupEncoder.pageCount

    private let preparation: RepairPreparation
    private let openPack: RecordLocation?
    private let removed: [UInt32]
    private let files: any RepositoryFiles
    private let keepsOriginals: Bool
    private(set) var keptByteCount = 0

    init(_ plan: RepairPlan, keepsOriginals: Bool) {
        preparation = plan.preparation
        openPack = plan.openPack
        removed = plan.removedPacks
        self.keepsOriginals = keepsOriginals
        files = preparation.files
    }

    private func path(_ name: String) -> String { "\(StoreDirectory.packs)/\(name)" }

    // MARK: - Files

    mutating func moveFiles(_ junk: [String]) throws(FileError) {
        if preparation.envelopeIsLost { try rewriteEnvelope() }
        for name in junk where try keep(path(name), as: name, isMoved: true) {
            try files.remove(path(name))
        }
        for name in preparation.hollow { try files.remove(path(name)) }
        let misplaced = preparation.misplaced
        for file in misplaced { try files.rename(path(file.name), to: foundPath(file.pack)) }
        if !junk.isEmpty || !misplaced.isEmpty || !preparation.hollow.isEmpty {
            try files.syncDirectory(StoreDirectory.packs)
        }
        for file in misplaced {
            try files.rename(foundPath(file.pack), to: PackName.path(file.pack))
        }
        if !misplaced.isEmpty { try files.syncDirectory(StoreDirectory.packs) }
    }

    /// A temporary name that is not a pack's, until the right one is free.
    private func foundPath(_ pack: UInt32) -> String { PackName.path(pack) + ".found" }

    private mutating func rewriteEnvelope() throws(FileError) {
        do throws(FileError) {
            try keep("repository", as: "repository")
        } catch {
            if !error.isMissing { throw error }
        }
        let envelope = Envelope(
            kind: .repository, repository: preparation.repository, number: WallClock.nanoseconds)
        try files.replace("repository", with: envelope.encoded)
    }

    /// Gives a file a second name in the directory `damaged`, durably.
    ///
    /// - Parameter isMoved: true if the first name is to be removed anyway.
    /// - Returns: false if the file is gone.
    @discardableResult
    private mutating func keep(
        _ path: String, as name: String, isMoved: Bool = false
    ) throws(FileError) -> Bool {
        let directory = StoreDirectory.damaged
        try files.createDirectory(directory)
        try files.syncDirectory("")
        let taken = Set(try files.list(directory))
        var free = name
        var number = 1
        while taken.contains(free) {
            free = "\(name).\(number)"
            number += 1
        }
        keptByteCount += Int((try? files.open(path, .read).byteCount()) ?? 0)
        var isThere = true
        do throws(FileError) {
            try files.link(path, to: "\(directory)/\(free)")
        } catch {
            guard error.isNotSupported else { throw error }
            if isMoved {
                // Directories cannot have two names; nothing is lost if a crash keeps either.
                try files.rename(path, to: "\(directory)/\(free)")
                isThere = false
            } else {
                try copy(path, to: "\(directory)/\(free)")
            }
        }
        try files.syncDirectory(directory)
        return isThere
    }

    private func copy(_ path: String, to newPath: String) throws(FileError) {
        let source = try files.open(path, .read)
        var isWhole = false
        defer { if !isWhole { try? files.remove(newPath + ".new") } }
        let target = try files.open(newPath + ".new", .create)
        var offset: UInt64 = 0
        while true {
            let bytes = try source.readPages(1 << 20, at: offset)
            if bytes.isEmpty { break }
            try target.write(bytes, at: offset)
            offset += UInt64(bytes.count)
        }
        try target.sync()
        try files.rename(newPath + ".new", to: newPath)
        isWhole = true
    }

    // MARK: - Records

    /// Writes the records that must exist before any pack changes.
    func writeRecords() throws(RepositoryError) {
        guard preparation.needsPack else { return }
        let writer = try makeWriter()
        let epoch = try writer.begin()
        var manifest: [UInt8]?
        var forgotten = preparation.forgotten.map(\.digest)
        if !preparation.saved.isEmpty {
            let bytes = try storePages(writer, epoch)
            manifest = bytes
            forgotten.append(bytes.withUnsafeBytes { PageDigest(hashing: $0) })
        }
        while !forgotten.isEmpty {
            let record = ForgetRecord(
                timeNanoseconds: Int64(WallClock.nanoseconds),
                ids: Array(forgotten.prefix(ForgetRecord.idCountMax)))
            forgotten.removeFirst(record.ids.count)
            _ = try writer.appendAlone(.forget, payload: record.encoded)
        }
        var labels = preparation.labels[...]
        while !labels.isEmpty {
            let record = LabelsRecord(
                timeNanoseconds: Int64(WallClock.nanoseconds),
                changes: Array(labels.prefix(LabelsRecord.changeCountMax)))
            labels.removeFirst(record.changes.count)
            _ = try writer.appendAlone(.labels, payload: record.encoded)
        }
        if let manifest {
            // Forgotten before it exists: only its page map is needed.
            _ = try writer.publish(
                manifest, transaction: preparation.nextTransaction, epoch: epoch)
        }
        if let pruned = preparation.pruned {
            _ = try writer.appendAlone(.pruned, payload: pruned.encoded)
        }
    }

    /// A writer that continues in the open pack, or creates the next one.
    ///
    /// A later pack beside an unsealed one is damage, which keeps all writers away.
    private func makeWriter() throws(RepositoryError) -> PackWriter {
        let limit = preparation.packByteCountMax - Repository.packIndexReserve
        guard let end = openPack else {
            return try PackWriter(
                files: files, repository: preparation.repository, pack: preparation.nextPack,
                scan: nil, packByteCountMax: limit)
        }
        let reader = PackReader(files: files, repository: preparation.repository)
        let file = try reader.file(end.pack)
        let scan = try PackScan.scanRecords(
            file.file, pack: end.pack, isRewritten: file.isRewritten)
        guard scan.validEnd == end.offset else { throw changedSince() }
        // Including what was never confirmed: it may contain the only copies of pages.
        let writer = try Repository.resume(
            reader, end.pack, scan, keeping: scan.entries, limit: limit)
        // A pack that is rewritten or removed afterwards would lose what is appended to it now.
        let changed = preparation.rewrites.map(\.pack) + removed
        if changed.contains(end.pack), try !writer.sealQuietPack() { throw changedSince() }
        return writer
    }

    private func changedSince() -> RepositoryError {
        RepositoryError(
            .callFailed, "a pack has changed since the repair was planned; plan it again")
    }

    /// Stores saved pages again.
    ///
    /// - Returns: the manifest that refers to them.
    private func storePages(
        _ writer: PackWriter, _ epoch: UInt64
    ) throws(RepositoryError) -> [UInt8] {
        let transaction = preparation.nextTransaction
        let saved = preparation.saved
        let pages = RepairPages(
            files: RepairFiles(files, preparation.repository), paths: preparation.presentPaths)
        let unpacker = try BlockUnpacker()
        let compressor = try Compressor.allocate(level: .standard)
        let map = PageMap(disksIn: ScratchMemory.Place(files: files))
        let count = RepairOperation.pagesOfFrame
        let buffer = try PageMemory.reserve(byteCount: count * Page.byteCount)
        defer { PageMemory.deallocate(buffer) }
        for first in stride(from: 0, to: saved.count, by: count) {
            let batch = saved[first..<min(first + count, saved.count)]
            var sources: [PageBlockSource] = []
            for (slot, page) in batch.enumerated() {
                let start = slot * Page.byteCount
                let target = UnsafeMutableRawBufferPointer(
                    rebasing: buffer[start..<start + Page.byteCount])
                try load(page, pages, unpacker, into: target)
                sources.append(PageBlockSource(bytes: UnsafeRawBufferPointer(target)))
                map.memory.set(PageFrameNumber(UInt64(first + slot)), .present(page.digest))
            }
            var record = RecordWriter()
            let table = PageGroupEncoder.append(
                sources, firstOrdinal: UInt32(first), transaction: transaction,
                compressor: compressor, to: &record)
            let pending = PendingRecord(
                range: 0..<record.count, type: .pageGroup, transaction: transaction,
                frame: table)
            _ = try record.withUnsafeBytes { (bytes) throws(RepositoryError) in
                try writer.append([pending], of: bytes, epoch: epoch)
            }
        }
        return try describe(map, writer, epoch)
    }

    private func load(
        _ page: (digest: PageDigest, place: PagePlace), _ pages: RepairPages,
        _ unpacker: borrowing BlockUnpacker, into target: UnsafeMutableRawBufferPointer
    ) throws(RepositoryError) {
        let slot = Int(page.place.slot)
        let found: PageDigest?
        do throws(FileError) {
            found = try pages.pages(page.place.block, unpacker) { contents in
                let start = slot * Page.byteCount
                target.copyMemory(
                    from: UnsafeRawBufferPointer(
                        rebasing: contents[start..<start + Page.byteCount]))
                return PageDigest(hashing: UnsafeRawBufferPointer(target))
            }
        } catch {
            throw RepositoryError(error)
        }
        guard found == page.digest else {
            throw changedSince()
        }
    }

    /// Writes the page map and the state of a checkpoint that contains saved pages.
    private func describe(
        _ map: PageMap, _ writer: PackWriter, _ epoch: UInt64
    ) throws(RepositoryError) -> [UInt8] {
        let transaction = preparation.nextTransaction
        func append(
            _ type: RecordType, _ payload: [UInt8]
        ) throws(RepositoryError) -> RecordLocation {
            var record = RecordWriter()
            let range = record.append(type, transaction: transaction, payload: payload)
            let pending = PendingRecord(range: range, type: type, transaction: transaction)
            return try record.withUnsafeBytes { (bytes) throws(RepositoryError) in
                try writer.append([pending], of: bytes, epoch: epoch)[0]
            }
        }
        let digests = preparation.saved.map(\.digest)
        let compressor = try Compressor.allocate(level: .standard)
        var manifest = Manifest()
        for first in stride(from: 0, to: digests.count, by: MapPart.frameCountMax) {
            let end = min(first + MapPart.frameCountMax, digests.count)
            let range = PageRange(first: PageFrameNumber(UInt64(first)), count: end - first)
            let part = MapPart(
                runs: [MapRun(range: range, content: .storedHere, firstOrdinal: UInt32(first))],
                digests: Array(digests[first..<end]))
            manifest.maps.append(
                MapPlace(
                    firstFrame: range.first,
                    location: try append(.mapPart, part.encoded(compressor: compressor))))
        }
        let state = GuestStateCoding.encode(GuestState())
        manifest.stateParts = [try append(.guestState, state)]
        manifest.stateDigest = state.withUnsafeBytes { PageDigest(hashing: $0) }
        manifest.timeNanoseconds = Int64(WallClock.nanoseconds)
        manifest.transaction = transaction
        manifest.memory.root = map.memory.root()
        manifest.memory.frameEnd = UInt64(digests.count)
        manifest.memory.pageCount = UInt64(digests.count)
        manifest.memory.changedPageCount = UInt64(digests.count)
        manifest.storedPageCount = UInt64(digests.count)
        manifest.lineage = "repair"
        return manifest.encoded
    }

    // MARK: - Packs

    mutating func rewritePacks(_ control: WorkControl) throws(IndexError) {
        let total = preparation.rewrites.count + removed.count
        var ready: [UInt32] = []
        defer { for pack in ready { PackRewrite.discardNew(pack, files) } }
        for rewrite in preparation.rewrites {
            try IndexError.ofPacks(
                control.report(.rewriting, .packs, ready.count, of: total))
            let path = PackName.path(rewrite.pack)
            if keepsOriginals && rewrite.isDamaged { try keepPack(rewrite.pack) }
            let source = try IndexError.ofFiles(files.open(path, .read))
            try IndexError.ofPacks(
                rewrite.cut.writeNew(
                    pack: rewrite.pack, from: source, files, repository: preparation.repository,
                    payloads: rewrite.payloads))
            ready.append(rewrite.pack)
        }
        try IndexError.ofPacks(control.report(.rewriting, .packs, ready.count, of: total))
        if keepsOriginals {
            for pack in removed { try keepPack(pack) }
        }
        try Repository.emptyIndex(of: preparation.repository, preparation.files)
        while let pack = ready.popLast() {
            try IndexError.ofPacks(PackRewrite.putInPlace(pack, files))
        }
        for pack in removed { try IndexError.ofFiles(files.remove(PackName.path(pack))) }
        if total > 0 { try IndexError.ofFiles(files.syncDirectory(StoreDirectory.packs)) }
    }

    private mutating func keepPack(_ pack: UInt32) throws(IndexError) {
        do throws(FileError) {
            try keep(PackName.path(pack), as: fileName(pack))
        } catch {
            throw .file(error)
        }
    }

    private func fileName(_ pack: UInt32) -> String {
        String(PackName.path(pack).dropFirst(StoreDirectory.packs.utf8.count + 1))
    }
}

extension RepairPreparation {
    /// The paths of the survey's files after misplaced ones got their right names.
    fileprivate var presentPaths: [String] {
        let names = Dictionary(
            uniqueKeysWithValues: misplaced.map {
                ("\(StoreDirectory.packs)/\($0.name)", PackName.path($0.pack))
            })
        return paths.map { names[$0] ?? $0 }
    }
}

extension FileError {
    /// True if the file system does not support hard links.
    fileprivate var isNotSupported: Bool { [1, 18, 31, 38, 95].contains(errno) }
}
