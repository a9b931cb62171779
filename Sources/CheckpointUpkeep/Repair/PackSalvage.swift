import CheckpointFormat
import CheckpointIndex
import GuestModel
import LMDBTables
import PackStore

// Finds what is undamaged in the file of one pack, whatever happened to it.
//
// A pack's own index locates each record, so a damaged record is skipped exactly. Without the
// index, a damaged record ends where its header says, if a whole record begins there; otherwise the
// next whole record is searched for at multiples of 8. In the newest pack, the tail left by a crash
// is not damage: what follows the first place that is not whole, and was not confirmed according to
// any record, was never acknowledged.

/// The whole records in one file of the directory of packs, and the damaged places.
struct PackSalvage: Sendable {
    /// A damaged range of the file.
    struct Damage: Sendable {
        let range: Range<UInt64>
        /// The type of what was there, as far as the pack index or the rest of a header shows.
        let type: RecordType?
        let reason: String
        /// Its entry in the pack index, or one made from its own header.
        let entry: PackIndex.Entry?

        var object: String { type?.description ?? "record" }
    }

    /// The kind of the file.
    enum Kind: Sendable {
        /// The pack of this number, or too damaged to tell otherwise.
        case pack
        /// A pack of this repository other than the file name says.
        case misplaced
        /// Not a pack of this repository.
        case foreign(String)
        /// A pack that was being created when the writer died: it cannot hold data.
        case hollow
    }

    /// The file's name.
    let name: String
    /// The pack's number: from the envelope if that is whole, otherwise from the name.
    let number: UInt32
    let byteCount: UInt64
    private(set) var kind = Kind.pack
    private(set) var isRewritten = false
    /// The whole records, in order.
    private(set) var entries: [PackIndex.Entry] = []
    private(set) var damages: [Damage] = []
    /// Why the envelope is unreadable.
    private(set) var envelopeProblem: String?
    /// Why the pack is not sealed, or its seal not trusted.
    private(set) var sealProblem: String?
    /// True if the pack index was read and is correct.
    private(set) var hasSeal = false
    /// Number of bytes at the end that a crash left.
    private(set) var abandonedByteCount: UInt64 = 0
    /// The records in these bytes: they were never acknowledged, but pages in them are usable.
    private(set) var abandoned: [PackIndex.Entry] = []

    var path: String { "\(StoreDirectory.packs)/\(name)" }
    /// True if it may precede other packs unchanged.
    var isSealedAndWhole: Bool {
        hasSeal && damages.isEmpty && envelopeProblem == nil && abandonedByteCount == 0
    }

    /// Reads a file.
    ///
    /// - Parameters:
    ///   - number: the number of the pack in the file, from `number(_:name:)`.
    ///   - isNewest: true if there is no pack with a higher number.
    ///   - acknowledged: how far the packs were confirmed; nil if unknown.
    init(
        _ files: RepairFiles, name: String, number: UInt32, isNewest: Bool,
        acknowledged: RecordLocation?
    ) throws(IndexError) {
        self.name = name
        self.number = number
        let file = try IndexError.ofFiles(files.open("\(StoreDirectory.packs)/\(name)"))
        byteCount = try IndexError.ofFiles(file.byteCount())
        let head = try IndexError.ofFiles(file.readBytes(Envelope.byteCount, at: 0))
        var refusal: String?
        do throws(Envelope.Refusal) {
            let envelope = try Envelope.decode(head, kind: .pack)
            if envelope.repository != files.repository {
                kind = .foreign("it belongs to repository \(envelope.repository)")
                return
            }
            isRewritten = envelope.isRewritten
            if envelope.number != UInt64(number) {
                refusal = "it says that it is pack \(envelope.number)"
            }
        } catch {
            refusal = try IndexError.ofPacks(PackSalvage.sentence(error, head, path))
        }
        if number != PackName.number(name) { kind = .misplaced }
        try read(file, refusal, isNewest: isNewest, acknowledged: acknowledged)
    }

    /// The number of the pack in a file: from its envelope, or else its footer, or else the
    /// manifests in it, or else its name; nil if there is none.
    static func number(_ files: RepairFiles, name: String) throws(FileError) -> UInt32? {
        let file = try files.open("\(StoreDirectory.packs)/\(name)")
        let head = try file.readBytes(Envelope.byteCount, at: 0)
        if let envelope = try? Envelope.decode(head, kind: .pack) {
            // Another repository's: only its name makes it a pack.
            guard envelope.repository == files.repository else { return PackName.number(name) }
            return PackSalvage.possible(envelope.number) ?? PackName.number(name)
        }
        let byteCount = try file.byteCount()
        if byteCount >= UInt64(Envelope.byteCount + PackFooter.byteCount) {
            let end = byteCount - UInt64(PackFooter.byteCount)
            let bytes = try file.readBytes(PackFooter.byteCount, at: end)
            if let footer = try? PackFooter.decode(bytes) { return possible(footer.pack) }
        }
        return try numberInManifests(file, byteCount) ?? PackName.number(name)
    }

