import CDeviceMapper
import Glibc
package import GuestModel
import Synchronization
package import SystemPackage

/// The calls as libdevmapper and the kernel answer them.
///
/// libdevmapper has global state (its control device, a list of pending nodes), so a process makes
/// one call at a time. A suspension that waits for slow storage delays the cuts of other guests of
/// the same process by as much.
package struct LibdevmapperCalls: DeviceMapperCalls {
    /// True once the library was set up.
    private static let library = Mutex(false)

    /// Makes the calls; nothing is opened yet.
    package init() {}

    /// A task of libdevmapper.
    private final class Task: @unchecked Sendable {
        // Unchecked: used only with the library's lock held.
        let pointer: OpaquePointer

        init(_ type: Int) throws(GuestError) {
            guard let pointer = dm_task_create(Int32(type)) else {
                throw GuestError(
                    code: .unsupported,
                    message: "device-mapper cannot be used here; load dm-mod and dm-thin-pool "
                        + "(modprobe), and run as root", errno: Glibc.errno)
            }
            self.pointer = pointer
        }

        deinit { dm_task_destroy(pointer) }

        convenience init(_ type: Int, _ number: DeviceNumber) throws(GuestError) {
            try self.init(type)
            try check(
                dm_task_set_major_minor(pointer, Int32(number.major), Int32(number.minor), 0))
        }

        convenience init(_ type: Int, named name: String) throws(GuestError) {
            try self.init(type)
            try check(dm_task_set_name(pointer, name))
        }

        /// Setters fail when memory is short, or for a name that is too long.
        func check(_ result: Int32) throws(GuestError) {
            guard result != 0 else {
                throw GuestError(
                    code: .callFailed, message: "libdevmapper did not accept a parameter")
            }
        }

        func run(_ what: String) throws(GuestError) {
            guard dm_task_run(pointer) != 0 else {
                let code = dm_task_get_errno(pointer)
                let reason = code == 0 ? "no reason given" : String(cString: strerror(code))
                throw GuestError(
                    code: .callFailed,
                    message: "device-mapper: \(what): \(reason)"
                        + (code == EPERM || code == EACCES ? "; run as root" : ""),
                    errno: code)
            }
        }

        /// After `run`: the device, if it exists.
        func device() throws(GuestError) -> MappedDevice? {
            var info = dm_info()
            try check(dm_task_get_info(pointer, &info))
            guard info.exists != 0 else { return nil }
            return MappedDevice(
                number: DeviceNumber(major: info.major, minor: info.minor),
                name: dm_task_get_name(pointer).map { String(cString: $0) } ?? "",
                uuid: dm_task_get_uuid(pointer).map { String(cString: $0) } ?? "",
                isSuspended: info.suspended != 0)
        }

        /// After `run`: the lines of a table or status.
        func targets() -> [MappedTarget] {
            var targets: [MappedTarget] = []
            var next: UnsafeMutableRawPointer?
            repeat {
                var (start, length): (UInt64, UInt64) = (0, 0)
                var type: UnsafeMutablePointer<CChar>?
                var parameters: UnsafeMutablePointer<CChar>?
                next = dm_get_next_target(pointer, next, &start, &length, &type, &parameters)
                guard let type else { break }
                targets.append(
                    MappedTarget(
                        start: start, length: length, type: String(cString: type),
                        parameters: parameters.map { String(cString: $0) } ?? ""))
            } while next != nil
            return targets
        }

        /// So that udev neither looks at the device nor is waited for, and the library makes no
        /// node in /dev/mapper.
        func hideFromUdev() throws(GuestError) {
            let flags =
                DM_UDEV_DISABLE_DM_RULES_FLAG | DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
                | DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_OTHER_RULES_FLAG
                | DM_UDEV_DISABLE_LIBRARY_FALLBACK
            var cookie: UInt32 = 0
            try check(dm_task_set_cookie(pointer, &cookie, UInt16(flags)))
        }
    }

    /// Calls the library, which is set up the first time.
    private static func locked<T: Sendable>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try library.withLock { (isReady) throws(GuestError) -> T in
            if !isReady {
                cdm_discard_log()
                // No semaphores: nothing waits for udev.
                dm_udev_set_sync_support(0)
                // Names are passed on as they are.
                dm_set_name_mangling_mode(DM_STRING_MANGLING_NONE)
                // Opening the control device is nothing for the pause.
                dm_hold_control_dev(1)
                isReady = true
            }
            return try body()
        }
    }

    package func number(of path: FilePath) throws(GuestError) -> DeviceNumber? {
        var status = stat()
        guard system_stat(path, &status) == 0 else {
            throw GuestError.call("stat", path.printable)
        }
        guard status.st_mode & S_IFMT == S_IFBLK else { return nil }
        return DeviceNumber(UInt64(status.st_rdev))
    }

    package func device(_ number: DeviceNumber) throws(GuestError) -> MappedDevice? {
        try LibdevmapperCalls.locked { () throws(GuestError) in
            let task = try Task(DM_DEVICE_INFO, number)
            do throws(GuestError) {
                try task.run("device \(number.text)")
            } catch {
                // A number that device-mapper does not have.
                guard error.errno == ENXIO || error.errno == ENODEV else { throw error }
                return nil
            }
            return try task.device()
        }
    }

    package func device(named name: String) throws(GuestError) -> MappedDevice? {
        try LibdevmapperCalls.locked { () throws(GuestError) in
            let task = try Task(DM_DEVICE_INFO, named: name)
            do throws(GuestError) {
                try task.run("device \(name)")
            } catch {
                guard error.errno == ENXIO || error.errno == ENODEV else { throw error }
                return nil
            }
            return try task.device()
        }
    }

    package func table(of number: DeviceNumber) throws(GuestError) -> [MappedTarget] {
        try LibdevmapperCalls.locked { () throws(GuestError) in
            let task = try Task(DM_DEVICE_TABLE, number)
            try task.run("table of \(number.text)")
            return task.targets()
        }
    }

    package func status(of number: DeviceNumber) throws(GuestError) -> [MappedTarget] {
        try LibdevmapperCalls.locked { () throws(GuestError) in
            let task = try Task(DM_DEVICE_STATUS, number)
            try task.check(dm_task_no_flush(task.pointer))
            try task.run("status of \(number.text)")
            return task.targets()
        }
    }

    package func sectorByteCount(
        of number: DeviceNumber, _ directory: FilePath
    ) throws(GuestError) -> Int {
        var bytes: Int32 = 0
        try withNode(of: number, in: directory) { (path) throws(GuestError) in
            let device = try OpenFile(path)
            guard device.withDescriptor({ system_deviceSector($0, &bytes) }) == 0 else {
                throw GuestError.call("BLKSSZGET", path.printable)
            }
        }
        return Int(bytes)
    }

    // MARK: - In the pause

    private final class Request: PreparedRequest {
        private let task: Task
        private let what: String

        init(_ request: MapperRequest) throws(GuestError) {
            switch request {
            case .suspend(let number):
                task = try Task(DM_DEVICE_SUSPEND, number)
                try task.check(dm_task_skip_lockfs(task.pointer))
                what = "suspending \(number.text)"
            case .resume(let number):
                // Without flags for udev: it sees an ordinary resume, and keeps its links.
                task = try Task(DM_DEVICE_RESUME, number)
                what = "resuming \(number.text)"
            case .load(let number, let target):
                task = try Task(DM_DEVICE_RELOAD, number)
                try task.check(
                    dm_task_add_target(
                        task.pointer, target.start, target.length, target.type,
                        target.parameters))
                what = "loading a table of \(number.text)"
            case .clear(let number):
                task = try Task(DM_DEVICE_CLEAR, number)
                what = "clearing the prepared table of \(number.text)"
            case .message(let pool, let text):
                task = try Task(DM_DEVICE_TARGET_MSG, pool)
                try task.check(dm_task_set_sector(task.pointer, 0))
                try task.check(dm_task_set_message(task.pointer, text))
                what = "'\(text)' to the pool \(pool.text)"
            }
        }

        func run() throws(GuestError) {
            try LibdevmapperCalls.locked { () throws(GuestError) in try task.run(what) }
        }
    }

    package func prepare(_ request: MapperRequest) throws(GuestError) -> any PreparedRequest {
        try LibdevmapperCalls.locked { () throws(GuestError) in try Request(request) }
    }

    // MARK: - Devices of snapshots

    /// In three steps, each with an error number: the library's way in one step loses it.
    package func create(_ device: NewThinDevice) throws(GuestError) -> DeviceNumber {
        try LibdevmapperCalls.locked { () throws(GuestError) in
            let creation = try Task(DM_DEVICE_CREATE, named: device.name)
            if !device.uuid.isEmpty {
                try creation.check(dm_task_set_uuid(creation.pointer, device.uuid))
            }
            try creation.hideFromUdev()
            try creation.run("creating \(device.name)")
            do throws(GuestError) {
                let table = try Task(DM_DEVICE_RELOAD, named: device.name)
                if device.isReadOnly { try table.check(dm_task_set_ro(table.pointer)) }
                try table.check(
                    dm_task_add_target(
                        table.pointer, 0, device.length, "thin", device.parameters))
                try table.run("loading the table of \(device.name)")
                let start = try Task(DM_DEVICE_RESUME, named: device.name)
                try start.hideFromUdev()
                try start.run("activating \(device.name)")
                // Lets go of what the library would have done for nodes, and was told not to.
                dm_task_update_nodes()
                guard let made = try start.device() else {
                    throw GuestError(
                        code: .callFailed, message: "device-mapper: \(device.name) has vanished")
                }
                // A volume that others use has its node, which udev was not asked to make.
                if !device.isReadOnly {
                    try Task(DM_DEVICE_MKNODES, named: device.name)
                        .run("making the node of \(device.name)")
                    dm_task_update_nodes()
                }
                return made.number
            } catch {
                let removal = try? Task(DM_DEVICE_REMOVE, named: device.name)
                try? removal?.hideFromUdev()
                try? removal?.run("removing \(device.name)")
                throw error
            }
        }
    }

    package func remove(named name: String) throws(GuestError) {
        // udev of another host's making may have it open for a moment.
        for attempt in 0..<100 {
            do throws(GuestError) {
                return try LibdevmapperCalls.locked { () throws(GuestError) in
                    let task = try Task(DM_DEVICE_REMOVE, named: name)
                    try task.hideFromUdev()
                    try task.run("removing \(name)")
                    // Where there is no udev, the library removes the node, and only now.
                    dm_task_update_nodes()
                }
            } catch {
                if error.errno == ENXIO { return }
                guard error.errno == EBUSY, attempt < 99 else { throw error }
            }
            system_sleep(microseconds: 50_000)
        }
    }

    // MARK: - Nodes and programs

    package func withNode(
        of number: DeviceNumber, in directory: FilePath,
        _ body: (FilePath) throws(GuestError) -> Void
    ) throws(GuestError) {
        // The kernel's own name: ../../devices/virtual/block/dm-3.
        if let target = system_readlink(FilePath("/sys/dev/block/\(number.text)")),
            let slash = target.lastIndex(of: UInt8(ascii: "/"))
        {
            let path = FilePath(bytes: Array("/dev/".utf8) + target[(slash + 1)...])
            var status = stat()
            if system_stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFBLK,
                DeviceNumber(UInt64(status.st_rdev)) == number
            {
                return try body(path)
            }
        }
        let path = directory.appending(".node-\(Journal.makeToken())")
        guard system_makeNode(path, dev_t(number.number)) == 0 else {
            throw GuestError.call("mknod", path.printable)
        }
        defer { _ = system_unlink(path) }
        try body(path)
    }

    package func run(
        _ command: [String], within deadline: Duration,
        _ take: (UnsafeRawBufferPointer) throws(GuestError) -> Void
    ) throws(GuestError) -> (status: Int32, complaint: String) {
        let end = try Program.run(command, within: deadline, take)
        return (end.status, end.complaint)
    }
}
