package import GuestModel

// The payload of a publish record: what a checkpoint is. Its BLAKE3-256 digest is the checkpoint's
// id, so an id names the memory, the state, the history and the moment.
//
//   size  field
//     32  parent's id; zeros: none
//     32  root of the page map
//      8  time of the pause, nanoseconds since 1970 (signed)
//      8  transaction number
//      4  position of this map in its series: 0 for a base map, the parent's + 1 else
//      4  flags: bit 0: every page was compared
//     32  id of the checkpoint that the delta map builds on; zeros for a base map
//      8  one more than the highest frame that exists
//      8  frames that exist
//      8  frames that exist and are zero
//      8  frames whose content differs from the parent's
//      8  pages that this transaction stored
//      8  bytes that this transaction appended before this record
//      8  of those, bytes that are not blocks of pages
//      8  the pause in nanoseconds; 0: there was none
//      4  precopy rounds
//   2+n   lineage: length, UTF-8
//   2+n   label: length, UTF-8; empty: none
//      4  map parts, then for each: u32 pack, u32 offset of the record
//      4  state parts, likewise
//     32  digest of the guest's state: BLAKE3 of the state payloads' bytes, joined

/// Where a record lies.
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
            guard manifest.frameEnd <= PageRange.frameLimit,
                manifest.pageCount <= manifest.frameEnd,
                manifest.zeroPageCount <= manifest.pageCount
            else {
                throw FormatError(offset: 120, reason: "its page counts contradict each other")
            }
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
