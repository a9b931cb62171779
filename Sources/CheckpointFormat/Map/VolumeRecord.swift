package import GuestModel

/// What a manifest says of one volume.
package struct VolumeRecord: Hashable, Sendable {
    /// The name of the memory.
    package static let memoryName = "memory"
    /// Maximum number of volumes of one checkpoint: no guest has as many disks.
    package static let countMax = 1024

    package var number: VolumeNumber
    package var name: String
    /// Size of a disk in bytes; 0 for the memory, whose size is its pages.
    package var byteCount: UInt64 = 0
    /// Logical block size of a disk; 4096 for the memory.
    package var sectorByteCount: UInt32 = 4096
    package var root: PageDigest = .none
    /// One more than the highest frame that exists, within the volume.
    package var frameEnd: UInt64 = 0
    /// Frames that exist; of a disk, blocks that are not zero: the others are in no map.
    package var pageCount: UInt64 = 0
    /// Frames that exist and are zero; 0 for a disk.
    package var zeroPageCount: UInt64 = 0
    /// Frames whose content differs from the parent's.
    package var changedPageCount: UInt64 = 0

    /// Requests to a disk that were under way when it was cut; nil if that is unknown.
    package var requestsUnderWay: Int? {
        get { requests == 0 ? nil : Int(requests) - 1 }
        set {
            let count = newValue ?? -1
            requests = count < 0 ? 0 : UInt16(min(count, 0xfffe)) + 1
        }
    }

    /// One more than their number, at most 65,535; 0: unknown.
    private var requests: UInt16 = 0

    package init(
        number: VolumeNumber, name: String, byteCount: UInt64 = 0, sectorByteCount: UInt32 = 4096
    ) {
        self.number = number
        self.name = name
        self.byteCount = byteCount
        self.sectorByteCount = sectorByteCount
    }

    /// The memory.
    package static let memory = VolumeRecord(number: .memory, name: memoryName)

    /// True if it is a disk.
    package var isDisk: Bool { number != .memory }

    /// Blocks of 4 KiB of a disk; the last one may extend past the disk's end.
    package var blockCount: UInt64 {
        byteCount / UInt64(Page.byteCount) + (byteCount % UInt64(Page.byteCount) == 0 ? 0 : 1)
    }

    // MARK: - Coding

    //   size  field
    //      2  number
    //      2  requests to a disk that were under way at the cut, and one, 65535 at most; 0: unknown
    //      4  logical block size
    //      8  size of a disk in bytes
    //     32  root
    //      8  one more than the highest frame that exists
    //      8  frames that exist
    //      8  frames that exist and are zero
    //      8  frames whose content differs from the parent's
    //   2+n   name: length, UTF-8

    /// Size of the fields before the name in bytes.
    static let headByteCount = 80

    func encode(to writer: inout ByteWriter) {
        writer.write(number.rawValue)
        writer.write(requests)
        writer.write(sectorByteCount)
        writer.write(byteCount)
        writer.write(root)
        for count in [frameEnd, pageCount, zeroPageCount, changedPageCount] { writer.write(count) }
        writer.write(text: name)
    }

    init(from reader: inout ByteReader) throws(FormatError) {
        number = VolumeNumber(try reader.read(UInt16.self))
        requests = try reader.read(UInt16.self)
        sectorByteCount = try reader.read(UInt32.self)
        byteCount = try reader.read(UInt64.self)
        root = try reader.readDigest()
        frameEnd = try reader.read(UInt64.self)
        pageCount = try reader.read(UInt64.self)
        zeroPageCount = try reader.read(UInt64.self)
        changedPageCount = try reader.read(UInt64.self)
        name = try reader.readText()
    }

    /// Validates it by itself.
    func check() throws(FormatError) {
        func refuse(_ reason: String) throws(FormatError) -> Never {
            let shown = PrintableText.escape(name).prefix(80)
            throw FormatError(offset: 0, reason: "volume '\(shown)' \(reason)")
        }
        guard changedPageCount <= MapBounds.frameEndMax, zeroPageCount <= pageCount else {
            try refuse("has page counts that contradict each other")
        }
        guard isDisk else {
            guard name == VolumeRecord.memoryName, byteCount == 0, sectorByteCount == 4096,
                requests == 0
            else {
                try refuse("has number 0 and is not the memory")
            }
            guard MapBounds.allow(frameEnd: frameEnd, pageCount: pageCount) else {
                try refuse("has page counts that contradict each other")
            }
            return
        }
        guard VolumeRecord.canBeNamed(name) else { try refuse("has a name that is not valid") }
        guard [512, 4096].contains(sectorByteCount), byteCount > 0,
            byteCount % UInt64(sectorByteCount) == 0
        else { try refuse("has \(byteCount) bytes in blocks of \(sectorByteCount)") }
        guard blockCount <= MapBounds.frameEndMax, frameEnd <= blockCount, pageCount <= frameEnd,
            (frameEnd == 0) == (pageCount == 0), zeroPageCount == 0
        else { try refuse("has page counts that contradict each other") }
    }

    /// True if a disk may have a name: 1 to 255 bytes, as lineages, and not that of the memory.
    package static func canBeNamed(_ name: String) -> Bool {
        NameForm.canBeStored(name) && name != memoryName
    }
}
