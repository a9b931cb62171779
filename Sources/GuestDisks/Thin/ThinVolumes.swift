import Glibc
public import GuestModel
public import SystemPackage

/// Creates thin volumes in a pool of device-mapper, as the disks of restored guests.
///
/// They are raw volumes with IDs in the upper half of the pool's, which LVM does not use: LVM does
/// not list them, and they are not active after a reboot. A pool that is fuller than the defaults
/// of `ThinDisks.Options` allow is refused. Every call goes to the kernel through libdevmapper, and
/// blocks for some milliseconds. The process must run as root. Thread-safe.
public final class ThinVolumes: Sendable {
    /// IDs to try before a pool counts as full of them.
    private static let attemptCount = 16
    /// Length of a device-mapper name: `DM_NAME_LEN` less its end.
    private static let nameLengthMax = 127

    private let pool: FilePath
    private let calls: any DeviceMapperCalls
    /// Where the devices are: /dev/mapper, but in tests.
    private let directory: FilePath

    /// Names a pool: a path, such as `/dev/mapper/pool`, or a device-mapper name.
    public convenience init(in pool: FilePath) { self.init(in: pool, calls: LibdevmapperCalls()) }

    package init(
        in pool: FilePath, calls: any DeviceMapperCalls, directory: FilePath = "/dev/mapper"
    ) {
        self.pool = pool
        self.calls = calls
        self.directory = directory
    }

    /// Creates an empty volume, which reads as zeros, and activates it.
    ///
    /// - Parameters:
    ///   - name: its device-mapper name; letters, digits and `.-_+:@=`.
    ///   - byteCount: its size, a multiple of 512.
    /// - Returns: its device, `/dev/mapper/NAME`.
    /// - Throws: `busy` if a device has the name; `unavailable` if the pool is full, or failed;
    ///   `invalidOption` for a name or a size that no volume can have.
    public func createVolume(
        named name: String, byteCount: UInt64
    ) throws(GuestError) -> FilePath {
        let pool = try find()
        try pool.check(calls, ThinDisks.Options())
        return try create(name, byteCount, nil, in: pool) { "create_thin \($0)" }
    }

    /// Creates a writable snapshot of a disk of a cut that stands, and activates it.
    ///
    /// Takes milliseconds, whatever the size. The snapshot stays when the cut is released.
    ///
    /// - Parameters:
    ///   - name: its device-mapper name.
    ///   - disk: the disk's name.
    ///   - cut: the name of the cut (`Checkpoint.cutName`).
    ///   - group: the group that made it.
    /// - Returns: its device, `/dev/mapper/NAME`.
    /// - Throws: `gone` if the cut does not stand any more; `unsupported` if it is in another pool;
    ///   `busy` if a device has the name; `unavailable` if the pool is full, or failed.
    public func createSnapshot(
        named name: String, ofDisk disk: String, inCut cut: String, of group: ThinDisks
    ) throws(GuestError) -> FilePath {
        let pool = try find()
        try pool.check(calls, ThinDisks.Options())
        guard let part = try group.parts(ofCut: cut)?.first(where: { $0.disk.name == disk }),
            let origin = part.ids.first
        else {
            throw GuestError(
                code: .gone,
                message: "the cut \(cut) with disk \(disk) does not stand any more; write the "
                    + "disk from the repository")
        }
        guard part.poolName == pool.device.name, part.poolUUID == pool.device.uuid else {
            throw GuestError(
                code: .unsupported,
                message: "the cut of disk \(disk) is in the pool \(part.poolName), not in "
                    + "\(pool.device.name)")
        }
        return try create(name, part.disk.byteCount, part.externalOrigin, in: pool) {
            "create_snap \($0) \(origin)"
        }
    }

    /// Deactivates a volume that was created here, and deletes it from the pool.
    ///
    /// Does nothing if no device has the name.
    ///
    /// - Throws: `unsupported` if the device is no such volume; `callFailed` while it is in use.
    public func removeVolume(named name: String) throws(GuestError) {
        guard let device = try calls.device(named: name) else { return }
        let pool = try find()
        guard let table = try table(of: device), table.pool == pool.device.number,
            ThinPart.idRange ~= table.id, !name.hasPrefix(ThinPart.mark)
        else {
            throw GuestError(
                code: .unsupported,
                message: "\(name) is no volume that was made in \(pool.device.name) here")
        }
        do throws(GuestError) {
            try calls.remove(named: name)
        } catch {
            // If it is gone all the same, nothing would know its ID any more.
            guard try calls.device(named: name) == nil else { throw error }
        }
        try delete(table.id, in: pool)
    }

