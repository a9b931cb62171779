import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import PackStore
import Synchronization

extension Verification {
    func readPacks(_ packs: [UInt32]) throws(RepositoryError) {
        let next = Atomic(0)
        let failure = Mutex<RepositoryError?>(nil)
        Threads.concurrently(min(Threads.processorCount, packs.count)) { _ in
            while true {
                let position = next.add(1, ordering: .relaxed).oldValue
                guard position < packs.count else { return }
                do throws(RepositoryError) {
                    // If the newest pack is lost, the one before it was sealed and synced.
                    let isNewest =
                        position == packs.count - 1 && packs[position] >= self.mark.pack
                    try self.readPack(packs[position], isNewest: isNewest)
                } catch {
                    if let corruption = error.corruption {
                        self.findings.note(corruption)
                    } else {
                        failure.withLock { $0 = error }
                    }
                }
            }
        }
        if let error = failure.withLock({ $0 }) { throw error }
    }

    private func readPack(_ pack: UInt32, isNewest: Bool) throws(RepositoryError) {
        let path = PackName.path(pack)
        func damage(_ offset: UInt32, _ object: String, _ reason: String, _ end: UInt32? = nil) {
            findings.note(
                Corruption(file: path, offset: UInt64(offset), object: object, reason: reason),
                end: end.map { UInt64($0) })
        }
        if pack > mark.pack {
            if repository.damage.contains(where: { $0.file == path }) { return }
            // Nothing in it was published: it belongs to a running writer, or a crash left it. The
            // writer may just have removed it.
            guard let size = try abandonedByteCount(path) else { return }
            state.withLock { $0.report.abandonedByteCount += size }
            return try advance(size)
        }
        // Bypasses the reader's cache: the envelope is read from the disk again.
        reader.drop(pack)
        let file: PackFile
        do throws(RepositoryError) {
            file = try reader.file(pack)
        } catch {
            // Prune may have removed it since the packs were listed.
            if try repository.withIndex({ try $0.pruned() }).contains(pack) { return }
            throw error
        }
        let size = UInt64(try file.byteCount())
        guard size <= UInt64(UInt32.max) else {
            return damage(0, "pack", "the file has \(size) bytes, more than a pack can have")
        }
        var sealed: PackScan?
        do throws(RepositoryError) {
            // The newest pack's seal is not trusted, and its records are read below.
            if !isNewest || file.isRewritten {
                let scan = try PackScan.scan(file, isNewest: false)
                sealed = scan.isSealed ? scan : nil
            }
        } catch {
            guard let corruption = error.corruption else { throw error }
            findings.note(corruption)
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
        note(found, in: pack, isRewritten: file.isRewritten)
        if let sealed, sealed.entries != found {
            damage(0, "pack index", "it does not match the pack's records")
        }
        if sealed == nil {
            checkUnsealed(pack, isNewest: isNewest, found, size: size, damage)
        }
        try advance(Int(size))
    }

    /// Size of a pack in which nothing was published; nil if it no longer exists.
    private func abandonedByteCount(_ path: String) throws(RepositoryError) -> Int? {
        do throws(FileError) {
            return Int(try reader.files.open(path, .read).byteCount())
        } catch {
            if error.isMissing { return nil }
            throw RepositoryError(error)
        }
    }

    /// Reads records up to `end`; continues after damage where the pack index has the next one.
    private func readRecords(
        _ file: PackFile, end: UInt64, known: [PackIndex.Entry]?,
        _ damage: (UInt32, String, String, UInt32?) -> Void
    ) throws(RepositoryError) -> [PackIndex.Entry] {
        var entries: [PackIndex.Entry] = []
        var known = (known ?? [])[...]
        var byteCount = Envelope.byteCount
        defer { state.withLock { [byteCount] in $0.report.byteCount += byteCount } }
        var offset = UInt32(Envelope.byteCount)
        let size = UInt64(try file.byteCount())
        while UInt64(offset) < end {
            try control.check()
            // Records come in the order of the pack index.
            while let first = known.first, first.offset < offset { known.removeFirst() }
            let expected = known.first?.offset == offset ? known.first : nil
            if let expected, expected.type == .pageGroup, depth != .full {
                entries.append(expected)
                offset = expected.end
                continue
            }
            let read = try file.record(at: offset)
            do throws(FormatError) {
                let (header, record) = try read.get()
                if try PackScan.isSeal(header, at: offset, size: size) { break }
                let entry = try PackScan.entry(
                    header, record, at: offset, isRewritten: file.isRewritten)
                entries.append(entry)
                byteCount += Int(entry.end - entry.offset)
                offset = entry.end
            } catch {
                damage(
                    offset, expected?.type.description ?? "record", error.reason, expected?.end)
                guard let entry = expected else {
                    guard let next = try file.nextRecord(after: offset, size: size),
                        UInt64(next) < end
                    else { break }
                    offset = next
                    continue
                }
                // The index entry replaces the damaged record, so that its pages are checked.
                entries.append(entry)
                offset = entry.end
            }
        }
        return entries
    }

    private func checkUnsealed(
        _ pack: UInt32, isNewest: Bool, _ found: [PackIndex.Entry], size: UInt64,
        _ damage: (UInt32, String, String, UInt32?) -> Void
    ) {
        let end = found.last?.end ?? UInt32(Envelope.byteCount)
        if !isNewest && pack < mark.pack {
            damage(end, "pack index", "the pack is not sealed, and later packs exist", nil)
        } else if pack == mark.pack && end < mark.offset {
            damage(end, "record", "the pack ends before published data", nil)
        }
        let kept = UInt64(mark.offset)
        if pack == mark.pack && size > kept {
            state.withLock { $0.report.abandonedByteCount += Int(size - kept) }
        }
    }

    /// Reports files among the packs without a pack's name.
    func noteOddFiles() throws(RepositoryError) {
        let files = RepairFiles(reader.files, reader.repository)
        for name in try PackName.names(reader.files).sorted() {
            guard PackName.number(name) == nil, !PackName.isPassedOver(name),
                let corruption = try oddity(files, name)
            else { continue }
            findings.note(corruption)
        }
    }

    private func oddity(
        _ files: RepairFiles, _ name: String
    ) throws(RepositoryError) -> Corruption? {
        do throws(FileError) {
            return try PackSalvage.oddity(files, name: name)
        } catch {
            throw RepositoryError(error)
        }
    }

    /// Reports packs that are missing and were not removed by prune.
    func noteMissingPacks(_ packs: [UInt32], _ pruned: PrunedRecord) {
        let newest = mark.offset > 0 ? mark.pack : max(1, mark.pack) - 1
        for gap in PackGaps.missing(packs, pruned, upTo: newest) {
            PackFile.missing(gap).corruption.map { findings.note($0) }
        }
    }
}

extension PackFile {
    /// A record, or what is wrong with it.
    fileprivate func record(
        at offset: UInt32
    ) throws(RepositoryError) -> Result<(header: RecordHeader, bytes: PageBytes), FormatError> {
        do throws(FileError) {
            return try PackReader.readRecord(file, at: offset)
        } catch {
            throw RepositoryError(error)
        }
    }

    /// The offset of the next whole record after a damaged one; nil if there is none.
    fileprivate func nextRecord(
        after offset: UInt32, size: UInt64
    ) throws(RepositoryError) -> UInt32? {
        do throws(FileError) {
            return try PackScan.nextRecord(file, after: offset, size: size)
        } catch {
            throw RepositoryError(error)
        }
    }
}
