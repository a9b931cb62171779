import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

// The basis of a repair. The index alone provides only hints; everything else comes from whole
// records in the packs:
//
//   1. Every file in the directory of packs is read for what is whole in it (`PackSalvage`).
//   2. Manifests, forget records and lists of removed packs are read.
//   3. Every page that a whole page map locates is decompressed and hashed. If it is correct, it is
//      available.
//   4. Each checkpoint is read as a restore would: state, page map, root. The pages that it lacks
//      are searched for everywhere: in blocks of damaged page groups, of transactions whose maps
//      are lost, and where maps point to something else. Those found are saved: stored again.
//   5. A checkpoint that then lacks nothing is whole; every other one is lost.
//
// It keeps in memory the indexes of all packs, and 50 bytes per distinct page.

/// What is whole in a damaged repository, and what is not.
struct RepairSurvey: Sendable {
    /// A checkpoint whose manifest is whole.
    struct Member: Sendable {
        let checkpoint: Checkpoint
        let isForgotten: Bool
        /// True if its page map is needed, by itself or by one that is based on it.
        var isNeeded: Bool
    }

    /// The location of a whole record.
    struct RecordPlace: Sendable {
        let file: Int
        let entry: PackIndex.Entry
    }

    /// Why something is unreadable.
    struct Unreadable: Error {
        let corruption: Corruption
    }

    let files: RepairFiles
    let hints: RepairHints
    /// All files in the directory of packs.
    private(set) var salvages: [PackSalvage] = []
    /// The file that contains each pack.
    private(set) var packs: [UInt32: Int] = [:]
    /// Files that are not packs, and why.
    private(set) var junk: [(name: String, reason: String)] = []
    /// Packs that are missing.
    private(set) var missing: [ClosedRange<UInt32>] = []
    /// The highest number of any pack that ever existed.
    private(set) var highestPack: UInt32 = 0
    private(set) var records: [RecordLocation: RecordPlace] = [:]
    /// Records with correct checksums but impossible contents.
    private(set) var wrong: [RecordLocation: Corruption] = [:]
    /// Checkpoints whose manifests are such records.
    private(set) var condemned: [Checkpoint] = []
    private(set) var members: [Member] = []
    private(set) var positions: [CheckpointID: Int] = [:]
    /// Checkpoints that were forgotten according to the index only.
    private(set) var forgottenByHint: [CheckpointID] = []
    /// Labels set after publication according to the index only.
    private(set) var labelsByHint: [LabelsRecord.Change] = []
    private(set) var pruned = PrunedRecord()
    /// True if no remaining record says which packs were removed.
    private(set) var prunedIsLost = false
    private(set) var highestTransaction: UInt64 = 0
    /// What the packs contain of each transaction; nil if anything was removed or is damaged.
    private(set) var totals: [UInt64: TransactionTotals]?
    /// The location of the manifest of each transaction.
    private var manifests: [UInt64: RecordLocation] = [:]
    /// The page groups of each transaction before its manifest; their locations are those in the
    /// files.
    var frames: [UInt64: TransactionGroups] = [:]
    let pages: RepairPages

    init(
        _ files: RepairFiles, _ hints: RepairHints, _ control: WorkControl
    ) throws {
        self.files = files
        self.hints = hints
        let names = try PackName.names(files.files).sorted()
            .filter { !PackName.isPassedOver($0) }
        (salvages, junk) = try RepairSurvey.read(names, files, hints, control)
        pages = RepairPages(files: files, paths: salvages.map(\.path))
        choosePacks()
        readRecords()
        try readManifests()
        if packs.keys.contains(where: { pruned.contains($0) }) {
            // Packs that prune was about to remove count as removed, though they still exist.
            packs = packs.filter { !pruned.contains($0.key) }
            (records, members, positions) = ([:], [], [:])
            (wrong, condemned, forgottenByHint, labelsByHint) = ([:], [], [], [])
            readRecords()
            try readManifests()
        }
        findMissing()
        try condemnManifests()
        readFrames()
        markNeeded()
        countRecords()
    }

    // MARK: - Files

