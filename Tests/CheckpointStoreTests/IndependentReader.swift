import CZstd
import Foundation

/// Reads a repository's packs using only the documented layout: no code of the library.
///
/// Deliberately slow and simple: the checksum bit by bit, BLAKE3 word by word, everything in
/// arrays.
struct IndependentReader {
    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    struct Checkpoint {
        let id: [UInt8]
        let parent: [UInt8]
        let root: [UInt8]
        let lineage: String
        let label: String
        /// The pages of the memory's frames that exist.
        let pages: [UInt64: [UInt8]]
        /// The disks' contents, by name.
        let disks: [String: [UInt8]]
        /// Requests under way at the cut, of the disks of which that is known.
        let requests: [String: Int]
        let state: [UInt8]
    }

    private struct Record {
        let type: UInt8
        let transaction: UInt64
        let payload: [UInt8]
    }

    /// Checkpoints in the order of their publish records.
    private(set) var checkpoints: [Checkpoint] = []
    /// By pack and address.
    private var records: [UInt64: Record] = [:]
    /// Publish records in order.
    private var manifests: [Record] = []
    private var forgotten: Set<[UInt8]> = []
    private var pruned: Set<UInt32> = []
    /// Labels given after publication; the last record applies.
    private var labels: [[UInt8]: String] = [:]
    /// Packs that prune rewrote.
    private(set) var rewrittenPacks: [UInt32] = []
    private var ordinals: [UInt64: [UInt32: [UInt8]]] = [:]
    private var pages: [[UInt8]: [UInt8]] = [:]
    private var maps: [[UInt8]: [UInt64: [UInt8]?]] = [:]

    init(path: String) throws {
        let head = try IndependentReader.load("\(path)/repository")
        try IndependentReader.check(head.starts(with: Array("VARVEREP".utf8)), "repository magic")
        let id = Array(head[16..<32])
        let names = try FileManager.default.contentsOfDirectory(atPath: "\(path)/packs").sorted()
        var numbers: Set<UInt32> = []
        for name in names where name.hasSuffix(".pack") {
            guard let number = UInt32(name.prefix(8), radix: 16) else {
                throw Failure(description: "\(name) is no pack")
            }
            let bytes = try IndependentReader.load("\(path)/packs/\(name)")
            try readPack(bytes, number, id, isLast: name == names.last)
            numbers.insert(number)
        }
        let missing = Set(1...(numbers.max() ?? 1)).subtracting(numbers)
        try Self.check(missing.isSubset(of: pruned), "packs \(missing) are lost")
        for manifest in manifests { try readManifest(manifest) }
    }

