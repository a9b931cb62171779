package import CheckpointFormat
import GuestModel

// Reads packs into the index: what follows the read mark, or everything. Needs the writer's lock,
// because only its holder knows that nothing is being appended.
//
// The read mark lies behind the last publication whose transaction and all before it are indexed.
// Adding the same publication twice changes nothing, so a mark that lags is harmless.

/// Brings the index up to what is published.
package struct IndexReplay {
    private let reader: PackReader
    private let index: Index
    private var pending: [UInt64: TransactionFrames] = [:]
    private var highestTransaction: UInt64

    package init(reader: PackReader, index: Index) throws {
        self.reader = reader
        self.index = index
        highestTransaction = try index.highestTransaction()
    }

    /// What replay found at the end of the packs.
    package struct End: Sendable {
        /// The newest publication or mark; nil if there is none.
        package let lastConfirming: RecordLocation?
        /// What is in the pack of that record.
        package let scan: PackScan?
        /// Packs that hold nothing published and come after it.
        package let abandonedPacks: [UInt32]
        /// The number of the pack to make if `lastConfirming` is nil: above every pack that stays,
        /// and above what was read before.
        package let nextPack: UInt32
        /// The highest transaction number seen.
        package let highestTransaction: UInt64
    }

    /// Reads on from the read mark.
    package mutating func run(packs: [UInt32]) throws -> End {
        let mark = try index.readMark()
        var last: (location: RecordLocation, scan: PackScan)?
        var abandoned: [UInt32] = []
        var whole = packs.filter { $0 >= mark.pack }
        var hollow: [UInt32] = []
        while let newest = whole.last, newest > mark.pack,
            try PackScan.isHollow(reader.files, pack: newest)
        {
            hollow.append(whole.removeLast())
        }
        for pack in whole {
            let scan = try scan(pack, isNewest: pack == whole.last, mark: mark)
            var confirming: RecordLocation?
            for entry in scan.entries {
                highestTransaction = max(highestTransaction, entry.transaction)
                let location = RecordLocation(pack: pack, offset: entry.offset)
                if entry.type == .publish || entry.type == .mark { confirming = location }
                if pack > mark.pack || entry.offset >= mark.offset {
                    try read(entry, at: location)
                }
            }
            if let confirming {
                last = (confirming, scan)
                abandoned = []
            } else {
                abandoned.append(pack)
            }
        }
        let gone = Set(abandoned + hollow)
        let lastKept = packs.last { !gone.contains($0) } ?? 0
        let isRead = mark.offset > UInt32(Envelope.byteCount)
        return End(
            lastConfirming: last?.location, scan: last?.scan, abandonedPacks: abandoned + hollow,
            nextPack: max(lastKept, isRead ? mark.pack : 0) + 1,
            highestTransaction: highestTransaction)
    }

    /// What is in a pack; throws if anything acknowledged is damaged.
    private func scan(_ pack: UInt32, isNewest: Bool, mark: ReadMark) throws -> PackScan {
        let scan = try PackScan.scan(reader, pack: pack, isNewest: isNewest)
        let acknowledged = mark.pack == pack && mark.offset > scan.validEnd
        let isDamaged = scan.isCorrupted || acknowledged || (!scan.isSealed && !isNewest)
        if isDamaged {
            throw RepositoryError(
                Corruption(
                    file: PackName.path(pack), offset: UInt64(scan.validEnd), object: "record",
                    reason: scan.tail?.reason ?? "the pack ends before what it held"))
        }
        return scan
    }

    private mutating func read(
        _ entry: PackIndex.Entry, at location: RecordLocation
    ) throws {
        switch entry.type {
        case .pageFrame:
            guard let table = entry.frame else { return }
            pending[entry.transaction, default: TransactionFrames()].append(table, at: location)
        case .publish:
            let (id, manifest) = try ManifestReader.read(reader, at: location)
            var frames = pending.removeValue(forKey: entry.transaction) ?? TransactionFrames()
            // The mark may go past frames of other transactions only if none waits.
            let mark =
                pending.isEmpty ? RecordLocation(pack: location.pack, offset: entry.end) : nil
            try index.add(
                id, manifest, at: location, frames: &frames, reader: reader, readMark: mark,
                highestTransaction: highestTransaction)
        default:
            break
        }
    }
}