    private static func read(
        _ names: [String], _ files: RepairFiles, _ hints: RepairHints,
        _ control: WorkControl
    ) throws(IndexError) -> ([PackSalvage], [(name: String, reason: String)]) {
        var numbered: [(name: String, number: UInt32, byteCount: Int)] = []
        var junk: [(name: String, reason: String)] = []
        for name in names {
            do throws(FileError) {
                let byteCount = try files.open("\(StoreDirectory.packs)/\(name)").byteCount()
                if let number = try PackSalvage.number(files, name: name) {
                    numbered.append((name, number, Int(byteCount)))
                } else {
                    junk.append((name, PackSalvage.noPack))
                }
            } catch {
                guard error.isNoFile else { throw .file(error) }
                junk.append((name, PackSalvage.noFile))
            }
        }
        // From the highest down: the first one that is a pack is the newest.
        numbered.sort { ($0.number, $0.name) > ($1.number, $1.name) }
        let total = numbered.reduce(0) { $0 + $1.byteCount }
        var (salvages, done) = ([PackSalvage](), 0)
        var isNewest = true
        for file in numbered {
            let salvage = try PackSalvage(
                files, name: file.name, number: file.number, isNewest: isNewest,
                acknowledged: hints.acknowledged)
            switch salvage.kind {
            case .pack, .misplaced: isNewest = false
            case .foreign, .hollow: break
            }
            salvages.append(salvage)
            done += file.byteCount
            try IndexError.ofPacks(control.report(.reading, .bytes, done, of: total))
        }
        return (salvages.reversed(), junk)
    }

    /// Decides which file is which pack: the one with its name, or else one that says so itself.
    private mutating func choosePacks() {
        for (position, salvage) in salvages.enumerated() {
            switch salvage.kind {
            case .pack: packs[salvage.number] = position
            case .foreign(let reason): junk.append((salvage.name, reason))
            case .misplaced, .hollow: break
            }
        }
        for (position, salvage) in salvages.enumerated() {
            guard case .misplaced = salvage.kind else { continue }
            if packs[salvage.number] == nil {
                packs[salvage.number] = position
            } else {
                junk.append((salvage.name, "it is another copy of pack \(salvage.number)"))
            }
        }
    }

    // MARK: - Records

    private mutating func readRecords() {
        highestTransaction = max(highestTransaction, hints.highestTransaction)
        for (pack, file) in packs.sorted(by: { $0.key < $1.key }) {
            for entry in salvages[file].entries {
                highestTransaction = TransactionNumbers.highest(
                    highestTransaction, and: entry.transaction)
                guard entry.frame == nil else { continue }
                let location = RecordLocation(pack: pack, offset: entry.address)
                records[location] = RecordPlace(file: file, entry: entry)
            }
        }
    }

    private mutating func readFrames() {
        for member in members {
            let checkpoint = member.checkpoint
            manifests[checkpoint.manifest.transaction] = checkpoint.location
        }
        for (_, file) in packs.sorted(by: { $0.key < $1.key }) {
            for entry in salvages[file].entries where !isLate(entry, in: file) {
                guard let table = entry.frame else { continue }
                let place = RecordLocation(pack: UInt32(file), offset: entry.offset)
                frames[entry.transaction, default: TransactionGroups()].append(table, at: place)
            }
        }
    }

    /// True if a record comes after the manifest of its transaction, where its pages are not looked
    /// for.
    func isLate(_ entry: PackIndex.Entry, in file: Int) -> Bool {
        guard let manifest = manifests[entry.transaction] else { return false }
        return manifest < RecordLocation(pack: salvages[file].number, offset: entry.address)
    }

