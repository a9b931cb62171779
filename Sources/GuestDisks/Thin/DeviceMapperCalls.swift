package import GuestModel
package import SystemPackage

// Every call of this module to libdevmapper, and what else a thin pool needs of the kernel, one
// function each; nothing else here makes them. `LibdevmapperCalls` implements them; a test
// substitutes a simulated pool, to count, trace and fail each.

/// The number of a block device.
package struct DeviceNumber: Hashable, Sendable {
    package var major: UInt32
    package var minor: UInt32

    package init(major: UInt32, minor: UInt32) {
        self.major = major
        self.minor = minor
    }

    /// `MAJOR:MINOR`, as in tables of device-mapper; nil if the text is something else.
    package init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
            return nil
        }
        self.init(major: major, minor: minor)
    }

    /// A `dev_t` of the C library: `gnu_dev_major` and `gnu_dev_minor` of sys/sysmacros.h.
    package init(_ number: UInt64) {
        major = UInt32(truncatingIfNeeded: (number >> 8 & 0xfff) | (number >> 32 & ~0xfff))
        minor = UInt32(truncatingIfNeeded: (number & 0xff) | (number >> 12 & ~0xff))
    }

    /// As a `dev_t` of the C library.
    package var number: UInt64 {
        let (major, minor) = (UInt64(major), UInt64(minor))
        return (major & 0xfff) << 8 | (major & ~0xfff) << 32 | minor & 0xff | (minor & ~0xff) << 12
    }

    package var text: String { "\(major):\(minor)" }
}

/// A device of device-mapper: `struct dm_info` with its names.
package struct MappedDevice: Hashable, Sendable {
    package var number: DeviceNumber
    package var name: String
    /// Empty if it has none.
    package var uuid: String
    package var isSuspended: Bool

    package init(number: DeviceNumber, name: String, uuid: String = "", isSuspended: Bool = false) {
        self.number = number
        self.name = name
        self.uuid = uuid
        self.isSuspended = isSuspended
    }
}

/// One line of a device's table or status.
package struct MappedTarget: Hashable, Sendable {
    /// In sectors of 512 bytes, as `length`.
    package var start: UInt64
    package var length: UInt64
    package var type: String
    package var parameters: String

    package init(start: UInt64, length: UInt64, type: String, parameters: String) {
        self.start = start
        self.length = length
        self.type = type
        self.parameters = parameters
    }
}

/// A thin device to activate.
package struct NewThinDevice: Hashable, Sendable {
    package var name: String
    package var uuid: String
    /// In sectors of 512 bytes.
    package var length: UInt64
    /// `POOL ID [ORIGIN]`.
    package var parameters: String
    package var isReadOnly = true
}

/// What is done in the pause.
package enum MapperRequest: Hashable, Sendable {
    /// Holds new requests and waits for those under way, without freezing a file system of this
    /// host. `DM_DEVICE_SUSPEND` with `dm_task_skip_lockfs`.
    case suspend(DeviceNumber)
    /// `DM_DEVICE_RESUME`.
    case resume(DeviceNumber)
    /// Prepares another table, which the next resume of the suspended device puts in force.
    /// `DM_DEVICE_RELOAD`.
    case load(DeviceNumber, MappedTarget)
    /// Drops a table that was prepared. `DM_DEVICE_CLEAR`.
    case clear(DeviceNumber)
    /// `DM_DEVICE_TARGET_MSG` to sector 0; the kernel commits the pool's metadata with it.
    case message(DeviceNumber, String)
}

/// A request with all that it needs, so that running it is little more than one ioctl.
package protocol PreparedRequest: AnyObject, Sendable {
    /// Runs it; may be called again.
    func run() throws(GuestError)
}

/// The calls; errors of the kernel are thrown with their `errno`.
package protocol DeviceMapperCalls: Sendable {
    /// The device that a path names, which may be a symbolic link; nil if it is no block device.
    func number(of path: FilePath) throws(GuestError) -> DeviceNumber?

    /// A device by its number; nil if device-mapper has none.
    func device(_ number: DeviceNumber) throws(GuestError) -> MappedDevice?

    /// A device by its name; nil if there is none.
    func device(named name: String) throws(GuestError) -> MappedDevice?

    /// The live table.
    func table(of number: DeviceNumber) throws(GuestError) -> [MappedTarget]

    /// The status, without waiting for metadata to be committed.
    func status(of number: DeviceNumber) throws(GuestError) -> [MappedTarget]

    /// The logical block size in bytes.
    func sectorByteCount(of number: DeviceNumber, _ directory: FilePath) throws(GuestError) -> Int

    /// Allocates what a request needs.
    func prepare(_ request: MapperRequest) throws(GuestError) -> any PreparedRequest

    /// Activates a thin device, in a way that udev does nothing with it; a writable one gets its
    /// node in /dev/mapper.
    func create(_ device: NewThinDevice) throws(GuestError) -> DeviceNumber

    /// Deactivates a device; one that does not exist is none.
    func remove(named name: String) throws(GuestError)

    /// Calls `body` with a path of a device.
    ///
    /// - Parameter directory: where a node is made, and removed again, if /dev has none.
    func withNode(
        of number: DeviceNumber, in directory: FilePath,
        _ body: (FilePath) throws(GuestError) -> Void
    ) throws(GuestError)

    /// Runs a program to its end and passes its output on, piece by piece.
    ///
    /// - Returns: its exit status, and its last words on standard error.
    func run(
        _ command: [String], within deadline: Duration,
        _ take: (UnsafeRawBufferPointer) throws(GuestError) -> Void
    ) throws(GuestError) -> (status: Int32, complaint: String)
}

extension DeviceMapperCalls {
    /// Sends a message to a pool.
    func message(_ pool: DeviceNumber, _ text: String) throws(GuestError) {
        try prepare(.message(pool, text)).run()
    }
}
