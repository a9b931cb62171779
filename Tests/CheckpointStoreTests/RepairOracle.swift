import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import Foundation
import GuestModel
import PackStore
import SystemPackage

/// Determines what can be read of a damaged repository from what it was before: an independent
/// judge of repairs.
///
/// It knows the location of every byte that a checkpoint needs, and compares only these bytes.
struct RepairOracle {
    struct Copy {
        let pack: UInt32
        let record: Range<Int>
        /// Where the head of its page group ends.
        let headEnd: Int
        let block: Range<Int>
        let pageCount: Int
        let slot: Int
        /// The record before it in its pack.
        let before: Range<Int>?
    }

    struct Need {
        let checkpoint: Checkpoint
        let isForgotten: Bool
        let manifest: (pack: UInt32, bytes: Range<Int>)
        let states: [(pack: UInt32, bytes: Range<Int>)]
        /// The checkpoints of its chain of page maps, the oldest first.
        let series: [CheckpointID]
        /// nil for a forgotten checkpoint from which prune has removed something.
        let map: [UInt64: PageContent]?
    }

    /// The packs before the damage.
    private var whole: [UInt32: [UInt8]] = [:]
    private var sealEnds: [UInt32: Int] = [:]
    private var copies: [PageDigest: [Copy]] = [:]
    private var parts: [RecordLocation: (pack: UInt32, bytes: Range<Int>)] = [:]
    private(set) var needs: [CheckpointID: Need] = [:]
    private var order: [CheckpointID] = []
    /// Forget records: the checkpoints that they name, and their locations.
    private var forgets: [(ids: [CheckpointID], pack: UInt32, bytes: Range<Int>)] = []
    private var rewritten: Set<UInt32> = []
    /// The records of each pack, and how much of the pack each states as confirmed.
    private var records: [UInt32: [(bytes: Range<Int>, confirmed: Int)]] = [:]

    /// Examines a whole, closed repository.
    init(_ repository: Repository, _ path: FilePath) throws {
        let packs = try PackName.list(PosixFiles(root: path))
        var places: [RecordLocation: (pack: UInt32, bytes: Range<Int>)] = [:]
        for pack in packs {
            whole[pack] = try RepairOracle.read(path, pack)
            let scan = try PackScan.scan(
                repository.reader, pack: pack, isNewest: pack == packs.last)
            if scan.isSealed { sealEnds[pack] = Int(scan.entries.last?.end ?? 64) }
            if try repository.reader.file(pack).isRewritten { rewritten.insert(pack) }
            var before: Range<Int>?
            for entry in scan.entries {
                let bytes = Int(entry.offset)..<Int(entry.end)
                let location = RecordLocation(pack: pack, offset: entry.address)
                if entry.type == .forget {
                    let payload = try repository.reader.record(at: location, .forget).payload
                    let ids = try ForgetRecord.decode(payload).ids.map { CheckpointID($0) }
                    forgets.append((ids, pack, bytes))
                }
                if let frame = entry.frame {
                    addCopies(frame, pack, bytes, before)
                } else {
                    places[location] = (pack, bytes)
                }
                before = bytes
                let header = try (whole[pack] ?? [])[bytes].withUnsafeBytes { try RecordHeader($0) }
                records[pack, default: []].append((bytes, Int(header.confirmed)))
            }
        }
        parts = places
        try findNeeds(repository, places)
    }

    private static func read(_ path: FilePath, _ pack: UInt32) throws -> [UInt8] {
        [UInt8](
            try Data(contentsOf: URL(fileURLWithPath: path.string + "/" + PackName.path(pack))))
    }

    private mutating func addCopies(
        _ frame: PageGroupTable, _ pack: UInt32, _ record: Range<Int>, _ before: Range<Int>?
    ) {
        let headEnd = record.lowerBound + RecordHeader.byteCount + frame.headByteCount
        var start = headEnd
        for block in frame.blocks {
            let range = start..<start + Int(block.byteCount)
            let pages = RepairOracle.decode(whole[pack] ?? [], range, Int(block.pageCount)) ?? []
            for (slot, digest) in pages.enumerated() {
                copies[digest, default: []].append(
                    Copy(
                        pack: pack, record: record, headEnd: headEnd, block: range,
                        pageCount: Int(block.pageCount), slot: slot, before: before))
            }
            start = range.upperBound
        }
    }

    private static func decode(
        _ bytes: [UInt8], _ range: Range<Int>, _ pageCount: Int
    ) -> [PageDigest]? {
        let (start, end) = (min(range.lowerBound, bytes.count), min(range.upperBound, bytes.count))
        var stored = Array(bytes[start..<end])
        stored += repeatElement(0, count: range.count - stored.count)
        var pages = [UInt8](repeating: 0, count: pageCount * Page.byteCount)
        let isDecoded = stored.withUnsafeBytes { stored in
            pages.withUnsafeMutableBytes { pages in
                (try? PageBlock.decode(stored, decompressor: try Decompressor(), into: pages))
                    != nil
            }
        }
        guard isDecoded else { return nil }
        return (0..<pageCount).map { slot in
            pages[slot * Page.byteCount..<(slot + 1) * Page.byteCount].withUnsafeBytes {
                PageDigest(hashing: $0)
            }
        }
    }