    private mutating func readManifests() throws {
        let places = records.sorted {
            ($0.key.pack, $0.key.offset) < ($1.key.pack, $1.key.offset)
        }
        var forgotten: Set<CheckpointID> = []
        var found: [Checkpoint] = []
        var newestPruned: PrunedRecord?
        var labels = RepairLabels(mark: hints.mark)
        for (location, place) in places {
            do {
                switch place.entry.type {
                case .publish: found.append(try manifest(at: location, place))
                case .forget:
                    let payload = try payload(at: location, .forget)
                    forgotten.formUnion(try ForgetRecord.decode(payload).ids.map(CheckpointID.init))
                case .pruned:
                    let record = try PrunedRecord.decode(try payload(at: location, .pruned))
                    try record.check(in: location.pack)
                    pruned = pruned.union(record)
                    newestPruned = record
                case .labels:
                    let record = try LabelsRecord.decode(try payload(at: location, .labels))
                    labels.add(record, at: location)
                default: break
                }
            } catch let error as FormatError {
                noteWrong(location, error)
            }
        }
        pruned = pruned.union(hints.pruned)
        prunedIsLost = pruned != (newestPruned ?? PrunedRecord())
        let hinted = Set(hints.manifests.filter(\.isForgotten).map(\.id)).subtracting(forgotten)
        labels.add(hints.manifests)
        labelsByHint = labels.byHint
        var transactions: [UInt64: CheckpointID] = [:]
        for checkpoint in found where positions[checkpoint.id] == nil {
            let number = checkpoint.manifest.transaction
            if let other = transactions[number] {
                condemn(
                    checkpoint,
                    isForgotten: forgotten.union(hinted).contains(checkpoint.id),
                    "its transaction number is that of checkpoint \(other.short)")
                continue
            }
            transactions[number] = checkpoint.id
            positions[checkpoint.id] = members.count
            let isForgotten =
                forgotten.contains(checkpoint.id) || hinted.contains(checkpoint.id)
            if hinted.contains(checkpoint.id) { forgottenByHint.append(checkpoint.id) }
            members.append(
                Member(
                    checkpoint: labels.apply(to: checkpoint), isForgotten: isForgotten,
                    isNeeded: !isForgotten))
        }
    }

    private func manifest(at location: RecordLocation, _ place: RecordPlace) throws -> Checkpoint {
        let payload = try payload(at: location, .publish)
        let manifest = try Manifest.decode(payload)
        guard manifest.transaction == place.entry.transaction else {
            throw FormatError(offset: 72, reason: "the transaction numbers differ")
        }
        try manifest.check(at: location)
        let digest = payload.withUnsafeBytes { PageDigest(hashing: $0) }
        return Checkpoint(id: CheckpointID(digest), manifest: manifest, location: location)
    }

    private func noteWrongCorruption(
        _ location: RecordLocation, _ error: FormatError
    ) -> Corruption? {
        guard let place = records[location] else { return nil }
        return Corruption(
            file: salvages[place.file].path, offset: UInt64(place.entry.offset),
            object: place.entry.type.description, reason: error.reason)
    }

    /// Treats a record as damaged although its checksum is correct.
    mutating func noteWrong(_ location: RecordLocation, _ error: FormatError) {
        wrong[location] = noteWrongCorruption(location, error)
        records[location] = nil
    }

    private mutating func findMissing() {
        highestPack = packs.keys.max() ?? 0
        if let end = hints.acknowledged, end.namesRecords {
            highestPack = max(highestPack, end.pack)
        }
        let named =
            members.flatMap { $0.checkpoint.manifest.mapParts + $0.checkpoint.manifest.stateParts }
            + hints.manifests.map(\.location)
        highestPack = max(highestPack, named.map(\.pack).max() ?? 0)
        highestPack = max(highestPack, pruned.ranges.last.map { $0.upperBound - 1 } ?? 0)
        missing = PackGaps.missing(packs.keys, pruned, upTo: highestPack)
    }

    private mutating func countRecords() {
        let files = packs.sorted { $0.key < $1.key }.map { salvages[$0.value] }
        let isUntouched = files.allSatisfy {
            !$0.isRewritten && $0.damages.isEmpty && $0.envelopeProblem == nil
        }
        guard isUntouched, missing.isEmpty, pruned.ranges.isEmpty else { return }
        var totals: [UInt64: TransactionTotals] = [:]
        for entry in files.flatMap(\.entries) {
            totals[entry.transaction, default: .init()].add(entry)
        }
        self.totals = totals
    }

    // MARK: - Manifests that refer to the wrong records

    /// Treats manifests as damaged that refer to records which are not their own or never existed.
    private mutating func condemnManifests() throws {
        var kept: [Member] = []
        for member in members {
            if let problem = try problem(with: member) {
                condemn(member.checkpoint, isForgotten: member.isForgotten, problem)
            } else {
                kept.append(member)
            }
        }
        guard kept.count < members.count else { return }
        members = kept
        positions = [:]
        for (position, member) in kept.enumerated() {
            positions[member.checkpoint.id] = position
        }
    }

