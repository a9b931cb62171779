package import GuestModel

// The payload of a publish record: the description of a checkpoint. Its BLAKE3-256 digest is the
// checkpoint's ID, so an ID covers the memory, the disks, the state, the history and the time.
//
//   size  field
//     32  parent's ID; zeros: none
//      8  time of the pause, nanoseconds since 1970 (signed)
//      8  transaction number
//      4  position of this map in its chain: 0 for a base map, otherwise the parent's + 1
//      4  flags: bit 0: every page was compared; bit 1: the guest has disks that are not volumes
//     32  ID of the checkpoint on which the delta map is based; zeros for a base map
//      8  pages stored by this transaction
//      8  bytes appended by this transaction before this record
//      8  how many of those are not blocks of pages
//      8  duration of the pause in nanoseconds; 0: there was none
//      8  how much of it was spent waiting for requests to the disks
//      8  how much of it was spent cutting the disks
//      4  precopy rounds
//   2+n   lineage: length, UTF-8
//   2+n   label: length, UTF-8; empty: none
//   2+n   name of the cut from which the disks were read: length, UTF-8; empty: none
//      2  the lowest volume number that no disk of this lineage had so far
//      2  volumes, then each (VolumeRecord), ascending by number; the first is the memory
//      4  map parts, then for each: u64 first frame, u32 pack, u32 offset of the record
//      4  state parts, then for each: u32 pack, u32 offset
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

/// A part of a page map, as a manifest names it.
package struct MapPlace: Hashable, Sendable {
    /// The first frame that it describes.
    package let firstFrame: PageFrameNumber
    package let location: RecordLocation

    package init(firstFrame: PageFrameNumber, location: RecordLocation) {
        self.firstFrame = firstFrame
        self.location = location
    }
}