    private mutating func findNeeds(
        _ repository: Repository, _ places: [RecordLocation: (pack: UInt32, bytes: Range<Int>)]
    ) throws {
        for entry in try repository.withIndex({ try $0.manifests() }) {
            guard let place = places[entry.location] else { continue }
            let checkpoint = try repository.ancestor(entry.id)
            var series = [checkpoint.id]
            var map: [UInt64: PageContent]?
            var last = checkpoint
            while last.manifest.mapPosition > 0,
                let next = try? repository.ancestor(CheckpointID(last.manifest.mapAncestor))
            {
                last = next
                series.append(last.id)
            }
            if let whole = try? repository.pageMap(of: checkpoint).map {
                map = [:]
                for frame in whole.frames(of: whole.volumes).runs().flatMap(\.frames) {
                    map?[frame] = whole[PageFrameNumber(frame)]
                }
            }
            let states = checkpoint.manifest.stateParts.compactMap { places[$0] }
            if states.count < checkpoint.manifest.stateParts.count { map = nil }
            order.append(entry.id)
            needs[entry.id] = Need(
                checkpoint: checkpoint, isForgotten: entry.isForgotten, manifest: place,
                states: states, series: series.reversed(), map: map)
        }
    }
}

// MARK: - Judging

extension RepairOracle {
    /// The relevant part of the damaged repository.
    struct Damaged {
        /// The bytes of each pack, wherever they are now.
        let packs: [UInt32: [UInt8]]
        let hasIndex: Bool
        /// How far the packs were confirmed according to the file `head`; nil if it is unreadable.
        let confirmed: (pack: UInt32, offset: Int)?
    }

    struct Verdict {
        var whole: Set<CheckpointID> = []
        var lost: Set<CheckpointID> = []
        /// The number of whole ones that do not need a damaged part of a page map.
        var withoutPart = 0
        /// The number of whole ones that have a page from a second location.
        var bySecondCopy = 0
    }

    private func isIntact(
        _ place: (pack: UInt32, bytes: Range<Int>), _ damaged: Damaged
    ) -> Bool {
        guard let now = damaged.packs[place.pack], let before = whole[place.pack],
            now.count >= place.bytes.upperBound
        else { return false }
        return now[place.bytes] == before[place.bytes]
    }

    /// The start of the newest pack's unconfirmed end, if something in it is damaged: it cannot be
    /// distinguished from what a power cut leaves of an unacknowledged checkpoint.
    private func torn(_ damaged: Damaged) -> (pack: UInt32, start: Int)? {
        // The index has read all of every pack.
        guard !damaged.hasIndex else { return nil }
        let newest = damaged.packs.keys.filter { pack in
            let head = isIntact((pack, 0..<Envelope.byteCount), damaged)
            return head || (records[pack] ?? []).contains { isIntact((pack, $0.bytes), damaged) }
        }.max()
        guard let newest, !rewritten.contains(newest) else { return nil }
        // A writer seals a pack before it confirms anything in the next one.
        if let confirmed = damaged.confirmed, confirmed.pack > newest { return nil }
        let ordered = records[newest] ?? []
        let intact = ordered.filter { isIntact((newest, $0.bytes), damaged) }
        // The head states the same as records do, and may be all that is left of it.
        let ofHead = damaged.confirmed.map { $0.pack == newest ? $0.offset : 0 } ?? 0
        let confirmed = max(intact.map(\.confirmed).max() ?? 0, ofHead)
        let start = ordered.map(\.bytes.lowerBound).first { start in
            start >= confirmed && !intact.contains { $0.bytes.lowerBound == start }
        }
        return start.map { (newest, $0) }
    }

    /// The original pack of a file without a readable envelope.
    func number(of bytes: [UInt8], named: UInt32) -> UInt32 {
        func likeness(_ pack: UInt32) -> Int {
            zip(bytes.dropFirst(64), (whole[pack] ?? []).dropFirst(64)).count { $0 == $1 }
        }
        let best = whole.keys.map { ($0, likeness($0)) }.max { $0.1 < $1.1 }
        guard let best, best.1 > likeness(named) else { return named }
        return best.0
    }

    private func hasSeal(_ pack: UInt32, _ damaged: Damaged) -> Bool {
        guard let now = damaged.packs[pack], let before = whole[pack], let end = sealEnds[pack]
        else { return false }
        return now.count == before.count && now[end...] == before[end...]
    }