    static let noPack = "it has neither the name nor the beginning of a pack"
    static let noFile = "it is not a regular file"

    /// What is wrong with a file among the packs without a pack's name; nil if it is gone.
    static func oddity(_ files: RepairFiles, name: String) throws(FileError) -> Corruption? {
        let path = "\(StoreDirectory.packs)/\(name)"
        do throws(FileError) {
            let pack = try number(files, name: name)
            return Corruption(
                file: path, offset: 0, object: pack == nil ? "file" : "pack",
                reason: pack.map { "it is pack \($0)" } ?? noPack)
        } catch {
            if error.isNoFile {
                return Corruption(file: path, offset: 0, object: "file", reason: noFile)
            }
            if error.isForbidden {
                return Corruption(
                    file: path, offset: 0, object: "file",
                    reason: "it does not have a pack's name and cannot be read")
            }
            guard error.isMissing else { throw error }
            return nil
        }
    }

    /// The number, if it is a valid pack number.
    private static func possible(_ number: UInt64) -> UInt32? {
        UInt32(exactly: number).flatMap { 1...PackName.numberMax ~= $0 ? $0 : nil }
    }

    /// The pack that manifests in a file give for page maps in the same file; nil if there is none.
    private static func numberInManifests(
        _ file: any RepositoryFile, _ byteCount: UInt64
    ) throws(FileError) -> UInt32? {
        var parts: [UInt32: UInt64] = [:]
        var votes: [UInt32: Int] = [:]
        var offset = UInt32(Envelope.byteCount)
        let byteCount = min(byteCount, UInt64(UInt32.max))
        while UInt64(offset) < byteCount {
            let read = try PackReader.readRecord(file, at: offset)
            do throws(FormatError) {
                let (header, record) = try read.get()
                guard UInt64(offset) + UInt64(header.recordByteCount) <= byteCount else { break }
                let payload = record[RecordHeader.byteCount...].prefix(header.payloadCount)
                if header.type == .mapPart {
                    parts[header.address == 0 ? offset : header.address] = header.transaction
                } else if header.type == .publish {
                    let manifest = try Manifest.decode(Array(payload))
                    for part in manifest.mapParts where parts[part.offset] == header.transaction {
                        votes[part.pack, default: 0] += 1
                    }
                }
                offset += UInt32(header.recordByteCount)
            } catch {
                guard let next = try PackScan.nextRecord(file, after: offset, size: byteCount)
                else { break }
                offset = next
            }
        }
        return votes.max { ($0.value, $1.key) < ($1.value, $0.key) }?.key
    }

    /// What is wrong with an envelope; throws if it is valid but of a later format.
    private static func sentence(
        _ refusal: Envelope.Refusal, _ head: [UInt8], _ path: String
    ) throws(RepositoryError) -> String {
        if head.count < Envelope.byteCount { return "the pack ends within its envelope" }
        switch refusal {
        case .foreign: return "it does not begin like a pack"
        case .damaged(let error): return error.reason
        case .version, .features:
            throw RepositoryError(
                .version,
                "\(path) has a format that this program does not support; repair it with a version "
                    + "that does")
        }
    }

    private mutating func read(
        _ file: any RepositoryFile, _ refusal: String?, isNewest: Bool,
        acknowledged: RecordLocation?
    ) throws(IndexError) {
        if let refusal {
            let head = try IndexError.ofFiles(file.readBytes(Envelope.byteCount, at: 0))
            let mayBeHollow = acknowledged.map { number > $0.pack || !$0.namesRecords } ?? true
            if isNewest, Envelope.isTorn(head, kind: .pack), mayBeHollow, case .pack = kind {
                kind = .hollow
                return
            }
            envelopeProblem = refusal
            isRewritten = try IndexError.ofFiles(PackSalvage.looksRewritten(file, byteCount))
        }
        try readRecords(file)
        if envelopeProblem != nil, entries.isEmpty {
            // Nothing in it belongs to this repository.
            (damages, sealProblem) = ([], nil)
            kind = .foreign(envelopeProblem ?? "")
            return
        }
        // If a later pack was confirmed, this one was sealed, and the newest pack is lost.
        guard isNewest, !isRewritten, acknowledged.map({ $0.pack <= number }) ?? true else {
            return
        }
        sealProblem = nil
        let read = acknowledged?.pack == number ? acknowledged?.offset ?? 0 : 0
        let confirmed = try IndexError.ofFiles(PackSalvage.confirmed(file, entries, read))
        dropTorn(confirmed: confirmed)
        let end = entries.last?.end ?? UInt32(Envelope.byteCount)
        if read > end, !hasSeal, damages.isEmpty {
            damages = [
                Damage(
                    range: UInt64(end)..<UInt64(read), type: nil,
                    reason: "the pack ends before published data", entry: nil)
            ]
        }
    }