/// The record that makes a checkpoint exist.
package struct Manifest: Hashable, Sendable {
    package var parent: PageDigest = .none
    package var timeNanoseconds: Int64 = 0
    package var transaction: UInt64 = 0
    package var mapPosition: UInt32 = 0
    package var comparedAll = false
    package var omitsDisks = false
    package var mapAncestor: PageDigest = .none
    package var storedPageCount: UInt64 = 0
    package var addedByteCount: UInt64 = 0
    package var metadataByteCount: UInt64 = 0
    package var pauseNanoseconds: UInt64 = 0
    package var drainNanoseconds: UInt64 = 0
    package var cutNanoseconds: UInt64 = 0
    package var precopyRounds: UInt32 = 0
    package var lineage = ""
    package var label = ""
    package var cutName = ""
    package var volumeNumberEnd: UInt16 = 1
    package var volumes: [VolumeRecord] = [.memory]
    package var maps: [MapPlace] = []
    package var stateParts: [RecordLocation] = []
    package var stateDigest: PageDigest = .none

    package init() {}

    /// The memory.
    package var memory: VolumeRecord {
        get { volumes[0] }
        set { volumes[0] = newValue }
    }

    /// A volume; nil if it has none with that number.
    package func volume(_ number: VolumeNumber) -> VolumeRecord? {
        volumes.first { $0.number == number }
    }

    /// Frames that exist, in all volumes.
    package var pageCount: UInt64 { volumes.reduce(0) { $0 + $1.pageCount } }

    /// Frames that exist and are zero, in all volumes.
    package var zeroPageCount: UInt64 { volumes.reduce(0) { $0 + $1.zeroPageCount } }

    /// Frames whose content differs from the parent's, in all volumes.
    package var changedPageCount: UInt64 { volumes.reduce(0) { $0 + $1.changedPageCount } }

    /// The locations of the map parts.
    package var mapParts: [RecordLocation] { maps.map(\.location) }

    /// Identifies the contents of all volumes: BLAKE3 of "VVOL", u32 volumes, and for each u16
    /// length of its name, its name, u64 size, u32 block size and root.
    package var root: PageDigest {
        var writer = ByteWriter(reserving: 64 * volumes.count)
        writer.write(UInt32(0x4c4f_5656))
        writer.write(UInt32(volumes.count))
        for volume in volumes {
            writer.write(text: volume.name)
            writer.write(volume.byteCount)
            writer.write(volume.sectorByteCount)
            writer.write(volume.root)
        }
        return writer.bytes.withUnsafeBytes { PageDigest(hashing: $0) }
    }

    private var flags: UInt32 { (comparedAll ? 1 : 0) | (omitsDisks ? 2 : 0) }

    /// The payload.
    package var encoded: [UInt8] {
        var writer = ByteWriter(
            reserving: 256 + lineage.utf8.count + volumes.count * 96 + maps.count * 16)
        writer.write(parent)
        writer.write(timeNanoseconds)
        writer.write(transaction)
        writer.write(mapPosition)
        writer.write(flags)
        writer.write(mapAncestor)
        for count in [
            storedPageCount, addedByteCount, metadataByteCount, pauseNanoseconds,
            drainNanoseconds, cutNanoseconds,
        ] { writer.write(count) }
        writer.write(precopyRounds)
        writer.write(text: lineage)
        writer.write(text: label)
        writer.write(text: cutName)
        writer.write(volumeNumberEnd)
        writer.write(UInt16(volumes.count))
        for volume in volumes { volume.encode(to: &writer) }
        writer.write(UInt32(maps.count))
        for map in maps {
            writer.write(map.firstFrame.rawValue)
            writer.write(map.location.pack)
            writer.write(map.location.offset)
        }
        writer.write(UInt32(stateParts.count))
        for part in stateParts {
            writer.write(part.pack)
            writer.write(part.offset)
        }
        writer.write(stateDigest)
        return writer.bytes
    }

    /// Reads a payload.
    package static func decode(_ payload: [UInt8]) throws(FormatError) -> Manifest {
        try ByteReader.decode(payload) { (reader) throws(FormatError) -> Manifest in
            var manifest = Manifest()
            manifest.parent = try reader.readDigest()
            manifest.timeNanoseconds = try reader.read(Int64.self)
            manifest.transaction = try reader.read(UInt64.self)
            manifest.mapPosition = try reader.read(UInt32.self)
            let flags = try reader.read(UInt32.self)
            guard flags & ~3 == 0 else {
                throw FormatError(offset: reader.position, reason: "flags \(flags) are unknown")
            }
            manifest.comparedAll = flags & 1 != 0
            manifest.omitsDisks = flags & 2 != 0
            manifest.mapAncestor = try reader.readDigest()
            manifest.storedPageCount = try reader.read(UInt64.self)
            manifest.addedByteCount = try reader.read(UInt64.self)
            manifest.metadataByteCount = try reader.read(UInt64.self)
            manifest.pauseNanoseconds = try reader.read(UInt64.self)
            manifest.drainNanoseconds = try reader.read(UInt64.self)
            manifest.cutNanoseconds = try reader.read(UInt64.self)
            manifest.precopyRounds = try reader.read(UInt32.self)
            manifest.lineage = try reader.readText()
            manifest.label = try reader.readText()
            manifest.cutName = try reader.readText()
            manifest.volumeNumberEnd = try reader.read(UInt16.self)
            manifest.volumes = try decodeVolumes(&reader)
            manifest.maps = try decodeParts(&reader, byteCount: 16) {
                (reader) throws(FormatError) in
                let first = try reader.read(UInt64.self)
                return MapPlace(
                    firstFrame: PageFrameNumber(first), location: try decodeLocation(&reader))
            }
            manifest.stateParts = try decodeParts(&reader, byteCount: 8, decodeLocation)
            manifest.stateDigest = try reader.readDigest()
            try reader.expectEnd()
            try manifest.check()
            return manifest
        }
    }

    private static func decodeVolumes(
        _ reader: inout ByteReader
    ) throws(FormatError) -> [VolumeRecord] {
        let start = reader.position
        let count = Int(try reader.read(UInt16.self))
        guard count <= VolumeRecord.countMax, count <= reader.remaining / VolumeRecord.headByteCount
        else { throw FormatError(offset: start, reason: "it states \(count) volumes") }
        var volumes: [VolumeRecord] = []
        for _ in 0..<count { volumes.append(try VolumeRecord(from: &reader)) }
        return volumes
    }

    private static func decodeLocation(
        _ reader: inout ByteReader
    ) throws(FormatError) -> RecordLocation {
        let pack = try reader.read(UInt32.self)
        return RecordLocation(pack: pack, offset: try reader.read(UInt32.self))
    }

    private static func decodeParts<Part>(
        _ reader: inout ByteReader, byteCount: Int,
        _ decode: (inout ByteReader) throws(FormatError) -> Part
    ) throws(FormatError) -> [Part] {
        let start = reader.position
        let count = Int(try reader.read(UInt32.self))
        guard count <= reader.remaining / byteCount else {
            throw FormatError(offset: start, reason: "\(count) parts do not fit the record")
        }
        var parts: [Part] = []
        parts.reserveCapacity(count)
        for _ in 0..<count { parts.append(try decode(&reader)) }
        return parts
    }
}