    private func isThere(_ copy: Copy, of digest: PageDigest, _ damaged: Damaged) -> Bool {
        guard let now = damaged.packs[copy.pack] else { return false }
        let found = RepairOracle.decode(now, copy.block, copy.pageCount)
        guard found?[copy.slot] == digest else { return false }
        let start = copy.record.lowerBound
        let head = (copy.pack, start..<start + RecordHeader.byteCount)
        let table = (copy.pack, start + RecordHeader.byteCount..<copy.headEnd)
        let isFound = copy.before.map { isIntact((copy.pack, $0), damaged) } ?? true
        // Something must still tell where the block is.
        return hasSeal(copy.pack, damaged) || (damaged.hasIndex && !rewritten.contains(copy.pack))
            || (isIntact(table, damaged)
                && (isIntact(head, damaged) || isFound && now.count >= copy.record.upperBound))
            || (damaged.hasIndex && isIntact(head, damaged) && claims(copy, now))
    }

    /// True if a damaged table is still valid, for a record that extends to the block: the record's
    /// header has its address, and the index knows the block's.
    private func claims(_ copy: Copy, _ now: [UInt8]) -> Bool {
        guard now.count >= copy.record.upperBound else { return false }
        let payload = Array(now[copy.record.dropFirst(RecordHeader.byteCount)])
        // Its sizes have some sum; bits 0 to 23 of each field are a block's bytes.
        let blockCount = Int(payload[5])
        let head = 8 + 4 * blockCount
        guard head <= payload.count else { return false }
        let sum = (0..<blockCount).reduce(head) { sum, block in
            let field = payload[8 + 4 * block..<11 + 4 * block]
            return sum + field.reversed().reduce(0) { $0 << 8 | Int($1) }
        }
        let byteCount = RecordHeader.recordByteCount(payload: sum)
        let isTable = payload.withUnsafeBytes {
            (try? PageGroupTable.decode($0, payloadCount: sum)) != nil
        }
        return isTable && byteCount <= copy.record.count
            && copy.block.lowerBound - copy.record.lowerBound < byteCount
    }

    private func canHave(_ digest: PageDigest, _ damaged: Damaged) -> Bool {
        (copies[digest] ?? []).contains { isThere($0, of: digest, damaged) }
    }

    /// The page map that the intact parts give.
    private func map(of need: Need, _ damaged: Damaged) -> [UInt64: PageContent]? {
        var map: [UInt64: PageContent] = [:]
        for id in need.series {
            guard let member = needs[id], isIntact(member.manifest, damaged) else { return nil }
            for location in member.checkpoint.manifest.mapParts {
                guard let place = parts[location] else { return nil }
                // The pack of a part must exist, even if the part is empty.
                guard damaged.packs[place.pack] != nil else { return nil }
                guard isIntact(place, damaged), let bytes = whole[place.pack] else { continue }
                let start = place.bytes.lowerBound
                let count = bytes[start + 8..<start + 12].reversed().reduce(0) {
                    $0 << 8 | Int($1)
                }
                let payload = bytes[start + RecordHeader.byteCount..<start + 32 + count]
                let part = payload.withUnsafeBytes {
                    try? MapPart.decode($0, decompressor: try Decompressor())
                }
                part?.forEachRun { run, digests in
                    var next = digests.startIndex
                    for frame in run.range.frames {
                        switch run.content {
                        case .absent: map[frame] = nil
                        case .zero: map[frame] = .zero
                        case .storedHere, .storedBefore:
                            map[frame] = .present(digests[next])
                            next += 1
                        }
                    }
                }
            }
        }
        return map
    }

    /// The checkpoints that exist, whole and damaged.
    func judge(_ damaged: Damaged) -> Verdict {
        let torn = torn(damaged)
        func counts(_ place: (pack: UInt32, bytes: Range<Int>)) -> Bool {
            if let torn, place.pack == torn.pack, place.bytes.lowerBound >= torn.start {
                return false
            }
            return isIntact(place, damaged)
        }
        var forgotten: Set<CheckpointID> = []
        for record in forgets where counts((record.pack, record.bytes)) {
            forgotten.formUnion(record.ids)
        }
        var verdict = Verdict()
        for id in order {
            guard let need = needs[id] else { continue }
            if need.isForgotten && (damaged.hasIndex || forgotten.contains(id)) { continue }
            guard counts(need.manifest) else {
                if damaged.hasIndex { verdict.lost.insert(id) }
                continue
            }
            let isWhole =
                need.states.allSatisfy { isIntact($0, damaged) }
                && need.map != nil && map(of: need, damaged) == need.map
                && (need.map ?? [:]).values.allSatisfy { content in
                    guard case .present(let digest) = content else { return true }
                    return canHave(digest, damaged)
                }
            guard isWhole else {
                verdict.lost.insert(id)
                continue
            }
            verdict.whole.insert(id)
            let isPartial = need.series.compactMap { needs[$0] }.contains {
                !$0.checkpoint.manifest.mapParts.allSatisfy { location in
                    parts[location].map { isIntact($0, damaged) } ?? false
                }
            }
            if isPartial { verdict.withoutPart += 1 }
            let isSecond = (need.map ?? [:]).values.contains { content in
                guard case .present(let digest) = content else { return false }
                return copies[digest]?.contains { !isThere($0, of: digest, damaged) } ?? false
            }
            if isSecond { verdict.bySecondCopy += 1 }
        }
        return verdict
    }
}
