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
            for field in [0, 88] where payload.count >= field + 32 {
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

/// The positions of a manifest's fields.
package enum Manifests {
    /// Bytes before the lineage.
    package static let fixedByteCount = 188

    /// A checkpoint's ID.
    package static func id(_ payload: [UInt8]) -> [UInt8] {
        payload.withUnsafeBytes { PageDigest(hashing: $0) }.bytes
    }

    /// Offsets of the two part counts; nil if the payload ends before them.
    static func lists(_ payload: [UInt8]) -> [Int]? {
        var offset = fixedByteCount
        for _ in 0..<2 {
            guard payload.count >= offset + 2 else { return nil }
            offset += 2 + Int(Little.read(payload[...], offset, 2))
        }
        guard payload.count >= offset + 4 else { return nil }
        let second = offset + 4 + 8 * Int(Little.read(payload[...], offset, 4))
        guard payload.count >= second + 4,
            payload.count == second + 4 + 8 * Int(Little.read(payload[...], second, 4)) + 32
        else { return nil }
        return [offset, second]
    }

    static func move(_ payload: inout [UInt8], _ moved: [[UInt64]: UInt64]) {
        for list in lists(payload) ?? [] {
            for part in 0..<Int(Little.read(payload[...], list, 4)) {
                let field = list + 4 + 8 * part
                let place = [
                    Little.read(payload[...], field, 4), Little.read(payload[...], field + 4, 4),
                ]
                guard let offset = moved[place] else { continue }
                payload.replaceSubrange(field + 4..<field + 8, with: Little.bytes(offset, 4))
            }
        }
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
        _ payload: [UInt8], maps: [(pack: UInt32, offset: UInt32)]?,
        states: [(pack: UInt32, offset: UInt32)]?
    ) -> [UInt8] {
        guard let lists = lists(payload) else { return payload }
        func list(_ parts: [(pack: UInt32, offset: UInt32)]) -> [UInt8] {
            Little.bytes(UInt64(parts.count), 4)
                + parts.flatMap {
                    Little.bytes(UInt64($0.pack), 4) + Little.bytes(UInt64($0.offset), 4)
                }
        }
        let first = maps.map(list) ?? Array(payload[lists[0]..<lists[1]])
        let second = states.map(list) ?? Array(payload[lists[1]..<payload.count - 32])
        return payload[..<lists[0]] + first + second + payload.suffix(32)
    }

    /// The parts of the page map (0) or of the state (1).
    package static func parts(_ payload: [UInt8], _ kind: Int) -> [(pack: UInt32, offset: UInt32)] {
        guard let list = lists(payload)?[kind] else { return [] }
        return (0..<Int(Little.read(payload[...], list, 4))).map {
            let field = list + 4 + 8 * $0
            return (
                UInt32(Little.read(payload[...], field, 4)),
                UInt32(Little.read(payload[...], field + 4, 4))
            )
        }
    }
}
