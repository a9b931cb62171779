import CheckpointFormat
import Foundation
import GuestModel
package import SystemPackage

/// A store as bytes.
package struct ForgedStore: Hashable, Sendable {
    /// The 60 bytes of the file `repository` before the checksum.
    package var envelope: [UInt8]
    package var packs: [ForgedPack]
    /// The 60 bytes of the file `head` before the checksum; nil: there is no head.
    package var head: [UInt8]?

    /// Reads a store that no process is writing.
    package init(_ path: FilePath) throws {
        func read(_ name: String) throws -> [UInt8] {
            [UInt8](try Data(contentsOf: URL(fileURLWithPath: path.appending(name).string)))
        }
        envelope = Array(try read("repository")[..<60])
        packs = []
        let names = try FileManager.default
            .contentsOfDirectory(atPath: path.appending("packs").string).sorted()
        for name in names where name.hasSuffix(".pack") {
            let number = UInt32(name.prefix(8), radix: 16) ?? 0
            packs.append(ForgedPack(try read("packs/\(name)"), number: number))
        }
    }

    /// Writes it to a new directory, without an index.
    package func write(_ path: FilePath) throws {
        let manager = FileManager.default
        try? manager.removeItem(atPath: path.string)
        try manager.createDirectory(
            atPath: path.appending("packs").string, withIntermediateDirectories: true)
        func write(_ bytes: [UInt8], _ name: String) throws {
            try Data(bytes).write(to: URL(fileURLWithPath: path.appending(name).string))
        }
        try write(
            envelope + Little.bytes(UInt64(Castagnoli.checksum(envelope)), 4), "repository")
        try write([], "lock")
        if let head {
            try write(head + Little.bytes(UInt64(Castagnoli.checksum(head)), 4), "head")
        }
        for pack in packs {
            let digits = String(pack.number, radix: 16)
            let name = String(repeating: "0", count: 8 - digits.count) + digits
            try write(pack.bytes, "packs/\(name).pack")
        }
    }

    /// A record.
    package subscript(place: RecordPlace) -> ForgedRecord {
        get { packs[place.pack].records[place.record] }
        set { packs[place.pack].records[place.record] = newValue }
    }

    /// The locations of all records of a type, in order.
    package func places(_ type: UInt8) -> [RecordPlace] {
        packs.indices.flatMap { pack in
            packs[pack].records.indices.filter { packs[pack].records[$0].type == type }
                .map { RecordPlace(pack: pack, record: $0) }
        }
    }

    /// Updates everything that refers to a record, or to a checkpoint's ID, after records changed
    /// or moved.
    package mutating func relink(from old: ForgedStore) {
        var moved: [[UInt64]: UInt64] = [:]
        for pack in packs {
            for (record, offset) in zip(pack.records, pack.offsets) {
                guard let origin = record.origin, record.address == 0 else { continue }
                moved[[UInt64(pack.number), UInt64(origin)]] = UInt64(offset)
            }
        }
        var known: [UInt32: [UInt32: [UInt8]]] = [:]
        for pack in old.packs {
            for record in pack.records where record.type == 4 {
                guard let origin = record.origin else { continue }
                known[pack.number, default: [:]][origin] = record.payload
            }
        }
        var ids: [[UInt8]: [UInt8]] = [:]
        for place in places(4) {
            var payload = self[place].payload
            let before = self[place].origin.flatMap { known[packs[place.pack].number]?[$0] }
            Manifests.move(&payload, moved)
            for field in [Manifests.parent.lowerBound, Manifests.ancestor.lowerBound]
            where payload.count >= field + 32 {
                let id = Array(payload[field..<field + 32])
                if let new = ids[id] { payload.replaceSubrange(field..<field + 32, with: new) }
            }
            self[place].payload = payload
            if let before { ids[Manifests.id(before)] = Manifests.id(payload) }
        }
        for place in places(7) {
            var payload = self[place].payload
            for field in stride(from: 16, to: payload.count - 31, by: 32) {
                let id = Array(payload[field..<field + 32])
                if let new = ids[id] { payload.replaceSubrange(field..<field + 32, with: new) }
            }
            self[place].payload = payload
        }
    }
}

/// A record's pack and position.
package struct RecordPlace: Hashable, Sendable {
    package var pack: Int
    package var record: Int

    package init(pack: Int, record: Int) {
        (self.pack, self.record) = (pack, record)
    }
}

/// A part of a page map or a state, as a manifest names it.
package struct ForgedPart: Sendable {
    /// Of a page map: the first frame.
    package var first: UInt64
    package var pack: UInt32
    package var offset: UInt32

    package init(first: UInt64 = 0, pack: UInt32, offset: UInt32) {
        (self.first, self.pack, self.offset) = (first, pack, offset)
    }
}

