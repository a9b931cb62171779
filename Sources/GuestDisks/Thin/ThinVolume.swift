import GuestModel
import SystemPackage

/// A thin volume as device-mapper has it.
struct ThinVolume: Sendable {
    let disk: GuestDisk
    let device: MappedDevice
    let table: ThinTable
    let pool: ThinPool

    /// Finds device, table and pool of a volume.
    init(
        _ volume: ThinDisks.Volume, _ calls: any DeviceMapperCalls, _ directory: FilePath
    ) throws(GuestError) {
        let text = volume.device.printable
        func refusal(_ what: String) -> GuestError {
            GuestError(
                code: .unsupported,
                message: "disk \(volume.name), \(text), is \(what); put the guest's disk on a "
                    + "thin volume (lvcreate --thin), on a raw file on XFS or btrfs "
                    + "(ReflinkDisks), or name a command that cuts it (HookedDisks)")
        }
        let found: MappedDevice?
        if text.contains("/") {
            guard let number = try calls.number(of: volume.device) else {
                throw refusal("no block device")
            }
            found = try calls.device(number)
            guard found != nil else { throw refusal("no device of device-mapper") }
        } else {
            found = try calls.device(named: text)
        }
        guard let found else {
            throw GuestError(
                code: .unavailable,
                message: "disk \(volume.name): device-mapper has no device \(text); activate it, "
                    + "or check its name")
        }
        let targets = try calls.table(of: found.number)
        guard targets.count == 1, let target = targets.first, target.type == "thin",
            let table = ThinTable(target.parameters), target.length < 1 << 54
        else {
            let types = Set(targets.map(\.type)).sorted().joined(separator: " and ")
            throw refusal(types.isEmpty ? "a device without a table" : "a device of type \(types)")
        }
        device = found
        self.table = table
        pool = try ThinPool(table.pool, calls)
        disk = GuestDisk(
            name: volume.name, byteCount: target.length * 512,
            sectorByteCount: try calls.sectorByteCount(of: found.number, directory))
    }
}

/// A thin pool.
struct ThinPool: Hashable, Sendable {
    let device: MappedDevice
    let table: PoolTable

    init(_ number: DeviceNumber, _ calls: any DeviceMapperCalls) throws(GuestError) {
        guard let device = try calls.device(number), !device.name.isEmpty else {
            throw GuestError(
                code: .unavailable,
                message: "device-mapper has no device \(number.text), the pool of a thin volume; "
                    + "activate the pool")
        }
        try self.init(device, calls)
    }

    /// Nil if there is no pool of this name and identity.
    init?(
        named name: String, uuid: String, _ calls: any DeviceMapperCalls
    ) throws(GuestError) {
        guard let device = try calls.device(named: name), device.uuid == uuid else { return nil }
        try self.init(device, calls)
    }

    private init(_ device: MappedDevice, _ calls: any DeviceMapperCalls) throws(GuestError) {
        let targets = try calls.table(of: device.number)
        guard targets.count == 1, let target = targets.first, target.type == "thin-pool",
            let table = PoolTable(target.parameters)
        else {
            throw GuestError(
                code: .unsupported,
                message: "\(device.name) is the pool of a thin volume, and its table is none that "
                    + "is known here")
        }
        self.device = device
        self.table = table
    }

    func status(_ calls: any DeviceMapperCalls) throws(GuestError) -> PoolStatus {
        let targets = try calls.status(of: device.number)
        guard targets.count == 1, let target = targets.first,
            let status = PoolStatus(target.parameters)
        else {
            let words = targets.first?.parameters ?? ""
            throw GuestError(
                code: .unavailable,
                message: "the pool \(device.name) has failed (\(PrintableText.escape(words))); "
                    + "stop its guests and repair it (lvconvert --repair, thin_repair)")
        }
        return status
    }

    /// Throws if no snapshot should be made now.
    func check(
        _ calls: any DeviceMapperCalls, _ options: ThinDisks.Options
    ) throws(GuestError) {
        func refusal(_ what: String) -> GuestError {
            GuestError(code: .unavailable, message: "the pool \(device.name) \(what)")
        }
        guard !device.isSuspended else {
            throw GuestError(
                code: .busy,
                message: "the pool \(device.name) is suspended by someone else; resume it first "
                    + "(dmsetup resume \(device.name))")
        }
        let status = try status(calls)
        guard !status.needsCheck else {
            throw refusal("needs a check of its metadata; deactivate and repair it (thin_check)")
        }
        guard status.mode != "out_of_data_space" else {
            throw refusal("has no data space left; extend it (lvextend)")
        }
        guard status.mode == "rw" || status.metadataPercent < 100 else {
            throw refusal("has no metadata space left; extend it (lvextend --poolmetadatasize)")
        }
        guard status.mode == "rw" else {
            throw refusal("is in mode '\(PrintableText.escape(status.mode))'; repair it")
        }
        let percent = PoolStatus.text
        guard status.dataPercent <= options.dataFillLimit else {
            throw refusal(
                "is full to \(percent(status.dataPercent)) of its data, above the limit of "
                    + "\(percent(options.dataFillLimit)); extend it (lvextend), or drop what is of "
                    + "no use")
        }
        guard status.metadataPercent <= options.metadataFillLimit else {
            throw refusal(
                "is full to \(percent(status.metadataPercent)) of its metadata, above the limit of "
                    + "\(percent(options.metadataFillLimit)); extend it "
                    + "(lvextend --poolmetadatasize)")
        }
    }
}
