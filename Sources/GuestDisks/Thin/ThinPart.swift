import GuestModel

/// The snapshot of one volume in a cut.
struct ThinPart: Sendable {
    /// The upper half of the device IDs, which have 24 bits.
    ///
    /// LVM gives them away from 1 upwards, so there are none of its volumes; of 8 million random
    /// ones, two that are used already are not to be expected.
    static let idRange: ClosedRange<UInt32> = 0x80_0000...0xff_ffff

    /// How the names of the devices begin under which snapshots are read.
    static let mark = "varve-cut-"

    let disk: GuestDisk
    let origin: DeviceNumber
    let originName: String
    let poolName: String
    let poolUUID: String
    let externalOrigin: String?
    /// The name under which the snapshot is read.
    let device: String
    /// The volume's own ID; nil for a cut that was found again.
    let originID: UInt32?
    /// The snapshot's ID; before it was made, several to try.
    var ids: [UInt32]

    init(_ volume: ThinVolume, device: String) {
        disk = volume.disk
        origin = volume.device.number
        originName = volume.device.name
        poolName = volume.pool.device.name
        poolUUID = volume.pool.device.uuid
        externalOrigin = volume.table.externalOrigin
        self.device = device
        originID = volume.table.id
        let first = UInt32.random(in: ThinPart.idRange)
        let second = first == ThinPart.idRange.upperBound ? first - 1 : first + 1
        ids = [first, second]
    }

    /// Its line in the journal.
    var line: [String] {
        [
            "volume", disk.name, "\(disk.byteCount)", "\(disk.sectorByteCount)", origin.text,
            originName, poolName, poolUUID, device, externalOrigin ?? "",
        ] + ids.map { "\($0)" }
    }

    /// From a line of the journal, without the key.
    init?(_ words: ArraySlice<String>) {
        let words = Array(words)
        guard words.count >= 10, let byteCount = UInt64(words[1]), let sector = Int(words[2]),
            let origin = DeviceNumber(words[3]), words[7].hasPrefix(ThinPart.mark)
        else { return nil }
        disk = GuestDisk(name: words[0], byteCount: byteCount, sectorByteCount: sector)
        self.origin = origin
        originName = words[4]
        poolName = words[5]
        poolUUID = words[6]
        device = words[7]
        externalOrigin = words[8].isEmpty ? nil : words[8]
        originID = nil
        ids = words[9...].compactMap { UInt32($0) }
        guard ids.count == words.count - 9, ids.allSatisfy({ ThinPart.idRange ~= $0 }) else {
            return nil
        }
    }

    /// The volumes of an entry; nil if a line is damaged.
    static func parts(_ record: JournalRecord) -> [ThinPart]? {
        let lines = record.lines("volume")
        let parts = lines.compactMap { ThinPart($0) }
        return parts.count == lines.count ? parts : nil
    }
}