    /// How much of the pack was synced, according to all sources.
    private static func confirmed(
        _ file: any RepositoryFile, _ entries: [PackIndex.Entry], _ read: UInt32
    ) throws(FileError) -> UInt64 {
        var confirmed = read
        for entry in entries where entry.type.isConfirming {
            // It was whole when it was listed.
            guard case .success(let record) = try PackReader.readRecord(file, at: entry.offset)
            else { continue }
            confirmed = max(confirmed, record.header.confirmed)
        }
        return UInt64(confirmed)
    }

    private mutating func dropTorn(confirmed: UInt64) {
        guard let torn = damages.first(where: { $0.range.lowerBound >= confirmed }) else { return }
        let start = torn.range.lowerBound
        abandonedByteCount = byteCount - start
        abandoned = (entries + damages.compactMap(\.entry)).filter { UInt64($0.offset) >= start }
        entries.removeAll { UInt64($0.offset) >= start }
        damages.removeAll { $0.range.lowerBound >= start }
    }

    // MARK: - Records

    private mutating func readRecords(_ file: any RepositoryFile) throws(IndexError) {
        var known: [PackIndex.Entry] = []
        do throws(RepositoryError) {
            let scan = try PackScan.scanSeal(file, pack: number, isRewritten: isRewritten)
            if let scan { known = scan.entries } else { sealProblem = "the pack is not sealed" }
        } catch {
            guard let corruption = error.corruption else { throw .repository(error) }
            sealProblem = corruption.reason
        }
        do throws(FileError) {
            if !known.isEmpty, try readKnown(file, known) {
                hasSeal = true
                return
            }
            try walk(file)
        } catch {
            throw .file(error)
        }
        dropDisordered()
    }

    /// Reads the records listed in the pack index; false if the two disagree.
    private mutating func readKnown(
        _ file: any RepositoryFile, _ known: [PackIndex.Entry]
    ) throws(FileError) -> Bool {
        for entry in known {
            let read = try PackReader.readRecord(file, at: entry.offset)
            do throws(FormatError) {
                let (header, record) = try read.get()
                let found = try PackScan.entry(
                    header, record, at: entry.offset, isRewritten: isRewritten)
                guard found == entry else {
                    (entries, damages) = ([], [])
                    sealProblem = "the pack index does not match the records"
                    return false
                }
                entries.append(entry)
            } catch {
                damages.append(
                    Damage(
                        range: UInt64(entry.offset)..<UInt64(entry.end), type: entry.type,
                        reason: error.reason, entry: entry))
            }
        }
        return true
    }

    /// Reads records in sequence, and continues after damage.
    private mutating func walk(_ file: any RepositoryFile) throws(FileError) {
        var offset = UInt64(Envelope.byteCount)
        while offset < byteCount, let start = UInt32(exactly: offset) {
            let read = try PackReader.readRecord(file, at: start)
            do throws(FormatError) {
                let (header, record) = try read.get()
                if try PackScan.isSeal(header, at: start, size: byteCount) { return }
                entries.append(
                    try PackScan.entry(header, record, at: start, isRewritten: isRewritten))
                offset += UInt64(header.recordByteCount)
            } catch {
                let end = try next(file, after: start) ?? byteCount
                damages.append(try damage(file, offset..<end, error.reason))
                offset = end
            }
        }
    }

