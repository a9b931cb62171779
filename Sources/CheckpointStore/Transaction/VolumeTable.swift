package import CheckpointFormat
package import GuestModel
package import PackStore

/// The numbers that the disks of a lineage have, and the lowest one that none had so far.
package struct VolumeTable: Sendable {
    private var numbers: [[UInt8]: VolumeNumber] = [:]
    private var end: UInt16 = 1

    /// That of a guest without history.
    package init() {}

    /// That of a checkpoint.
    package init(of manifest: Manifest) {
        for volume in manifest.volumes where volume.isDisk {
            numbers[Array(volume.name.utf8)] = volume.number
        }
        end = manifest.volumeNumberEnd
    }

    /// The disks that have a number.
    package var volumes: Set<VolumeNumber> { Set(numbers.values).subtracting([.memory]) }

    /// The lowest number that no disk had so far.
    var numberEnd: UInt16 { end }

    /// Gives numbers to the disks that a guest has now.
    ///
    /// A disk that is known by its name keeps its number, whatever its size. Other disks are
    /// forgotten, and their numbers stay unused.
    ///
    /// - Returns: the disks, ascending by number.
    package mutating func adopt(
        _ disks: [GuestDisk]
    ) throws(RepositoryError) -> [VolumeRecord] {
        var records: [VolumeRecord] = []
        var kept: [[UInt8]: VolumeNumber] = [:]
        for disk in disks {
            let key = Array(disk.name.utf8)
            try VolumeTable.check(disk)
            guard kept[key] == nil else {
                throw RepositoryError(
                    .invalidName,
                    "two disks are called '\(disk.name)'; give each disk a name of its own")
            }
            let number = if let known = numbers[key] { known } else { try nextNumber() }
            kept[key] = number
            records.append(
                VolumeRecord(
                    number: number, name: disk.name, byteCount: disk.byteCount,
                    sectorByteCount: UInt32(disk.sectorByteCount)))
        }
        guard records.count < VolumeRecord.countMax else {
            throw RepositoryError(
                .limitExceeded,
                "the guest has \(disks.count) disks, and a checkpoint has at most "
                    + "\(VolumeRecord.countMax - 1)")
        }
        numbers = kept
        return records.sorted { $0.number < $1.number }
    }

    private mutating func nextNumber() throws(RepositoryError) -> VolumeNumber {
        guard end < UInt16.max else {
            throw RepositoryError(
                .limitExceeded,
                "this lineage has had 65,534 disks, which is the most; begin another lineage")
        }
        end += 1
        return VolumeNumber(end - 1)
    }

    private static func check(_ disk: GuestDisk) throws(RepositoryError) {
        guard VolumeRecord.canBeNamed(disk.name), NameForm.isName(disk.name) else {
            throw RepositoryError(
                .invalidName,
                "'\(PrintableText.escape(disk.name).prefix(80))' is not a valid name of a disk: "
                    + "1 to 255 bytes of letters, digits and ._-:@+, not beginning with '-', and "
                    + "not '\(VolumeRecord.memoryName)'")
        }
        guard [512, 4096].contains(disk.sectorByteCount), disk.byteCount > 0,
            disk.byteCount % UInt64(disk.sectorByteCount) == 0
        else {
            throw RepositoryError(
                .invalidOption,
                "disk '\(disk.name)' has \(disk.byteCount) bytes in blocks of "
                    + "\(disk.sectorByteCount); a disk has at least one block of 512 or 4096 "
                    + "bytes, and only whole ones")
        }
        guard disk.blockCount <= MapBounds.frameEndMax else {
            throw RepositoryError(
                .limitExceeded,
                "disk '\(disk.name)' has \(disk.byteCount) bytes, and at most 16 TiB can be "
                    + "checkpointed")
        }
    }
}