// MARK: - Validation of manifests

extension Manifest {
    /// Maximum number of bytes that one transaction appends: 2^32 pages, and as much again for the
    /// rest.
    package static let addedByteCountMax: UInt64 = 1 << 45

    /// Maximum length of the name of a cut in bytes.
    package static let cutNameByteCountMax = 4096

    /// Validates a manifest by itself.
    private func check() throws(FormatError) {
        func refuse(_ offset: Int, _ reason: String) throws(FormatError) -> Never {
            throw FormatError(offset: offset, reason: reason)
        }
        guard RecordHeader.transactions.contains(transaction) else {
            try refuse(40, "its transaction number is \(transaction)")
        }
        guard (mapPosition == 0) == (mapAncestor == .none) else {
            try refuse(48, "its page map has position \(mapPosition) and another kind of ancestor")
        }
        guard storedPageCount <= UInt64(UInt32.max), addedByteCount <= Manifest.addedByteCountMax,
            metadataByteCount <= addedByteCount,
            addedByteCount - metadataByteCount <= storedPageCount * UInt64(Page.byteCount)
        else { try refuse(88, "its counts of pages and bytes contradict each other") }
        guard NameForm.canBeStored(lineage), label.isEmpty || NameForm.canBeStored(label) else {
            let name = PrintableText.escape(NameForm.canBeStored(lineage) ? label : lineage)
            try refuse(140, "'\(name.prefix(80))' is not a valid name")
        }
        guard cutName.utf8.count <= Manifest.cutNameByteCountMax else {
            try refuse(142, "the name of its cut has \(cutName.utf8.count) bytes")
        }
        try checkVolumes()
        guard mapPosition > 0 || pageCount <= frameCountMax else {
            try refuse(144, "its page map cannot hold \(pageCount) pages")
        }
        for parts in [mapParts, stateParts] {
            guard Set(parts).count == parts.count else {
                try refuse(144, "it refers to a record twice")
            }
        }
    }

    private func checkVolumes() throws(FormatError) {
        func refuse(_ reason: String) throws(FormatError) -> Never {
            throw FormatError(offset: 144, reason: reason)
        }
        guard volumes.first?.number == .memory else { try refuse("its first volume is a disk") }
        for volume in volumes { try volume.check() }
        for (volume, next) in zip(volumes, volumes.dropFirst())
        where volume.number >= next.number { try refuse("its volumes do not ascend") }
        guard let last = volumes.last, last.number.rawValue < volumeNumberEnd else {
            try refuse("a volume has a number that was not given yet")
        }
        guard Set(volumes.map { Array($0.name.utf8) }).count == volumes.count else {
            try refuse("two volumes have the same name")
        }
        for (map, next) in zip(maps, maps.dropFirst())
        where map.firstFrame >= next.firstFrame { try refuse("its map parts do not ascend") }
    }

    /// Validates a manifest's location: everything that it refers to must precede it.
    package func check(at location: RecordLocation) throws(FormatError) {
        for part in mapParts + stateParts {
            guard part < location, part.pack > 0, part.offset >= UInt32(Envelope.byteCount) else {
                throw FormatError(
                    offset: 144,
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
                offset: 48,
                reason: "its page map has position \(mapPosition) but is based on one with "
                    + "position \(ancestor.mapPosition)")
        }
        guard pageCount <= ancestor.pageCount + frameCountMax else {
            throw FormatError(
                offset: 144, reason: "its page map cannot hold \(pageCount) pages")
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