    /// The offset of the next whole record after a damaged one; nil if there is none.
    private func next(
        _ file: any RepositoryFile, after start: UInt32
    ) throws(FileError) -> UInt64? {
        func isWhole(_ offset: UInt64) throws(FileError) -> Bool {
            guard let place = UInt32(exactly: offset),
                case .success((let header, let record)) = try PackReader.readRecord(
                    file, at: place)
            else { return false }
            if header.type == .packIndex { return true }
            let entry = try? PackScan.entry(header, record, at: place, isRewritten: isRewritten)
            return entry != nil
        }
        let head = try file.readBytes(RecordHeader.byteCount, at: UInt64(start))
        // Page contents may look like records, so the damaged header is consulted first.
        if let header = try? head.withUnsafeBytes({ try RecordHeader($0) }) {
            let end = UInt64(start) + UInt64(header.recordByteCount)
            let successor = try file.readBytes(RecordHeader.byteCount, at: end)
            if (try? successor.withUnsafeBytes({ try RecordHeader($0) })) != nil { return end }
        }
        var window = UInt64(start) + 8
        while window < byteCount {
            let bytes = try file.readPages(1 << 20, at: window)
            let places = bytes.withUnsafeBytes { bytes in
                stride(from: 0, to: bytes.count - 3, by: 8).filter {
                    UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self))
                        == RecordHeader.magic
                }
            }
            for place in places where try isWhole(window + UInt64(place)) {
                return window + UInt64(place)
            }
            window += 1 << 20
        }
        return nil
    }

    /// What can still be read at a damaged place.
    private func damage(
        _ file: any RepositoryFile, _ range: Range<UInt64>, _ reason: String
    ) throws(FileError) -> Damage {
        let bytes = try file.readPages(min(range.count, 1024), at: range.lowerBound)
        let header = try? bytes.withUnsafeBytes { try RecordHeader($0) }
        var type = header?.type
        var entry: PackIndex.Entry?
        // The header of a page group also states how long the record is.
        let table = try? bytes.dropFirst(RecordHeader.byteCount).withUnsafeBytes { payload in
            let blockCount = payload.count > 5 ? Int(payload[5]) : 0
            guard payload.count >= 8 + 4 * blockCount else {
                throw FormatError(offset: 0, reason: "the pack ends within its head")
            }
            let sum = (0..<blockCount).reduce(8 + 4 * blockCount) {
                let field = payload.loadUnaligned(fromByteOffset: 8 + 4 * $1, as: UInt32.self)
                return $0 + Int(UInt32(littleEndian: field) & 0xff_ffff)
            }
            return try PageGroupTable.decode(payload, payloadCount: sum)
        }
        // A record cut off by the end of the file is longer than what is left, as its header shows.
        if let table, type == nil || type == .pageGroup,
            RecordHeader.recordByteCount(payload: table.payloadCount) <= range.count
                || header?.payloadCount == table.payloadCount
        {
            type = .pageGroup
            entry = PackIndex.Entry(
                type: .pageGroup, offset: UInt32(range.lowerBound),
                payloadCount: table.payloadCount, transaction: header?.transaction ?? 0,
                address: isRewritten ? header?.address : nil, frame: table)
        } else if let header, header.type != .pageGroup, header.type != .packIndex {
            entry = PackIndex.Entry(
                type: header.type, offset: UInt32(range.lowerBound),
                payloadCount: header.payloadCount, transaction: header.transaction,
                address: isRewritten ? header.address : nil, frame: nil)
        }
        return Damage(range: range, type: type, reason: reason, entry: entry)
    }

    /// Drops records whose addresses are out of order: page contents mistaken for records.
    private mutating func dropDisordered() {
        var end = UInt64(Envelope.byteCount)
        entries.removeAll { entry in
            guard entry.addresses.lowerBound >= end else { return true }
            end = entry.addresses.upperBound
            return false
        }
    }

    /// True if the first readable record has an address of its own.
    private static func looksRewritten(
        _ file: any RepositoryFile, _ byteCount: UInt64
    ) throws(FileError) -> Bool {
        var window = UInt64(Envelope.byteCount)
        while window + UInt64(RecordHeader.byteCount) <= byteCount {
            let bytes = try file.readPages((1 << 20) + RecordHeader.byteCount, at: window)
            for place in stride(from: 0, to: bytes.count - RecordHeader.byteCount + 1, by: 8) {
                guard let offset = UInt32(exactly: window + UInt64(place)) else { return false }
                let head = bytes[place..<place + RecordHeader.byteCount]
                guard (try? head.withUnsafeBytes { try RecordHeader($0) }) != nil else { continue }
                guard case .success(let record) = try PackReader.readRecord(file, at: offset)
                else { continue }
                if record.header.type != .packIndex { return record.header.address != 0 }
            }
            window += 1 << 20
        }
        return false
    }
}

extension PackSalvage {
    /// The damaged place that contains an address; nil if there is none.
    func damage(at address: UInt32) -> Damage? {
        damages.first { damage in
            guard let entry = damage.entry else {
                // Without a header the addresses in a rewritten pack are unknown.
                return !isRewritten && damage.range.contains(UInt64(address))
            }
            return entry.address == address
        } ?? damages.first { !isRewritten && $0.range.contains(UInt64(address)) }
    }
}

extension PackSalvage {
    /// The offset of the block with an address in a rewritten pack.
    func offset(ofBlock address: UInt64) -> UInt64? {
        let near = entries.first(endingBehind: address) { $0.addresses.upperBound }
        let entry = ([near] + damages.map(\.entry)).compactMap { $0 }.first {
            $0.frame != nil && $0.addresses.contains(address)
        }
        return entry.map { UInt64($0.offset) + address - UInt64($0.address) }
    }
}

extension ReadMark {
    /// True if anything but the envelope was read in its pack.
    var namesRecords: Bool { offset > UInt32(Envelope.byteCount) }
}
