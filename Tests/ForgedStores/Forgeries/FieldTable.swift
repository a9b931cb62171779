// The fields of each record, as documented in the format: a table, so that a new type of record is
// one more line of `FieldTable.types`.

/// A number in a record.
package struct ForgedField: Hashable, Sendable {
    package let name: String
    package let offset: Int
    package let width: Int
}

enum FieldTable {
    /// The type of each record, its name, and the fields of its payload.
    static let types: [(type: UInt8, name: String, fields: @Sendable ([UInt8]) -> [ForgedField])] =
        [
            (1, "page group", pageGroup), (2, "map part", mapPart), (3, "guest state", state),
            (4, "manifest", manifest), (5, "mark", { _ in [] }), (7, "forget", forget),
            (8, "removed packs", bytes), (9, "labels", labels),
        ]

    static let envelope: [ForgedField] = [
        field("magic", 0, 8), field("version", 8, 4), field("length", 12, 4), field("id", 16, 8),
        field("number", 32, 8), field("features", 40, 4), field("key", 44, 8),
        field("reserved", 52, 8),
    ]

    static let footer: [ForgedField] = [
        field("magic", 0, 8), field("index offset", 8, 4), field("reserved", 12, 4),
        field("pack", 16, 8), field("reserved", 24, 4),
    ]

    private static func field(_ name: String, _ offset: Int, _ width: Int) -> ForgedField {
        ForgedField(name: name, offset: offset, width: width)
    }

    private static func pageGroup(_ payload: [UInt8]) -> [ForgedField] {
        var fields = [
            field("ordinal", 0, 4), field("pages", 4, 1), field("blocks", 5, 1),
            field("reserved", 6, 2),
        ]
        for block in 0..<min(2, Int(payload[5])) {
            fields.append(field("block \(block)", 8 + 4 * block, 4))
            fields.append(field("pages of block \(block)", 11 + 4 * block, 1))
        }
        return fields + [field("bytes", payload.count - 8, 8)]
    }

    private static func mapPart(_ payload: [UInt8]) -> [ForgedField] {
        var fields = [
            field("digests", 0, 4), field("stored bytes", 4, 4), field("unpacked bytes", 8, 4),
            field("reserved", 12, 4),
        ]
        for offset in 16..<min(payload.count, 24) { fields.append(field("run", offset, 1)) }
        if payload.count >= 48 { fields.append(field("digest", payload.count - 32, 8)) }
        return fields
    }

    private static func state(_ payload: [UInt8]) -> [ForgedField] {
        guard payload.count >= 16 else { return [field("records", 0, 4)] }
        let kind = Int(payload[4]) | Int(payload[5]) << 8
        return [field("records", 0, 4), field("kind", 4, 2), field("bytes", 6 + kind, 8)]
    }

    private static func manifest(_ payload: [UInt8]) -> [ForgedField] {
        var fields = [
            field("parent", 0, 8), field("time", 32, 8), field("transaction", 40, 8),
            field("position", 48, 4), field("flags", 52, 4), field("ancestor", 56, 8),
        ]
        let counts = [
            "stored pages", "added bytes", "metadata bytes", "pause", "drain", "cut",
        ]
        for (index, name) in counts.enumerated() { fields.append(field(name, 88 + 8 * index, 8)) }
        fields += [field("rounds", 136, 4), field("lineage", Manifests.fixedByteCount, 2)]
        for (index, volume) in Manifests.volumes(payload).enumerated() {
            if index == 0 {
                fields += [field("next number", volume - 4, 2), field("volumes", volume - 2, 2)]
            }
            fields += [
                field("number", volume, 2), field("requests", volume + 2, 2),
                field("block size", volume + 4, 4), field("size", volume + 8, 8),
                field("root", volume + 16, 8), field("frame end", volume + 48, 8),
                field("pages", volume + 56, 8), field("zero pages", volume + 64, 8),
                field("changed pages", volume + 72, 8), field("name", volume + 80, 2),
            ]
        }
        for (kind, list) in (Manifests.lists(payload) ?? []).enumerated() {
            fields.append(field("parts", list, 4))
            guard Little.read(payload[...], list, 4) > 0 else { continue }
            let place = kind == 0 ? list + 12 : list + 4
            if kind == 0 { fields.append(field("part's first frame", list + 4, 8)) }
            fields += [field("part's pack", place, 4), field("part's offset", place + 4, 4)]
        }
        return fields + [field("state digest", payload.count - 32, 8)]
    }

    private static func forget(_ payload: [UInt8]) -> [ForgedField] {
        [
            field("time", 0, 8), field("checkpoints", 8, 4), field("reserved", 12, 4),
            field("id", 16, 8),
        ].filter { $0.offset + $0.width <= payload.count }
    }

    private static func labels(_ payload: [UInt8]) -> [ForgedField] {
        forget(payload)
            + (payload.count >= 50 ? [field("label", 48, 2), field("letter", 50, 1)] : [])
    }

    private static func bytes(_ payload: [UInt8]) -> [ForgedField] {
        payload.indices.map { field("byte \($0)", $0, 1) }
    }

    /// Values at the limits of a field, and near its present value.
    static func values(_ width: Int, now: UInt64) -> [UInt64] {
        let top = width == 8 ? UInt64.max : 1 << UInt64(8 * width) - 1
        let edges: [UInt64] = [
            0, 1, 2, 63, 64, 127, 128, 1 << 12, 1 << 17, 1 << 31 - 1, 1 << 31, 1 << 32 - 1, 1 << 32,
            1 << 33, 1 << 45, 1 << 52 - 1, 1 << 52, 1 << 56, 1 << 56 + 1, 1 << 63 - 1, 1 << 63, top,
            top - 1, top / 2, top / 2 + 1, now &+ 1, now &- 1, now ^ 1 << UInt64(8 * width - 1),
        ]
        return Set(edges.map { $0 & top }).subtracting([now]).sorted()
    }
}
