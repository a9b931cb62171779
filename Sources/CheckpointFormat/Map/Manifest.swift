package import GuestModel

// The payload of a publish record: the description of a checkpoint. Its BLAKE3-256 digest is the
// checkpoint's ID, so an ID covers the memory, the state, the history and the time.
//
//   size  field
//     32  parent's ID; zeros: none
//     32  root of the page map
//      8  time of the pause, nanoseconds since 1970 (signed)
//      8  transaction number
//      4  position of this map in its chain: 0 for a base map, otherwise the parent's + 1
//      4  flags: bit 0: every page was compared
//     32  ID of the checkpoint on which the delta map is based; zeros for a base map
//      8  one more than the highest frame that exists
//      8  frames that exist
//      8  frames that exist and are zero
//      8  frames whose content differs from the parent's
//      8  pages stored by this transaction
//      8  bytes appended by this transaction before this record
//      8  how many of those are not blocks of pages
//      8  duration of the pause in nanoseconds; 0: there was none
//      4  precopy rounds
//   2+n   lineage: length, UTF-8
//   2+n   label: length, UTF-8; empty: none
//      4  map parts, then for each: u32 pack, u32 offset of the record
//      4  state parts, likewise
//     32  digest of the guest's state: BLAKE3 of the state payloads' bytes, joined
//
// A manifest that contradicts itself or its own location is rejected: see `check`.

/// The location of a record.
package struct RecordLocation: Hashable, Sendable {
    package let pack: UInt32
    package let offset: UInt32

    package init(pack: UInt32, offset: UInt32) {
        self.pack = pack
        self.offset = offset
    }
}

extension RecordLocation: Comparable {
    package static func < (left: RecordLocation, right: RecordLocation) -> Bool {
        (left.pack, left.offset) < (right.pack, right.offset)
    }
}

/// The record that makes a checkpoint exist.
package struct Manifest: Hashable, Sendable {
    package var parent: PageDigest = .none
    package var root: PageDigest = .none
    package var timeNanoseconds: Int64 = 0
    package var transaction: UInt64 = 0
    package var mapPosition: UInt32 = 0
    package var comparedAll = false
    package var mapAncestor: PageDigest = .none
    package var frameEnd: UInt64 = 0
    package var pageCount: UInt64 = 0
    package var zeroPageCount: UInt64 = 0
    package var changedPageCount: UInt64 = 0
    package var storedPageCount: UInt64 = 0
    package var addedByteCount: UInt64 = 0
    package var metadataByteCount: UInt64 = 0
    package var pauseNanoseconds: UInt64 = 0
    package var precopyRounds: UInt32 = 0
    package var lineage = ""
    package var label = ""
    package var mapParts: [RecordLocation] = []
    package var stateParts: [RecordLocation] = []
    package var stateDigest: PageDigest = .none

    package init() {}

    /// The payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(reserving: 256 + lineage.utf8.count + mapParts.count * 8)
        writer.write(parent)
        writer.write(root)
        writer.write(timeNanoseconds)
        writer.write(transaction)
        writer.write(mapPosition)
        writer.write(UInt32(comparedAll ? 1 : 0))
        writer.write(mapAncestor)
        for count in [
            frameEnd, pageCount, zeroPageCount, changedPageCount, storedPageCount, addedByteCount,
            metadataByteCount, pauseNanoseconds,
        ] { writer.write(count) }
        writer.write(precopyRounds)
        writer.write(text: lineage)
        writer.write(text: label)
        for parts in [mapParts, stateParts] {
            writer.write(UInt32(parts.count))
            for part in parts {
                writer.write(part.pack)
                writer.write(part.offset)
            }
        }
        writer.write(stateDigest)
        return writer.bytes
    }

    /// Reads a payload.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> Manifest {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> Manifest in
            var manifest = Manifest()
            manifest.parent = try reader.readDigest()
            manifest.root = try reader.readDigest()
            manifest.timeNanoseconds = try reader.read(Int64.self)
            manifest.transaction = try reader.read(UInt64.self)
            manifest.mapPosition = try reader.read(UInt32.self)
            let flags = try reader.read(UInt32.self)
            guard flags & ~1 == 0 else {
                throw FormatError(offset: reader.position, reason: "flags \(flags) are unknown")
            }
            manifest.comparedAll = flags & 1 != 0
            manifest.mapAncestor = try reader.readDigest()
            manifest.frameEnd = try reader.read(UInt64.self)
            manifest.pageCount = try reader.read(UInt64.self)
            manifest.zeroPageCount = try reader.read(UInt64.self)
            manifest.changedPageCount = try reader.read(UInt64.self)
            manifest.storedPageCount = try reader.read(UInt64.self)
            manifest.addedByteCount = try reader.read(UInt64.self)
            manifest.metadataByteCount = try reader.read(UInt64.self)
            manifest.pauseNanoseconds = try reader.read(UInt64.self)
            manifest.precopyRounds = try reader.read(UInt32.self)
            manifest.lineage = try reader.readText()
            manifest.label = try reader.readText()
            manifest.mapParts = try decodeParts(&reader)
            manifest.stateParts = try decodeParts(&reader)
            manifest.stateDigest = try reader.readDigest()
            try reader.expectEnd()
            try manifest.check()
            return manifest
        }
    }

    private static func decodeParts(
        _ reader: inout ByteReader
    ) throws(FormatError) -> [RecordLocation] {
        let start = reader.position
        let count = Int(try reader.read(UInt32.self))
        guard count <= reader.remaining / 8 else {
            throw FormatError(offset: start, reason: "\(count) parts do not fit the record")
        }
        var parts: [RecordLocation] = []
        parts.reserveCapacity(count)
        for _ in 0..<count {
            let pack = try reader.read(UInt32.self)
            parts.append(RecordLocation(pack: pack, offset: try reader.read(UInt32.self)))
        }
        return parts
    }
}