    private static func load(_ path: String) throws -> [UInt8] {
        Array(try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private static func check(_ condition: Bool, _ what: String) throws {
        if !condition { throw Failure(description: what) }
    }

    // MARK: - Packs

    private mutating func readPack(
        _ bytes: [UInt8], _ number: UInt32, _ id: [UInt8], isLast: Bool
    ) throws {
        try Self.check(bytes.starts(with: Array("VARVEPAK".utf8)), "pack magic")
        try Self.check(Self.u32(bytes, 8) == 2 && Self.u32(bytes, 12) == 64, "version, length")
        try Self.check(Array(bytes[16..<32]) == id, "repository id")
        try Self.check(Self.u64(bytes, 32) == UInt64(number), "pack number")
        let isRewritten = Self.u32(bytes, 40) == 4
        try Self.check(isRewritten || Self.u32(bytes, 40) == 0, "features")
        try Self.check(bytes[44..<60].allSatisfy { $0 == 0 }, "reserved")
        if isRewritten { rewrittenPacks.append(number) }
        try Self.check(Self.crc(bytes[0..<60]) == Self.u32(bytes, 60), "envelope checksum")
        var offset = 64
        var isSealed = false
        var places: [Place] = []
        while offset < bytes.count {
            if bytes.count - offset == 32,
                Array(bytes[offset..<offset + 8]) == Array("VARVEEND".utf8)
            {
                isSealed = true
                break
            }
            if bytes[offset + 4] == 6 {
                try checkIndex(bytes, at: offset, places, isRewritten: isRewritten)
            }
            let (place, end) = try readRecord(bytes, number, at: offset, isRewritten: isRewritten)
            places.append(place)
            offset = end
        }
        try Self.check(isSealed || isLast, "only the last pack may be open")
    }

    /// What a pack's index records of a record.
    private struct Place: Equatable {
        let type: UInt64
        let payloadCount: UInt64
        let transaction: UInt64
        let address: Int64
    }

    private mutating func readRecord(
        _ bytes: [UInt8], _ number: UInt32, at offset: Int, isRewritten: Bool
    ) throws -> (Place, end: Int) {
        try Self.check(Array(bytes[offset..<offset + 4]) == Array("VREC".utf8), "record magic")
        let count = Int(Self.u32(bytes, offset + 8))
        let end = offset + 32 + (count + 7) / 8 * 8
        let covered = Array(bytes[offset..<offset + 28]) + Array(bytes[offset + 32..<end])
        try Self.check(Self.crc(covered[...]) == Self.u32(bytes, offset + 28), "record checksum")
        let record = Record(
            type: bytes[offset + 4], transaction: Self.u64(bytes, offset + 16),
            payload: Array(bytes[offset + 32..<offset + 32 + count]))
        var address = UInt64(Self.u32(bytes, offset + 24))
        try Self.check((address != 0) == (isRewritten && record.type != 6), "address")
        if address == 0 { address = UInt64(offset) }
        records[UInt64(number) << 32 | address] = record
        switch record.type {
        case 1: try readPageGroup(record)
        case 4: manifests.append(record)
        case 7:
            let ids = Int(Self.u32(record.payload, 8))
            try Self.check(record.payload.count == 16 + 32 * ids, "forget record length")
            for index in 0..<ids {
                forgotten.insert(Array(record.payload[16 + 32 * index..<48 + 32 * index]))
            }
        case 8: pruned = Self.ranges(record.payload)
        case 9: try readLabels(record.payload)
        default: break
        }
        let place = Place(
            type: UInt64(record.type), payloadCount: UInt64(count),
            transaction: record.transaction, address: Int64(address))
        return (place, end)
    }

    private mutating func readLabels(_ payload: [UInt8]) throws {
        var offset = 16
        for _ in 0..<Self.u32(payload, 8) {
            let id = Array(payload[offset..<offset + 32])
            let count = Int(payload[offset + 32]) | Int(payload[offset + 33]) << 8
            offset += 34 + count
            labels[id] = String(decoding: payload[offset - count..<offset], as: UTF8.self)
        }
        try Self.check(offset == payload.count, "labels record length")
    }

    private static func ranges(_ payload: [UInt8]) -> Set<UInt32> {
        var packs: Set<UInt32> = []
        var offset = 0
        var pack: UInt32 = 0
        for _ in 0..<varint(payload, &offset) {
            pack += UInt32(varint(payload, &offset))
            for _ in 0..<varint(payload, &offset) {
                packs.insert(pack)
                pack += 1
            }
        }
        return packs
    }

    /// Checks a pack's index against the records before it.
    private func checkIndex(
        _ bytes: [UInt8], at offset: Int, _ places: [Place], isRewritten: Bool
    ) throws {
        let payload = Array(bytes[offset + 32..<offset + 32 + Int(Self.u32(bytes, offset + 8))])
        var position = 0
        func signed() -> Int64 {
            let folded = Self.varint(payload, &position)
            return Int64(bitPattern: folded >> 1) ^ -Int64(bitPattern: folded & 1)
        }
        var (found, transaction, address, lies) = ([Place](), UInt64(0), Int64(64), Int64(64))
        for _ in 0..<Self.varint(payload, &position) {
            let type = UInt64(payload[position])
            position += 1
            let count = Self.varint(payload, &position)
            transaction &+= UInt64(bitPattern: signed())
            address = isRewritten ? address + signed() : lies
            found.append(
                Place(type: type, payloadCount: count, transaction: transaction, address: address))
            let length = Int64(32 + (count + 7) / 8 * 8)
            address += length
            lies += length
            guard type == 1 else { continue }
            _ = Self.varint(payload, &position)
            for _ in 0..<2 * Self.varint(payload, &position) {
                _ = Self.varint(payload, &position)
            }
        }
        try Self.check(position == payload.count && found == places, "pack index")
    }

    private mutating func readPageGroup(_ record: Record) throws {
        let payload = record.payload
        var ordinal = Self.u32(payload, 0)
        let blockCount = Int(payload[5])
        var offset = 8 + 4 * blockCount
        var pageCount = 0
        for block in 0..<blockCount {
            let field = Self.u32(payload, 8 + 4 * block)
            let stored = Array(payload[offset..<offset + Int(field & 0xff_ffff)])
            offset += stored.count
            let count = Int(field >> 24)
            pageCount += count
            let contents = try Self.unpack(stored, to: count * 4096)
            for page in 0..<count {
                ordinals[record.transaction, default: [:]][ordinal] = Array(
                    contents[page * 4096..<(page + 1) * 4096])
                ordinal += 1
            }
        }
        try Self.check(offset == payload.count && pageCount == Int(payload[4]), "page group sizes")
    }

    private static func unpack(_ stored: [UInt8], to count: Int) throws -> [UInt8] {
        if stored.count == count { return stored }
        var result = [UInt8](repeating: 0, count: count)
        let got = ZSTD_decompress(&result, count, stored, stored.count)
        try check(got == count, "zstd")
        return result
    }

    // MARK: - Checkpoints

    private mutating func readManifest(_ record: Record) throws {
        let payload = record.payload
        let id = ReferenceBLAKE3.hash(payload)
        let position = Self.u32(payload, 48)
        let ancestor = Array(payload[56..<88])
        var offset = 88 + 6 * 8 + 4
        let lineage = Self.text(payload, &offset)
        let label = Self.text(payload, &offset)
        _ = Self.text(payload, &offset)
        let volumes = Self.volumes(payload, &offset)
        let mapParts = Self.parts(payload, &offset, skipping: 8)
        let stateParts = Self.parts(payload, &offset, skipping: 0)
        let stateDigest = Array(payload[offset..<offset + 32])
        try Self.check(offset + 32 == payload.count, "manifest length")
        let isForgotten = forgotten.contains(id)
        // A forgotten checkpoint may be incomplete: some of its parts may be kept only for the
        // locations of pages.
        if isForgotten && mapParts.contains(where: { records[$0] == nil }) { return }
        let isWhole = position == 0 || maps[ancestor] != nil
        var map: [UInt64: [UInt8]?] = [:]
        if position > 0 && !(isForgotten && !isWhole) {
            map = try Self.found(maps[ancestor], "map")
        }
        for part in mapParts {
            try readMapPart(
                try Self.found(records[part], "map part"), into: &map, isForgotten: isForgotten)
        }
        if isWhole { maps[id] = map }
        if isForgotten { return }
        var state: [UInt8] = []
        for part in stateParts { state += try Self.found(records[part], "state part").payload }
        try Self.check(ReferenceBLAKE3.hash(state) == stateDigest, "state digest")
        var memory: [UInt64: [UInt8]] = [:]
        var disks: [String: [UInt8]] = [:]
        var requests: [String: Int] = [:]
        var combined = Array("VVOL".utf8)
        combined += (0..<4).map { UInt8(volumes.count >> ($0 * 8) & 0xff) }
        for volume in volumes {
            let own = map.filter { $0.key >> 36 == volume.number }
            let relative = Dictionary(
                uniqueKeysWithValues: own.map { ($0.key & (1 << 36 - 1), $0.value) })
            try Self.check(Self.root(of: relative) == volume.root, "root of \(volume.name)")
            var contents: [UInt64: [UInt8]] = [:]
            for (frame, digest) in relative {
                contents[frame] =
                    try digest.map { try Self.found(pages[$0], "page") }
                    ?? [UInt8](repeating: 0, count: 4096)
            }
            combined += volume.identity
            if volume.number == 0 {
                memory = contents
                continue
            }
            var disk = [UInt8](repeating: 0, count: (volume.byteCount + 4095) / 4096 * 4096)
            for (block, page) in contents {
                disk.replaceSubrange(Int(block) * 4096..<Int(block) * 4096 + 4096, with: page)
            }
            requests[volume.name] = volume.requests
            disks[volume.name] = Array(disk[..<volume.byteCount])
        }
        checkpoints.append(
            Checkpoint(
                id: id, parent: Array(payload[0..<32]), root: ReferenceBLAKE3.hash(combined),
                lineage: lineage, label: labels[id] ?? label, pages: memory, disks: disks,
                requests: requests, state: state))
    }

    private struct Volume {
        let number: UInt64
        let name: String
        let byteCount: Int
        let root: [UInt8]
        /// Requests under way at the cut; nil: unknown.
        let requests: Int?
        /// Its share of the checkpoint's root.
        let identity: [UInt8]
    }

    private static func volumes(_ bytes: [UInt8], _ offset: inout Int) -> [Volume] {
        let count = Int(bytes[offset + 2]) | Int(bytes[offset + 3]) << 8
        offset += 4
        return (0..<count).map { _ in
            let start = offset
            offset += 80
            let nameStart = offset
            let name = text(bytes, &offset)
            let root = Array(bytes[start + 16..<start + 48])
            let stated = Int(bytes[start + 2]) | Int(bytes[start + 3]) << 8
            return Volume(
                number: UInt64(bytes[start]) | UInt64(bytes[start + 1]) << 8, name: name,
                byteCount: Int(u64(bytes, start + 8)), root: root,
                requests: stated == 0 ? nil : stated - 1,
                identity: Array(bytes[nameStart..<offset])
                    + Array(bytes[start + 8..<start + 16]) + Array(bytes[start + 4..<start + 8])
                    + root)
        }
    }

    private mutating func readMapPart(
        _ record: Record, into map: inout [UInt64: [UInt8]?], isForgotten: Bool
    ) throws {
        let payload = record.payload
        let digestCount = Int(Self.u32(payload, 0))
        let storedCount = Int(Self.u32(payload, 4))
        let columnCount = Int(Self.u32(payload, 8))
        let columns = try Self.unpack(Array(payload[16..<16 + storedCount]), to: columnCount)
        var digest = 16 + storedCount
        try Self.check(digest + 32 * digestCount == payload.count, "map part length")
        var offset = 0
        var frame: UInt64 = 0
        var ordinal: Int64 = 0
        while offset < columns.count {
            frame += Self.varint(columns, &offset)
            let count = Self.varint(columns, &offset)
            let content = columns[offset]
            offset += 1
            if content == 2 {
                let folded = Self.varint(columns, &offset)
                ordinal += Int64(bitPattern: folded >> 1) ^ -Int64(bitPattern: folded & 1)
            }
            for _ in 0..<count {
                switch content {
                case 0: map[frame] = nil
                case 1: map[frame] = .some(nil)
                default:
                    let expected = Array(payload[digest..<digest + 32])
                    digest += 32
                    if content == 2 {
                        if let page = ordinals[record.transaction]?[UInt32(ordinal)] {
                            try Self.check(ReferenceBLAKE3.hash(page) == expected, "page digest")
                            pages[expected] = page
                        }
                        ordinal += 1
                    }
                    map[frame] = expected
                }
                frame += 1
            }
        }
    }

    /// The Merkle root by recursion over frame numbers.
    private static func root(of map: [UInt64: [UInt8]?]) -> [UInt8] {
        let end = (map.keys.max() ?? 0) + 1
        var level = 0
        var covered: UInt64 = 64
        while covered < end {
            covered *= 64
            level += 1
        }
        return node(map, level, 0)
            ?? ReferenceBLAKE3.hash(Array("VNOD".utf8) + [UInt8](repeating: 0, count: 20))
    }

    private static func node(
        _ map: [UInt64: [UInt8]?], _ level: Int, _ number: UInt64
    ) -> [UInt8]? {
        var present: UInt64 = 0
        var zero: UInt64 = 0
        var digests: [UInt8] = []
        for index in 0..<64 as Range<UInt64> {
            let child = number * 64 + index
            if level > 0 {
                guard let digest = node(map, level - 1, child) else { continue }
                present |= 1 << index
                digests += digest
            } else if let content = map[child] {
                if let content {
                    present |= 1 << index
                    digests += content
                } else {
                    zero |= 1 << index
                }
            }
        }
        if present | zero == 0 { return nil }
        func little(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(value >> ($0 * 8) & 0xff) } }
        return ReferenceBLAKE3.hash(
            Array("VNOD".utf8) + [UInt8(level), 0, 0, 0] + little(present) + little(zero) + digests)
    }

    // MARK: - Values

    private static func found<T>(_ value: T?, _ what: String) throws -> T {
        guard let value else { throw Failure(description: "\(what) is missing") }
        return value
    }

    private static func u32(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << ($1 * 8) }
    }

