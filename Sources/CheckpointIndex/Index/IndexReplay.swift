package import CheckpointFormat
package import GuestModel
package import LMDBTables
package import PackStore

// Reads packs into the index: what follows the read mark, or everything. Requires the writer's
// lock, because only its holder knows that nothing is being appended.
//
// The read mark is the end of the last publication such that its transaction and all before it are
// indexed. Adding the same publication twice changes nothing, so a mark that lags is harmless.
//
// The mark and the head, whichever is later, tell what was acknowledged: packs that end before it
// are damaged, and packs before it that do not exist are missing.

/// Brings the index up to date with what is published.
package struct IndexReplay {
    private let reader: PackReader
    private let index: Index
    private let head: StoreHead
    private var pending: [UInt64: TransactionGroups] = [:]
    private var highestTransaction: UInt64
    /// Packs with records of transactions for which no publication was read yet.
    private var unpublished: [UInt64: Set<UInt32>] = [:]
    /// IDs in the forget records of the packs being read, and the pack of each record.
    private var forgotten: [CheckpointID: UInt32] = [:]
    private var chain: MapChainReader
    private var pruned: PrunedRecord
    /// Checkpoints whose manifests contradict earlier ones.
    private var refused: Set<CheckpointID> = []
    /// The newest pack's contents: kept because scanning it may have read the whole pack.
    private var newest: (pack: UInt32, scan: PackScan)?
    /// True to index the undamaged parts despite damage: only for a temporary index.
    private let toleratesDamage: Bool
    /// The damage that was skipped.
    package private(set) var damage: [Corruption] = []

    /// When there is a concurrent writer, create this before listing the packs: it reads the head.
    ///
    /// - Parameter toleratesDamage: true to read past damage and collect it in `damage`. The order
    ///   of checkpoints may then differ from that of publication, so the index must not be kept.
    package init(reader: PackReader, index: Index, toleratesDamage: Bool = false) throws(IndexError)
    {
        self.reader = reader
        self.index = index
        head = try IndexError.ofFiles(StoreHead(reader.files, reader.repository))
        chain = MapChainReader(index: index, reader: reader)
        self.toleratesDamage = toleratesDamage
        highestTransaction = try index.highestTransaction()
        pruned = try index.pruned()
    }

    /// The state at the end of the packs.
    package struct End: Sendable {
        /// The newest confirming record; nil if there is none.
        package let lastConfirming: RecordLocation?
        /// The end of that record.
        package let confirmedEnd: RecordLocation?
        /// The contents of the pack of that record.
        package let scan: PackScan?
        /// Later packs, which contain nothing published.
        package let abandonedPacks: [UInt32]
        /// The number of the pack to create if `lastConfirming` is nil: above every pack that is
        /// kept, and above those read before.
        package let nextPack: UInt32
        /// Packs that prune was about to remove.
        package let prunedPacks: [UInt32]
        /// The highest transaction number seen.
        package let highestTransaction: UInt64
    }

    /// Reads from the read mark on.
    package mutating func run(packs: [UInt32]) throws(IndexError) -> End {
        let mark = try index.readMark()
        let acknowledged = max(mark, head.confirmed ?? mark)
        var last: (entry: PackIndex.Entry, pack: UInt32, scan: PackScan)?
        var abandoned: [UInt32] = []
        var whole = packs.filter { $0 >= mark.pack }
        var hollow: [UInt32] = []
        while let newest = whole.last, newest > acknowledged.pack,
            try IndexError.ofPacks(PackScan.isHollow(reader.files, pack: newest))
        {
            hollow.append(whole.removeLast())
        }
        try dropForeign(&whole, acknowledged)
        try readAhead(whole, acknowledged)
        whole.removeAll { pruned.contains($0) }
        let newestKnown = acknowledged.namesBytes ? acknowledged.pack : 0
        try findMissing(packs, upTo: max(whole.last ?? 0, newestKnown))
        for pack in whole {
            guard let scan = try scan(pack, isNewest: pack == whole.last, acknowledged)
            else { continue }
            var confirming: PackIndex.Entry?
            for entry in scan.entries {
                highestTransaction = TransactionNumbers.highest(
                    highestTransaction, and: entry.transaction)
                if entry.type.isConfirming { confirming = entry }
                if pack > mark.pack || entry.address >= mark.offset {
                    try tolerating { (replay) throws(IndexError) in
                        try replay.read(entry, in: pack)
                    }
                }
            }
            if let confirming {
                last = (confirming, pack, scan)
                abandoned = []
            } else {
                abandoned.append(pack)
            }
        }
        newest = nil
        // Records of unpublished transactions, and forget records that may no longer be needed.
        try index.addCandidate(
            unpublished.values.reduce(Set(forgotten.values)) { $0.union($1) })
        let gone = Set(abandoned + hollow)
        let lastKept = packs.last { !gone.contains($0) } ?? 0
        let lastRead = mark.namesBytes ? mark.pack : 0
        let lastPruned = pruned.ranges.last.map { $0.upperBound - 1 } ?? 0
        return End(
            lastConfirming: last.map { RecordLocation(pack: $0.pack, offset: $0.entry.offset) },
            confirmedEnd: last.map { end(of: $0.entry, in: $0.pack) }, scan: last?.scan,
            abandonedPacks: abandoned + hollow,
            // Never above the highest number that a pack may have.
            nextPack: max(lastKept, lastRead, lastPruned) + 1,
            prunedPacks: packs.filter { pruned.contains($0) },
            highestTransaction: highestTransaction)
    }

    /// Determines what was forgotten and which packs were removed, before anything is indexed.
    ///
    /// So data that was removed on purpose is not reported missing, and data that prune was about
    /// to remove is not indexed.
    private mutating func readAhead(_ packs: [UInt32], _ acknowledged: ReadMark) throws(IndexError)
    {
        var isNewest = true
        var hasPruned = false
        for pack in packs.reversed() where !(hasPruned && pruned.contains(pack)) {
            guard let scan = try scan(pack, isNewest: pack == packs.last, acknowledged)
            else { continue }
            if isNewest { newest = (pack, scan) }
            isNewest = false
            for entry in scan.entries.reversed() {
                let location = RecordLocation(pack: pack, offset: entry.address)
                try tolerating { (replay) throws(IndexError) in
                    if entry.type == .forget {
                        let record = try IndexError.ofPacks(
                            ForgetRecord.read(replay.reader, at: location))
                        for id in record.ids { replay.forgotten[CheckpointID(id)] = pack }
                    } else if entry.type == .pruned, !hasPruned {
                        replay.pruned = try IndexError.ofPacks(
                            PrunedRecord.read(replay.reader, at: location))
                        hasPruned = true
                    }
                }
            }
        }
        if hasPruned { try index.setPruned(pruned) }
    }

    /// Runs `body`; damage that it finds is thrown, or collected if tolerated.
    private mutating func tolerating(
        _ body: (inout IndexReplay) throws(IndexError) -> Void
    ) throws(IndexError) {
        do throws(IndexError) {
            try body(&self)
        } catch {
            guard toleratesDamage, let corruption = error.corruption else { throw error }
            if !damage.contains(corruption) { damage.append(corruption) }
        }
    }

    /// Checks the envelopes of the newest packs, so that a file that is not a pack of this
    /// repository is reported itself, and not the pack before it for not being sealed.
    private mutating func dropForeign(
        _ packs: inout [UInt32], _ acknowledged: ReadMark
    ) throws(IndexError) {
        while let newest = packs.last, newest > acknowledged.pack {
            let known = damage.count
            try tolerating { (replay) throws(IndexError) in
                _ = try IndexError.ofPacks(replay.reader.file(newest))
            }
            if damage.count == known { return }
            packs.removeLast()
        }
    }

    /// Fails if a pack that must exist does not.
    ///
    /// A pack gets its name, durably, before the next one is created; packs without published data
    /// are removed from the highest down, and others only after a record lists them.
    private mutating func findMissing(_ packs: [UInt32], upTo newest: UInt32) throws(IndexError) {
        for gap in PackGaps.missing(packs, pruned, upTo: newest) {
            try tolerating { (_) throws(IndexError) in
                throw .repository(PackFile.missing(gap))
            }
        }
    }

    /// The contents of a pack; nil if it is unreadable, and that is tolerated.
    private mutating func scan(
        _ pack: UInt32, isNewest: Bool, _ acknowledged: ReadMark
    ) throws(IndexError) -> PackScan? {
        if let newest, newest.pack == pack { return newest.scan }
        var scan: PackScan?
        try tolerating { (replay) throws(IndexError) in
            scan = try IndexError.ofPacks(
                replay.scanWhole(pack, isNewest: isNewest, acknowledged))
        }
        if scan != nil { return scan }
        try tolerating { (replay) throws(IndexError) in
            let (found, damage) = try IndexError.ofPacks(
                PackScan.salvage(replay.reader, pack: pack))
            scan = found
            replay.damage += damage.filter { !replay.damage.contains($0) }
        }
        return scan
    }

    /// The contents of a pack; throws if acknowledged data is damaged.
    private func scanWhole(
        _ pack: UInt32, isNewest: Bool, _ acknowledged: ReadMark
    ) throws(RepositoryError) -> PackScan {
        let scan = try PackScan.scan(reader, pack: pack, isNewest: isNewest)
        // The mark is an address: a sealed pack may have been rewritten to a shorter one.
        let isCut =
            !scan.isSealed && acknowledged.pack == pack && acknowledged.offset > scan.validEnd
        let isDamaged = scan.isCorrupted || isCut || (!scan.isSealed && !isNewest)
        if isDamaged {
            throw RepositoryError(
                Corruption(
                    file: PackName.path(pack), offset: UInt64(scan.validEnd), object: "record",
                    reason: scan.tail?.reason ?? "the pack ends before acknowledged data"))
        }
        return scan
    }

    /// Fails if a manifest contradicts earlier ones.
    private mutating func check(_ checkpoint: Checkpoint) throws(IndexError) {
        if let other = try index.checkpoint(of: checkpoint.manifest.transaction),
            other != checkpoint.id, try index.entry(other) != nil
        {
            refused.insert(checkpoint.id)
            throw .repository(
                ManifestReader.sharedTransaction(checkpoint, with: other, reader))
        }
        guard forgotten[checkpoint.id] == nil else { return }
        let (reader, refused, pruned) = (reader, refused, pruned)
        try tolerating { (replay) throws(IndexError) in
            try replay.chain.checkAncestor(of: checkpoint) { (id, last) throws(RepositoryError) in
                // A refused one, or one in a pack that was removed but still exists, is not
                // available.
                guard !refused.contains(id) else { return false }
                return try ManifestReader.isInPacks(
                    id, before: last.location, notIn: pruned, reader)
            }
        }
    }

    /// The end address of a record.
    private func end(of entry: PackIndex.Entry, in pack: UInt32) -> RecordLocation {
        RecordLocation(pack: pack, offset: entry.address + (entry.end - entry.offset))
    }

    private mutating func read(_ entry: PackIndex.Entry, in pack: UInt32) throws(IndexError) {
        let location = RecordLocation(pack: pack, offset: entry.address)
        switch entry.type {
        case .pageGroup:
            guard let table = entry.frame else { return }
            pending[entry.transaction, default: TransactionGroups()].append(table, at: location)
            unpublished[entry.transaction, default: []].insert(pack)
        case .publish:
            let (id, manifest) = try IndexError.ofPacks(ManifestReader.read(reader, at: location))
            try check(Checkpoint(id: id, manifest: manifest, location: location))
            unpublished[entry.transaction] = nil
            var groups = pending.removeValue(forKey: entry.transaction) ?? TransactionGroups()
            // The mark may pass page groups of other transactions only if none is unpublished.
            try index.add(
                Publication(
                    id: id, manifest: manifest, location: location,
                    forgetPack: forgotten[id], pruned: pruned, toleratesDamage: toleratesDamage),
                groups: &groups, chain: &chain,
                readMark: pending.isEmpty ? end(of: entry, in: pack) : nil,
                highestTransaction: highestTransaction)
        case .forget:
            // Those indexed before; `readAhead` handled the others.
            let record = try IndexError.ofPacks(ForgetRecord.read(reader, at: location))
            try index.forget(record.ids.map { CheckpointID($0) }, in: pack)
        case .labels:
            // Read in pack order: the last record that lists a checkpoint counts.
            let record = try IndexError.ofPacks(LabelsRecord.read(reader, at: location))
            try index.setLabels(record.changes, in: pack)
        case .mapPart, .guestState:
            unpublished[entry.transaction, default: []].insert(pack)
        default:
            break
        }
    }
}