    private func find() throws(GuestError) -> ThinPool {
        let text = pool.printable
        var device: MappedDevice?
        if text.contains("/") {
            if let number = try calls.number(of: pool) { device = try calls.device(number) }
        } else {
            device = try calls.device(named: text)
        }
        guard let device, try calls.table(of: device.number).first?.type == "thin-pool" else {
            throw GuestError(
                code: .unavailable,
                message: "\(text) is no thin pool; name one, LVM's as "
                    + "/dev/mapper/VG-POOL-tpool")
        }
        return try ThinPool(device.number, calls)
    }

    /// The table of a thin volume; nil for another device.
    private func table(of device: MappedDevice) throws(GuestError) -> ThinTable? {
        let targets = try calls.table(of: device.number)
        guard targets.count == 1, let target = targets.first, target.type == "thin" else {
            return nil
        }
        return ThinTable(target.parameters)
    }

    private func create(
        _ name: String, _ byteCount: UInt64, _ externalOrigin: String?, in pool: ThinPool,
        message: (UInt32) -> String
    ) throws(GuestError) -> FilePath {
        let isPlain = name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                true
            default: ".-_+:@=".utf8.contains(byte)
            }
        }
        guard isPlain, 1...ThinVolumes.nameLengthMax ~= name.utf8.count, name != ".", name != "..",
            !name.hasPrefix(ThinPart.mark)
        else {
            throw GuestError(
                code: .invalidOption,
                message: "'\(PrintableText.escape(name))' cannot be a volume's name; use up to "
                    + "\(ThinVolumes.nameLengthMax) letters, digits and .-_+:@=")
        }
        guard byteCount > 0, byteCount % 512 == 0 else {
            throw GuestError(
                code: .invalidOption,
                message: "a volume cannot have \(byteCount) bytes; its size is a multiple of 512")
        }
        guard try calls.device(named: name) == nil else {
            throw GuestError(
                code: .busy, message: "there is a device \(name) already; choose another name")
        }
        let id = try makeID(in: pool, message)
        let table = [pool.device.number.text, "\(id)", externalOrigin].compactMap(\.self)
        do throws(GuestError) {
            _ = try calls.create(
                NewThinDevice(
                    name: name, uuid: "", length: byteCount / 512,
                    parameters: table.joined(separator: " "), isReadOnly: false))
        } catch {
            // The device that has the name may be another's, made meanwhile.
            if let device = try? calls.device(named: name),
                let table = try? self.table(of: device), table.id == id,
                table.pool == pool.device.number
            {
                try? calls.remove(named: name)
            }
            try? delete(id, in: pool)
            throw error
        }
        return directory.appending(name)
    }

    private func makeID(
        in pool: ThinPool, _ message: (UInt32) -> String
    ) throws(GuestError) -> UInt32 {
        for _ in 0..<ThinVolumes.attemptCount {
            let id = UInt32.random(in: ThinPart.idRange)
            do throws(GuestError) {
                try calls.message(pool.device.number, message(id))
                return id
            } catch {
                // The ID is another's.
                if error.errno == EEXIST { continue }
                try? delete(id, in: pool)
                throw error
            }
        }
        throw GuestError(
            code: .unavailable, message: "the pool \(pool.device.name) has no free device ID")
    }

    /// Deletes an ID that no device has any more, with patience: nothing else knows it.
    private func delete(_ id: UInt32, in pool: ThinPool) throws(GuestError) {
        for attempt in 0..<5 {
            do throws(GuestError) {
                return try ThinCut.delete(id, pool.device.number, calls)
            } catch {
                guard attempt == 4 else {
                    system_sleep(microseconds: 2000)
                    continue
                }
                throw GuestError(
                    code: error.code,
                    message: "the volume \(id) of the pool \(pool.device.name) cannot be deleted "
                        + "(\(error.message)); try: dmsetup message \(pool.device.name) 0 "
                        + "'delete \(id)'", errno: error.errno)
            }
        }
    }
}
