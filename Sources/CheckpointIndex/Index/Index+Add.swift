package import CheckpointFormat
package import GuestModel
package import LMDBTables
import PackStore

/// A manifest to be indexed.
package struct Publication: Sendable {
    package let id: CheckpointID
    package let manifest: Manifest
    package let location: RecordLocation
    /// The frames in which it may differ from its parent; nil if that must be read from the packs.
    package var changed: FrameSet?
    /// The pack of its forget record; it is kept because other page maps are based on its own.
    package var forgetPack: UInt32?
    /// Packs that prune removed: it is not an error if they held parts of a forgotten checkpoint.
    package var pruned = PrunedRecord()
    /// True to skip damaged parts of its page map.
    package var toleratesDamage = false

    package init(
        id: CheckpointID, manifest: Manifest, location: RecordLocation,
        changed: FrameSet? = nil, forgetPack: UInt32? = nil,
        pruned: PrunedRecord = PrunedRecord(), toleratesDamage: Bool = false
    ) {
        self.id = id
        self.manifest = manifest
        self.location = location
        self.changed = changed
        self.forgetPack = forgetPack
        self.pruned = pruned
        self.toleratesDamage = toleratesDamage
    }

    /// True if it was forgotten.
    var isForgotten: Bool { forgetPack != nil }

    package var checkpoint: Checkpoint {
        Checkpoint(id: id, manifest: manifest, location: location)
    }
}

extension Index {
    /// Adds a published checkpoint: its pages first, and the catalog entry last.
    ///
    /// Pages that prune removed are skipped; so are the page maps of a forgotten checkpoint. If the
    /// checkpoint is already in the catalog, nothing is done: its references are counted. An
    /// interrupted addition is resumed.
    ///
    /// - Parameter condemned: digests that prune is about to delete: their new locations count.
    package func add(
        _ publication: Publication, groups: inout TransactionGroups,
        chain: inout MapChainReader, readMark: ReadMark?, highestTransaction: UInt64,
        condemned: Set<PageDigest> = []
    ) throws(IndexError) {
        if try entry(publication.id) != nil {
            return try environment.write { (txn) throws(IndexError) in
                try setMarks(readMark, highestTransaction, txn)
            }
        }
        var ownedFrames: OwnedFrames?
        if !publication.isForgotten, !publication.toleratesDamage {
            ownedFrames = try self.ownedFrames(of: publication, &chain)
        }
        var addition = try IndexAddition(publication.id, ownedFrames, index: self)
        try addition.addPages(of: publication, &groups, &chain, condemned)
        try environment.write { (txn) throws(IndexError) in
            try addition.finish(publication, groups, txn)
            try setMarks(readMark, highestTransaction, txn)
        }
    }

    /// A checkpoint's owned frames: those recorded when its addition began, or new ones.
    private func ownedFrames(
        of publication: Publication, _ chain: inout MapChainReader
    ) throws(IndexError) -> OwnedFrames {
        if let begun = try ownedFrames(publication.id) { return begun }
        let parent = publication.manifest.parent
        var predecessor: CheckpointID?
        if parent != .none, try hasOwnedFrames(CheckpointID(parent)) {
            predecessor = CheckpointID(parent)
        }
        if let changed = publication.changed, predecessor != nil || parent == .none {
            return OwnedFrames(predecessor: predecessor, frames: changed)
        }
        // Its parent was pruned, and the newest checkpoint of its lineage is probably similar.
        if predecessor == nil, let newest = try newest(lineage: publication.manifest.lineage),
            try hasOwnedFrames(newest)
        {
            predecessor = newest
        }
        return OwnedFrames(
            predecessor: predecessor,
            frames: try chain.differing(publication.checkpoint, from: predecessor))
    }

    private func setMarks(
        _ readMark: ReadMark?, _ highestTransaction: UInt64,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try tables.state.highestTransaction.set(
            HighestTransaction(highestTransaction), in: txn)
        if let readMark { try tables.state.readMark.set(readMark, in: txn) }
    }

    /// Advances the read mark past records that need no indexing.
    ///
    /// - Parameter highestTransaction: the highest transaction number among them. It must not be
    ///   reused: pages of an abandoned transaction may remain in the packs.
    package func advance(to mark: ReadMark, highestTransaction: UInt64) throws(IndexError) {
        try environment.write { (txn) throws(IndexError) in
            try setMarks(mark, highestTransaction, txn)
        }
    }
}