extension PackReader {
    /// Reads and decodes a record; an invalid payload is corruption of the record.
    fileprivate func payload<T>(
        at location: RecordLocation, _ type: RecordType,
        _ decode: ([UInt8]) throws(FormatError) -> T
    ) throws(RepositoryError) -> T {
        let payload = try record(at: location, type).payload
        do throws(FormatError) {
            return try decode(payload)
        } catch {
            throw corrupted(location, type, error)
        }
    }
}

extension ForgetRecord {
    /// Reads one from a pack.
    package static func read(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> ForgetRecord {
        try reader.payload(at: location, .forget, decode)
    }
}

extension LabelsRecord {
    /// Reads one from a pack.
    package static func read(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> LabelsRecord {
        try reader.payload(at: location, .labels, decode)
    }
}

extension PrunedRecord {
    /// Reads one from a pack.
    static func read(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> PrunedRecord {
        try reader.payload(at: location, .pruned) { (payload) throws(FormatError) in
            let record = try decode(payload)
            try record.check(in: location.pack)
            return record
        }
    }
}

/// Reads manifests from packs.
package enum ManifestReader {
    /// The error for a manifest with the transaction number of another.
    static func sharedTransaction(
        _ checkpoint: Checkpoint, with other: CheckpointID, _ reader: PackReader
    ) -> RepositoryError {
        reader.corrupted(
            checkpoint.location, .publish,
            FormatError(
                offset: 72, reason: "its transaction number is that of checkpoint \(other.short)"))
    }

    /// True if a checkpoint's manifest is in the packs before a location, whatever the index says.
    ///
    /// Reads every manifest there: called only if something is damaged.
    static func isInPacks(
        _ id: CheckpointID, before end: RecordLocation, notIn pruned: PrunedRecord,
        _ reader: PackReader
    ) throws(RepositoryError) -> Bool {
        let packs = try PackName.list(reader.files)
        for pack in packs where pack <= end.pack && !pruned.contains(pack) {
            guard let scan = try? PackScan.scan(reader, pack: pack, isNewest: pack == packs.last)
            else { continue }
            for entry in scan.entries where entry.type == .publish {
                let location = RecordLocation(pack: pack, offset: entry.address)
                guard location < end else { break }
                if let found = try? read(reader, at: location), found.id == id { return true }
            }
        }
        return false
    }

    /// Reads and validates one manifest; its ID is the digest of its bytes.
    package static func read(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> (id: CheckpointID, manifest: Manifest) {
        let (header, payload) = try reader.record(at: location, .publish)
        do throws(FormatError) {
            let manifest = try Manifest.decode(payload)
            guard manifest.transaction == header.transaction else {
                throw FormatError(offset: 72, reason: "the transaction numbers differ")
            }
            try manifest.check(at: location)
            let digest = payload.withUnsafeBytes { PageDigest(hashing: $0) }
            return (CheckpointID(digest), manifest)
        } catch {
            throw reader.corrupted(location, .publish, error)
        }
    }
}