    private mutating func condemn(
        _ checkpoint: Checkpoint, isForgotten: Bool, _ reason: String
    ) {
        noteWrong(checkpoint.location, FormatError(offset: 0, reason: reason))
        if !isForgotten { condemned.append(checkpoint) }
    }

    private func problem(with member: Member) throws -> String? {
        let manifest = member.checkpoint.manifest
        var check = MapCheck(manifest)
        for place in manifest.maps {
            let location = place.location
            if let problem = problem(with: location, of: member) { return problem }
            guard records[location] != nil else { continue }
            let part: MapPart
            do {
                part = try mapPart(at: location)
            } catch is FormatError {
                // Reported by itself when the pages are looked for.
                continue
            }
            do throws(FormatError) {
                try check.take(part, at: place)
            } catch {
                return "its page map, at offset \(location.offset) of pack \(location.pack), "
                    + "cannot be its own: \(error.reason)"
            }
        }
        return nil
    }

    /// What is wrong with a part of a page map in a manifest, if its location itself is intact.
    ///
    /// Such a manifest would stop every reader of the packs, forgotten or not. Other errors in a
    /// manifest are in `RepairVerdict.problem`.
    private func problem(with location: RecordLocation, of member: Member) -> String? {
        let name = "the page map at offset \(location.offset) of pack \(location.pack)"
        if let entry = records[location]?.entry {
            guard entry.type == .mapPart else { return "\(name) is a \(entry.type)" }
            let (owner, own) = (entry.transaction, member.checkpoint.manifest.transaction)
            return owner == own
                ? nil : "\(name) is of transaction \(owner), but its own is \(own)"
        }
        if wrong[location] != nil { return nil }
        guard let file = packs[location.pack] else {
            // Missing, or removed when its checkpoint was forgotten.
            guard pruned.contains(location.pack), !member.isForgotten else { return nil }
            return "\(name) is in a pack that was removed"
        }
        let salvage = salvages[file]
        if salvage.isRewritten, member.isForgotten { return nil }
        // The manifest may refer to anything that is damaged.
        let isWhole =
            salvage.damages.isEmpty && salvage.envelopeProblem == nil
            && salvage.abandonedByteCount == 0
        return isWhole ? "\(name) is not there" : nil
    }

    private mutating func markNeeded() {
        for position in members.indices.reversed() where members[position].isNeeded {
            guard let ancestor = members[position].checkpoint.mapAncestor,
                let place = positions[ancestor]
            else { continue }
            members[place].isNeeded = true
        }
    }

    // MARK: - Reading

    /// The payload of a whole record.
    func payload(at location: RecordLocation, _ type: RecordType) throws -> [UInt8] {
        guard let place = records[location], place.entry.type == type else {
            throw Unreadable(corruption: lost(location, type))
        }
        let file = try files.open(salvages[place.file].path)
        let (header, record) = try PackReader.readRecord(file, at: place.entry.offset).get()
        let end = RecordHeader.byteCount + header.payloadCount
        return Array(record[RecordHeader.byteCount..<end])
    }

    /// A part of a page map.
    func mapPart(at location: RecordLocation) throws -> MapPart {
        let payload = try payload(at: location, .mapPart)
        let decompressor = try Decompressor.allocate()
        return try payload.withUnsafeBytes { try MapPart.decode($0, decompressor: decompressor) }
    }

    /// What happened to a record that is missing, and where.
    func lost(_ location: RecordLocation, _ type: RecordType) -> Corruption {
        if let wrong = wrong[location] { return wrong }
        let path = PackName.path(location.pack)
        guard let file = packs[location.pack] else {
            return Corruption(
                file: path, offset: 0, object: "pack", reason: "the file is missing")
        }
        if let damage = salvages[file].damage(at: location.offset) {
            return Corruption(
                file: salvages[file].path, offset: damage.range.lowerBound, object: damage.object,
                reason: damage.reason)
        }
        return Corruption(
            file: salvages[file].path, offset: UInt64(location.offset), object: type.description,
            reason: "it is not there")
    }
}

extension FileError {
    /// True if the object opened is a directory or of another wrong kind.
    var isNoFile: Bool { isOdd || [21, 6, 40].contains(errno) }
}