/// The positions of a manifest's fields.
package enum Manifests {
    package static let parent = 0..<32
    package static let transaction = 40..<48
    package static let position = 48..<52
    package static let ancestor = 56..<88
    /// Bytes before the lineage.
    package static let fixedByteCount = 140
    /// Bytes of a volume before its name.
    private static let volumeByteCount = 80

    /// A checkpoint's ID.
    package static func id(_ payload: [UInt8]) -> [UInt8] {
        payload.withUnsafeBytes { PageDigest(hashing: $0) }.bytes
    }

    /// The offset of the number of volumes; nil if the payload ends before it.
    private static func volumeCount(_ payload: [UInt8]) -> Int? {
        var offset = fixedByteCount
        for _ in 0..<3 {
            guard payload.count >= offset + 2 else { return nil }
            offset += 2 + Int(Little.read(payload[...], offset, 2))
        }
        return payload.count >= offset + 4 ? offset + 2 : nil
    }

    /// The offset of each volume.
    static func volumes(_ payload: [UInt8]) -> [Int] {
        guard let start = volumeCount(payload) else { return [] }
        var offset = start + 2
        var result: [Int] = []
        for _ in 0..<Int(Little.read(payload[...], start, 2)) {
            guard payload.count >= offset + volumeByteCount + 2 else { return [] }
            result.append(offset)
            offset +=
                volumeByteCount + 2 + Int(Little.read(payload[...], offset + volumeByteCount, 2))
        }
        return result
    }

    /// The offsets of the memory's counts: one more than its highest frame, its pages, its zero
    /// pages, and its changed pages.
    package static func counts(_ payload: [UInt8]) -> [Int] {
        volumes(payload).first.map { volume in (0..<4).map { volume + 48 + 8 * $0 } } ?? []
    }

    /// Offsets of the two part counts; nil if the payload ends before them.
    static func lists(_ payload: [UInt8]) -> [Int]? {
        guard let last = volumes(payload).last else { return nil }
        let first =
            last + volumeByteCount + 2
            + Int(Little.read(payload[...], last + volumeByteCount, 2))
        guard payload.count >= first + 4 else { return nil }
        let second = first + 4 + 16 * Int(Little.read(payload[...], first, 4))
        guard payload.count >= second + 4,
            payload.count == second + 4 + 8 * Int(Little.read(payload[...], second, 4)) + 32
        else { return nil }
        return [first, second]
    }

    /// The offsets of the locations in a list of parts.
    private static func locations(_ payload: [UInt8], _ kind: Int) -> [Int] {
        guard let list = lists(payload)?[kind] else { return [] }
        return (0..<Int(Little.read(payload[...], list, 4))).map {
            kind == 0 ? list + 4 + 16 * $0 + 8 : list + 4 + 8 * $0
        }
    }

    static func move(_ payload: inout [UInt8], _ moved: [[UInt64]: UInt64]) {
        for field in locations(payload, 0) + locations(payload, 1) {
            let place = [
                Little.read(payload[...], field, 4), Little.read(payload[...], field + 4, 4),
            ]
            guard let offset = moved[place] else { continue }
            payload.replaceSubrange(field + 4..<field + 8, with: Little.bytes(offset, 4))
        }
    }

    /// The payload in which each part of the page map begins at a frame.
    static func beginning(_ payload: [UInt8], at frame: UInt64) -> [UInt8] {
        var payload = payload
        for field in locations(payload, 0) {
            payload.replaceSubrange(field - 8..<field, with: Little.bytes(frame, 8))
        }
        return payload
    }

    /// The payload with other names.
    package static func renamed(
        _ payload: [UInt8], lineage: [UInt8]?, label: [UInt8]?
    ) -> [UInt8] {
        let first = fixedByteCount
        let second = first + 2 + Int(Little.read(payload[...], first, 2))
        let end = second + 2 + Int(Little.read(payload[...], second, 2))
        let names = [
            lineage ?? Array(payload[first + 2..<second]),
            label ?? Array(payload[second + 2..<end]),
        ]
        return payload[..<first] + names.flatMap { Little.bytes(UInt64($0.count), 2) + $0 }
            + payload[end...]
    }

    /// The payload with other lists of parts.
    package static func naming(
        _ payload: [UInt8], maps: [ForgedPart]?, states: [ForgedPart]?
    ) -> [UInt8] {
        guard let lists = lists(payload) else { return payload }
        func list(_ parts: [ForgedPart], isMap: Bool) -> [UInt8] {
            Little.bytes(UInt64(parts.count), 4)
                + parts.flatMap {
                    (isMap ? Little.bytes($0.first, 8) : [])
                        + Little.bytes(UInt64($0.pack), 4) + Little.bytes(UInt64($0.offset), 4)
                }
        }
        let first =
            maps.map { list($0, isMap: true) } ?? Array(payload[lists[0]..<lists[1]])
        let second =
            states.map { list($0, isMap: false) }
            ?? Array(payload[lists[1]..<payload.count - 32])
        return payload[..<lists[0]] + first + second + payload.suffix(32)
    }

    /// The parts of the page map (0) or of the state (1).
    package static func parts(_ payload: [UInt8], _ kind: Int) -> [ForgedPart] {
        locations(payload, kind).map { field in
            ForgedPart(
                first: kind == 0 ? Little.read(payload[...], field - 8, 8) : 0,
                pack: UInt32(Little.read(payload[...], field, 4)),
                offset: UInt32(Little.read(payload[...], field + 4, 4)))
        }
    }
}