// MARK: - Validation of manifests

extension Manifest {
    /// Maximum number of bytes that one transaction appends: 2^32 pages, and as much again for the
    /// rest.
    package static let addedByteCountMax: UInt64 = 1 << 45

    /// Validates a manifest by itself.
    private func check() throws(FormatError) {
        func refuse(_ offset: Int, _ reason: String) throws(FormatError) -> Never {
            throw FormatError(offset: offset, reason: reason)
        }
        guard RecordHeader.transactions.contains(transaction) else {
            try refuse(72, "its transaction number is \(transaction)")
        }
        guard (mapPosition == 0) == (mapAncestor == .none) else {
            try refuse(80, "its page map has position \(mapPosition) and another kind of ancestor")
        }
        guard MapBounds.allow(frameEnd: frameEnd, pageCount: pageCount),
            zeroPageCount <= pageCount, changedPageCount <= MapBounds.frameEndMax
        else { try refuse(120, "its page counts contradict each other") }
        guard mapPosition > 0 || pageCount <= frameCountMax else {
            try refuse(128, "its page map cannot hold \(pageCount) pages")
        }
        guard storedPageCount <= UInt64(UInt32.max), addedByteCount <= Manifest.addedByteCountMax,
            metadataByteCount <= addedByteCount,
            addedByteCount - metadataByteCount <= storedPageCount * UInt64(Page.byteCount)
        else { try refuse(152, "its counts of pages and bytes contradict each other") }
        guard NameForm.canBeStored(lineage), label.isEmpty || NameForm.canBeStored(label) else {
            let name = PrintableText.escape(NameForm.canBeStored(lineage) ? label : lineage)
            try refuse(188, "'\(name.prefix(80))' is not a valid name")
        }
        for parts in [mapParts, stateParts] {
            guard Set(parts).count == parts.count else {
                try refuse(192, "it refers to a record twice")
            }
        }
    }

    /// Validates a manifest's location: everything that it refers to must precede it.
    package func check(at location: RecordLocation) throws(FormatError) {
        for part in mapParts + stateParts {
            guard part < location, part.pack > 0, part.offset >= UInt32(Envelope.byteCount) else {
                throw FormatError(
                    offset: 192,
                    reason: "it refers to a record at offset \(part.offset) of pack \(part.pack), "
                        + "where it cannot have one")
            }
        }
    }

    /// Fails unless a record that it refers to belongs to its own transaction.
    package func checkOwns(_ number: UInt64) throws(FormatError) {
        guard number == transaction else {
            throw FormatError(
                offset: 16,
                reason: "it is of transaction \(number), but the manifest that refers to it is of "
                    + "\(transaction)")
        }
    }

    /// Validates a delta map against the manifest of the map on which it is based.
    package func check(ancestor: Manifest) throws(FormatError) {
        guard mapPosition > 0, ancestor.mapPosition == MapChain.ancestor(of: mapPosition) else {
            throw FormatError(
                offset: 80,
                reason: "its page map has position \(mapPosition) but is based on one with "
                    + "position \(ancestor.mapPosition)")
        }
        guard pageCount <= ancestor.pageCount + frameCountMax else {
            throw FormatError(
                offset: 128, reason: "its page map cannot hold \(pageCount) pages")
        }
    }

    /// Maximum number of frames that its own map can describe.
    private var frameCountMax: UInt64 {
        UInt64(mapParts.count) * UInt64(MapPart.frameCountMax)
    }
}

/// Determines on which map a delta map is based.
package enum MapChain {
    /// The position of the map on which the map at `position` is based: its lowest non-zero digit
    /// in base 4 is decremented.
    ///
    /// Position 0 is the base map.
    ///
    /// A map at position n covers 4^j checkpoints, where j is the number of trailing zero digits of
    /// n: 0.75 writes per level and checkpoint on average. Clearing the lowest set bit costs 0.5
    /// per level, but has twice the levels plus one.
    package static func ancestor(of position: UInt32) -> UInt32 {
        precondition(position > 0, "a base map has no ancestor")
        let zeros = position.trailingZeroBitCount / 2 * 2
        return position - (1 << UInt32(zeros))
    }
}