    private static func u64(_ bytes: [UInt8], _ offset: Int) -> UInt64 {
        (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << ($1 * 8) }
    }

    private static func varint(_ bytes: [UInt8], _ offset: inout Int) -> UInt64 {
        var value: UInt64 = 0
        var shift = 0
        while true {
            let byte = bytes[offset]
            offset += 1
            value |= UInt64(byte & 0x7f) << shift
            if byte & 0x80 == 0 { return value }
            shift += 7
        }
    }

    private static func text(_ bytes: [UInt8], _ offset: inout Int) -> String {
        let count = Int(bytes[offset]) | Int(bytes[offset + 1]) << 8
        defer { offset += 2 + count }
        return String(decoding: bytes[offset + 2..<offset + 2 + count], as: UTF8.self)
    }

    /// - Parameter skipped: bytes of each entry before its location.
    private static func parts(
        _ bytes: [UInt8], _ offset: inout Int, skipping skipped: Int
    ) -> [UInt64] {
        let count = Int(u32(bytes, offset))
        defer { offset += 4 + (8 + skipped) * count }
        return (0..<count).map { index in
            let place = offset + 4 + (8 + skipped) * index + skipped
            return UInt64(u32(bytes, place)) << 32 | UInt64(u32(bytes, place + 4))
        }
    }

    private static func crc(_ bytes: ArraySlice<UInt8>) -> UInt32 {
        var rest = ~UInt32(0)
        for byte in bytes {
            rest ^= UInt32(byte)
            for _ in 0..<8 { rest = rest & 1 == 0 ? rest >> 1 : rest >> 1 ^ 0x82f6_3b78 }
        }
        return ~rest
    }
}