/// Reads manifests from packs.
package enum ManifestReader {
    /// Reads and checks one manifest; its id is the digest of its bytes.
    package static func read(
        _ reader: PackReader, at location: RecordLocation
    ) throws(RepositoryError) -> (id: CheckpointID, manifest: Manifest) {
        let (header, payload) = try reader.record(at: location, .publish)
        do {
            let manifest = try Manifest.decode(payload)
            guard manifest.transaction == header.transaction else {
                throw FormatError(offset: 16, reason: "the transaction numbers differ")
            }
            let digest = payload.withUnsafeBytes { PageDigest(hashing: $0) }
            return (CheckpointID(digest), manifest)
        } catch let error as FormatError {
            throw reader.corrupted(location, .publish, error)
        } catch {
            preconditionFailure("decoding fails in one way only: \(error)")
        }
    }
}

extension Index {
    /// Entries that one write transaction of LMDB takes.
    private static let batchCountMax = 65_536

    /// Adds a published checkpoint: its pages first, and the catalog's entry last.
    package func add(
        _ id: CheckpointID, _ manifest: Manifest, at location: RecordLocation,
        frames: inout TransactionFrames, reader: PackReader, readMark: ReadMark?,
        highestTransaction: UInt64
    ) throws {
        var batch: [(PageDigest, PageLocation)] = []
        for partLocation in manifest.mapParts {
            let part = try MapReader.part(reader, at: partLocation)
            try part.forEachRun { (run, digests) throws in
                guard run.content == .storedHere else { return }
                var next = digests.startIndex
                let isWhole = try frames.forEachLocation(
                    from: run.firstOrdinal, count: run.range.count
                ) { place in
                    batch.append((digests[next], place))
                    next += 1
                    if batch.count >= Index.batchCountMax {
                        try self.put(batch)
                        batch.removeAll(keepingCapacity: true)
                    }
                }
                guard isWhole else {
                    throw reader.corrupted(
                        partLocation, .mapPart,
                        FormatError(offset: 0, reason: "it names pages that are not in the packs"))
                }
            }
        }
        try environment.write { transaction in
            try put(batch, transaction)
            try addToCatalog(transaction, id, manifest, at: location)
            try setCounter(transaction, highestTransaction)
            if let readMark { try setReadMark(transaction, readMark) }
        }
    }

    private func put(_ batch: [(PageDigest, PageLocation)]) throws {
        try environment.write { try put(batch, $0) }
    }

    private func put(
        _ batch: [(PageDigest, PageLocation)], _ transaction: borrowing LMDBTransaction
    ) throws {
        let pages = table(.pages)
        try withUnsafeTemporaryAllocation(
            byteCount: PageLocation.byteCount, alignment: 8
        ) { value in
            for (digest, location) in batch {
                location.encode(into: value)
                // The first place stays: a page that two transactions stored is read from one.
                try withUnsafeBytes(of: digest.words) { key in
                    try transaction.put(pages, key, UnsafeRawBufferPointer(value), keeping: true)
                }
            }
        }
    }

    private func setReadMark(
        _ transaction: borrowing LMDBTransaction, _ mark: ReadMark
    ) throws(LMDBError) {
        var bytes = ByteWriter()
        bytes.write(mark.pack)
        bytes.write(mark.offset)
        try setValue(transaction, "read", bytes.bytes)
    }

    private func setCounter(
        _ transaction: borrowing LMDBTransaction, _ highest: UInt64
    ) throws(LMDBError) {
        var bytes = ByteWriter()
        bytes.write(highest)
        try setValue(transaction, "transaction", bytes.bytes)
    }
}

extension Index {
    /// Moves the read mark forward over records that need no indexing.
    package func advance(to mark: ReadMark, highestTransaction: UInt64) throws {
        try environment.write { transaction in
            try setReadMark(transaction, mark)
            try setCounter(transaction, highestTransaction)
        }
    }
}
