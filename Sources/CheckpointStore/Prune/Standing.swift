import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

/// The standing of checkpoints in a prune, determined on demand.
struct Standing {
    /// What to keep of a checkpoint's records.
    enum Kind {
        /// All: it exists, or it is leased.
        case exists
        /// Page map and manifest: another page map is based on its own, or pages that it stored are
        /// kept.
        case isNeeded
        /// Nothing.
        case isLeaving
    }

    let index: Index
    /// Packs with records of checkpoints that may become removable without another forget.
    private(set) var unsettled: Set<UInt32> = []
    private let survey: PruneSurvey
    private let openPack: UInt32
    private let sealing: OpenPackScan?
    private let reader: PackReader
    private var chain: MapChainReader
    private var kinds: [CheckpointID: Kind] = [:]
    private var builtOn: [CheckpointID: Bool] = [:]
    private var scans: [UInt32: [PackIndex.Entry]] = [:]

    /// Maximum number of cached pack indexes.
    private static let scanCountMax = 8
    /// Number of pages looked up at a time when finding one of them is enough.
    private static let lookUpCount = 64

    /// - Parameter sealing: a pack that is treated as sealed.
    init(
        _ survey: PruneSurvey, openPack: UInt32, sealing: OpenPackScan?, repository: Repository
    ) throws(IndexError) {
        self.survey = survey
        self.sealing = sealing
        self.openPack = openPack
        reader = repository.reader
        index = try IndexError.ofPacks(repository.withIndex { $0 })
        chain = MapChainReader(index: index, reader: reader)
    }

    /// The checkpoint that a transaction published; nil if there is none.
    mutating func checkpoint(of number: UInt64) throws(IndexError) -> Checkpoint? {
        guard let id = try index.checkpoint(of: number), survey.vanished[id] == nil else {
            return nil
        }
        return try chain.checkpoint(id)
    }

    /// Adds packs of which less is kept since a checkpoint gave up its owned frames.
    mutating func changed(_ id: CheckpointID, _ packs: inout Set<UInt32>) throws(IndexError) {
        var next: CheckpointID? = id
        while let id = next, try !exists(id) {
            let checkpoint = try chain.checkpoint(id)
            switch try standing(of: checkpoint) {
            case .exists: return
            case .isNeeded: packs.formUnion(checkpoint.manifest.stateParts.map(\.pack))
            case .isLeaving: packs.formUnion(checkpoint.recordLocations.map(\.pack))
            }
            // Its ancestors may be needed only by it.
            if try isBuiltOn(id) { return }
            next = checkpoint.mapAncestor
        }
    }

    mutating func standing(of checkpoint: Checkpoint) throws(IndexError) -> Kind {
        if let known = kinds[checkpoint.id] { return known }
        let kind: Kind
        if try exists(checkpoint.id) {
            kind = .exists
            if survey.guarded.contains(checkpoint.id) { unsettle(checkpoint) }
        } else if try isBuiltOn(checkpoint.id) {
            kind = .isNeeded
        } else if checkpoint.location.pack >= openPack {
            // It is removed as a whole, once the open pack is sealed.
            kind = .isNeeded
            unsettle(checkpoint)
        } else {
            kind = try hasBlocks(checkpoint) ? .isNeeded : .isLeaving
        }
        kinds[checkpoint.id] = kind
        return kind
    }

    private mutating func unsettle(_ checkpoint: Checkpoint) {
        unsettled.formUnion(checkpoint.recordLocations.map(\.pack))
    }

    private func exists(_ id: CheckpointID) throws(IndexError) -> Bool {
        if survey.guarded.contains(id) { return true }
        if survey.leaving.contains(id) { return false }
        return try index.hasOwnedFrames(id)
    }

    /// True if the page map of an existing checkpoint is based on a given one, directly or not.
    private mutating func isBuiltOn(_ id: CheckpointID) throws(IndexError) -> Bool {
        if let known = builtOn[id] { return known }
        var found = false
        for builder in try index.builders(on: id) {
            if try exists(builder) {
                found = true
            } else {
                found = try isBuiltOn(builder)
            }
            if found { break }
        }
        builtOn[id] = found
        return found
    }

    // MARK: - Blocks

    /// The pages that a checkpoint's transaction stored; for one that was partly removed, those in
    /// the rest of its page map.
    private mutating func stored(
        by checkpoint: Checkpoint
    ) throws(IndexError) -> [(run: MapRun, digests: ArraySlice<PageDigest>)] {
        var found: [(run: MapRun, digests: ArraySlice<PageDigest>)] = []
        for part in try chain.map(of: checkpoint, passingOver: survey.pruned) {
            part.forEachRun { run, digests in
                if run.content == .storedHere { found.append((run, digests)) }
            }
        }
        return found
    }

    /// Finds the blocks to keep in some page groups of a checkpoint's transaction: those with a
    /// page whose location in the index is there and which is not dead.
    mutating func keepBlocks(
        of checkpoint: Checkpoint, _ groups: inout TransactionGroups, into blocks: inout Set<UInt32>
    ) throws(IndexError) {
        var pages: [(digest: PageDigest, location: PageLocation)] = []
        for (run, digests) in try stored(by: checkpoint) {
            var next = digests.startIndex
            groups.forEachLocation(from: run.firstOrdinal, count: run.range.count) { location in
                if let location { pages.append((digests[next], location)) }
                next += 1
            }
        }
        // The index stores them in digest order.
        pages.sort { $0.digest.words.0.byteSwapped < $1.digest.words.0.byteSwapped }
        let digests = pages.map(\.digest)
        try index.locations(of: digests.span) { position, location in
            let page = pages[position]
            guard location == page.location, survey.dead[page.digest] != location else { return }
            blocks.insert(page.location.blockOffset)
        }
    }

    /// True if a page that a checkpoint's transaction stored is still read from there: then its
    /// page map is needed to tell which page that is.
    private mutating func hasBlocks(_ checkpoint: Checkpoint) throws(IndexError) -> Bool {
        for (_, digests) in try stored(by: checkpoint) {
            var rest = digests
            // Most have one among the first.
            while !rest.isEmpty {
                var places: [PageLocation] = []
                let few = rest.prefix(Standing.lookUpCount)
                try index.locations(of: few.span) { position, location in
                    let digest = few[few.startIndex + position]
                    if let location, survey.dead[digest] != location { places.append(location) }
                }
                for place in places
                where try isStored(place, by: checkpoint.manifest.transaction) { return true }
                rest = rest.dropFirst(Standing.lookUpCount)
            }
        }
        return false
    }

    /// True if the block is in a sealed pack and a given transaction wrote it.
    private mutating func isStored(_ location: PageLocation, by number: UInt64) throws(IndexError)
        -> Bool
    {
        if location.pack >= openPack { return false }
        let address = UInt64(location.blockOffset)
        let entry = try entries(of: location.pack).first(endingBehind: address) {
            $0.addresses.upperBound
        }
        guard let entry, entry.addresses.contains(address) else { return false }
        return entry.transaction == number
    }

    private mutating func entries(of pack: UInt32) throws(IndexError) -> [PackIndex.Entry] {
        if let sealing, sealing.pack == pack { return sealing.entries }
        if let known = scans[pack] { return known }
        if scans.count >= Standing.scanCountMax { scans.removeAll() }
        let scan = try IndexError.ofPacks(PackScan.scan(reader, pack: pack, isNewest: false))
        let entries = scan.entries
        scans[pack] = entries
        return entries
    }
}