/// The addition of a checkpoint to the index, in batches of pages.
private struct IndexAddition {
    /// A page in the checkpoint's page map.
    private struct Entry {
        let digest: PageDigest
        /// Its location if the checkpoint's own transaction stored it; otherwise nil.
        let location: PageLocation?
        let isCondemned: Bool
        /// True if the checkpoint owns the frame.
        let isOwned: Bool
    }

    /// Maximum number of 4 KiB pages that one write txn of LMDB modifies and keeps in memory: 32
    /// MiB.
    private static let leafCountMax = 8192
    /// Number of entries in a half-full leaf of the index's tables.
    private static let leafPageCount = 32

    private let index: Index
    private let id: CheckpointID
    private let ownedFrames: OwnedFrames?
    private var batch: [Entry] = []
    /// Maximum number of entries in the next write txn.
    private var batchCountMax = 0
    /// Number of entries already in the index, including those from before a restart.
    private var doneCount: UInt64
    /// Number of entries handed in so far.
    private var count: UInt64 = 0
    /// Number of pages in the transaction's page groups that the page map refers to.
    private var placedCount = 0

    init(_ id: CheckpointID, _ ownedFrames: OwnedFrames?, index: Index) throws(IndexError) {
        self.index = index
        self.id = id
        self.ownedFrames = ownedFrames
        (doneCount, batchCountMax) = try index.environment.read { (txn) throws(IndexError) in
            let progress = try index.tables.state.adding.value(in: txn)
            return (
                progress?.id == id ? progress?.count ?? 0 : 0,
                try IndexAddition.batchCountMax(index, txn)
            )
        }
    }

    /// Maximum number of entries in one write txn: each may modify another leaf, but no more leaves
    /// than the tables have afterwards.
    ///
    /// Larger batches put more entries into the same leaf.
    private static func batchCountMax(
        _ index: Index, _ txn: borrowing LMDBTxn
    ) throws(IndexError) -> Int {
        if let limit = index.recent.limits.additionCountMax { return limit }
        let known =
            try index.tables.pages.count(in: txn) + index.tables.references.count(in: txn)
        return max(leafCountMax, (leafCountMax * leafPageCount - known) / 2)
    }

    /// Adds the entries of the page map, in order, and then those that it inherits from the maps on
    /// which it is based in frames that the checkpoint owns.
    mutating func addPages(
        of publication: Publication, _ groups: inout TransactionGroups,
        _ chain: inout MapChainReader, _ condemned: Set<PageDigest>
    ) throws(IndexError) {
        var inherited = publication.manifest.framesOfItsVolumes(
            among: ownedFrames?.frames ?? FrameSet())
        batch.reserveCapacity(min(batchCountMax, groups.pageCount))
        var check = MapCheck(publication.manifest)
        for place in publication.manifest.maps {
            let location = place.location
            let part: MapPart
            do throws(RepositoryError) {
                if publication.isForgotten,
                    try chain.reader.isPruned(location, publication.pruned)
                {
                    continue
                }
                part = try MapReader.part(chain.reader, at: location, of: publication.manifest)
                do throws(FormatError) {
                    try check.take(part, at: place)
                } catch {
                    throw chain.reader.corrupted(location, .mapPart, error)
                }
            } catch {
                guard publication.toleratesDamage, error.corruption != nil else {
                    throw .repository(error)
                }
                continue
            }
            try part.forEachRun { (run, digests) throws(IndexError) in
                inherited.remove(run.range)
                try add(run, digests, &groups, condemned)
            }
        }
        guard !inherited.isEmpty, let ancestor = publication.manifest.ancestor else { return }
        try chain.forEachPage(of: ancestor, in: inherited) {
            (_, digest) throws(IndexError) in
            try append(Entry(digest: digest, location: nil, isCondemned: false, isOwned: true))
        }
    }

    private mutating func add(
        _ run: MapRun, _ digests: ArraySlice<PageDigest>, _ groups: inout TransactionGroups,
        _ condemned: Set<PageDigest>
    ) throws(IndexError) {
        guard run.content.hasDigests else { return }
        guard run.content == .storedHere else {
            for position in 0..<run.range.count {
                try add(run, position, digests[digests.startIndex + position], nil, condemned)
            }
            return
        }
        var position = 0
        try groups.forEachLocation(from: run.firstOrdinal, count: run.range.count) {
            (location) throws(IndexError) in
            let digest = digests[digests.startIndex + position]
            try add(run, position, digest, location, condemned)
            position += 1
        }
    }

    private mutating func add(
        _ run: MapRun, _ position: Int, _ digest: PageDigest, _ location: PageLocation?,
        _ condemned: Set<PageDigest>
    ) throws(IndexError) {
        let frame = PageFrameNumber(run.range.first.rawValue + UInt64(position))
        let isOwned = ownedFrames?.frames.contains(frame) ?? false
        guard location != nil || isOwned else { return }
        if location != nil { placedCount += 1 }
        try append(
            Entry(
                digest: digest, location: location,
                isCondemned: location != nil && condemned.contains(digest), isOwned: isOwned))
    }

    private mutating func append(_ entry: Entry) throws(IndexError) {
        count += 1
        // Already indexed before a failure.
        guard count > doneCount else { return }
        batch.append(entry)
        guard batch.count >= batchCountMax else { return }
        batchCountMax = try index.environment.write { (txn) throws(IndexError) in
            try put(txn)
            try index.tables.state.adding.set(AdditionProgress(id: id, count: count), in: txn)
            return try IndexAddition.batchCountMax(index, txn)
        }
        doneCount = count
        batch.removeAll(keepingCapacity: true)
    }

    /// Adds the remaining entries and the catalog entry.
    func finish(
        _ publication: Publication, _ groups: TransactionGroups,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        try put(txn)
        if placedCount < groups.pageCount {
            // Pages that changed again before the checkpoint was taken.
            for pack in groups.packs { try index.addCandidate(pack, txn) }
        }
        let manifest = publication.manifest
        try index.tables.transactions.put(
            id, for: TransactionNumber(manifest.transaction), in: txn)
        if let ancestor = manifest.ancestor {
            try index.tables.builders.insert(CheckpointPair(ancestor, id), in: txn)
        }
        if publication.isForgotten {
            // It is not known how much of it is needed.
            let parts = manifest.mapParts + manifest.stateParts + [publication.location]
            for pack in Set(parts.map(\.pack)) { try index.addCandidate(pack, txn) }
        }
        try index.addToCatalog(
            id, manifest, at: publication.location, isForgotten: publication.isForgotten,
            forgetPack: publication.forgetPack ?? 0, txn)
    }

    private func put(_ txn: borrowing LMDBTxn) throws(IndexError) {
        if let ownedFrames { try index.setOwnedFrames(ownedFrames, of: id, txn) }
        // The result does not depend on the order of the entries.
        let order = Index.keyOrder(batch.count) { batch[$0].digest }
        let stored = order.filter { batch[$0].location != nil }
        let window = try index.recentWindow(txn)
        let known = try index.locations(
            stored, of: batch.count, { batch[$0].digest }, in: window, txn)
        var new: [PlacedPage] = []
        for position in order {
            let entry = batch[position]
            guard let location = entry.location else {
                try index.reference(entry.digest, txn)
                continue
            }
            // A page may occur twice in one batch.
            let earlier = new.last?.digest == entry.digest ? new.last?.location : nil
            if let known = known[position] ?? earlier {
                try put(entry, location, known: known, txn)
                continue
            }
            new.append(PlacedPage(digest: entry.digest, location: location))
            // The page's entry counts as its first reference.
            if !entry.isOwned { try index.placeUnreferenced(entry.digest, txn) }
        }
        try index.add(new, txn)
    }

    /// Adds a page whose location is known.
    private func put(
        _ entry: Entry, _ location: PageLocation, known: PageLocation,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        if entry.isOwned { try index.reference(entry.digest, txn) }
        guard known != location else { return }
        // A page stored by two transactions is read from the first location, unless prune is about
        // to remove that.
        if entry.isCondemned { try index.setLocation(location, of: entry.digest, txn) }
        try index.addCandidate(entry.isCondemned ? known.pack : location.pack, txn)
    }
}

/// How much of a checkpoint that is being added in several steps is in the index.
struct AdditionProgress: TableValue, FixedCoding {
    let id: CheckpointID
    /// Number of its entries that were added.
    let count: UInt64

    init(id: CheckpointID, count: UInt64) {
        self.id = id
        self.count = count
    }

    init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        let (digest, count) = try decodeIndexed("addition", bytes) {
            (reader) throws(FormatError) in
            (try reader.readDigest(), try reader.read(UInt64.self))
        }
        self.init(id: CheckpointID(digest), count: count)
    }

    var indexedBytes: (CheckpointID, UInt64) { (id, count.littleEndian) }
}
