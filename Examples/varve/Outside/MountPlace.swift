import Glibc
import Varve

// What stands while a disk is mounted:
//
//   nbdkit (varve, filters) ── nbdfuse ── PLACE/fuse/disk ── /dev/loopN ── DIRECTORY
//
// The loop device is released with the last mount, nbdfuse ends when its file system is unmounted,
// and nbdkit ends with nbdfuse. So the mounts alone say what there is, and no other record can be
// wrong.

/// The directory in which one mounted disk is exposed as a file.
struct MountPlace {
    private static let parent = "/run/varve/mounts"

    let path: String
    /// Locks it as long as the descriptor is open in any process; -1 in those that use none.
    let lock: Int32

    /// Where nbdfuse shows the disk.
    var fuse: String { "\(path)/fuse" }

    /// Creates a place, for root alone; it is locked as long as this process lives, and programs
    /// that inherit the lock.
    static func create() throws -> MountPlace {
        for directory in ["/run/varve", parent] {
            guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
                throw ToolError("\(directory) cannot be created: \(Output.reason())")
            }
        }
        // Between the creation of a place and its lock, no other process must look.
        let lock = lock(parent, LOCK_EX)
        defer { close(lock) }
        guard lock >= 0 else { throw ToolError("\(parent) cannot be locked: \(Output.reason())") }
        removeLeftovers()
        var name = Array("\(parent)/XXXXXX".utf8CString)
        guard mkdtemp(&name) != nil else {
            throw ToolError("a directory in \(parent) cannot be created: \(Output.reason())")
        }
        let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let place = MountPlace(path: path, lock: MountPlace.lock(path, LOCK_EX | LOCK_NB))
        guard place.lock >= 0, mkdir(place.fuse, 0o700) == 0 else {
            throw ToolError("\(place.fuse) cannot be created: \(Output.reason())")
        }
        return place
    }

    /// Removes places that neither a mount nor a process uses any more: of processes that were
    /// killed, and of mounts that umount(8) ended.
    ///
    /// - Returns: true if there was one.
    static func dropLeftovers() -> Bool {
        let lock = lock(parent, LOCK_EX)
        defer { close(lock) }
        return lock >= 0 && removeLeftovers()
    }

    /// The same, for a caller that has locked the parent.
    @discardableResult
    private static func removeLeftovers() -> Bool {
        var isRemoved = false
        for name in MountTable.entries(of: parent) {
            let path = "\(parent)/\(name)"
            let place = MountPlace(path: path, lock: MountPlace.lock(path, LOCK_EX | LOCK_NB))
            guard place.lock >= 0 else { continue }
            if place.abandon() { isRemoved = true }
            close(place.lock)
        }
        return isRemoved
    }

    /// Locks a directory until its descriptor is closed, and returns that; -1 and `errno` on
    /// failure.
    private static func lock(_ path: String, _ operation: Int32) -> Int32 {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { return -1 }
        while flock(descriptor, operation) != 0 {
            if errno == EINTR { continue }
            let code = errno
            close(descriptor)
            errno = code
            return -1
        }
        return descriptor
    }

    /// The place of what is mounted at a directory, or nil if nothing is; throws if that is nothing
    /// of `varve mount`.
    static func find(mountedAt directory: String) throws -> MountPlace? {
        guard let source = try MountTable.source(mountedAt: directory) else { return nil }
        let loop = source.split(separator: "/").last ?? ""
        let backing = MountTable.text(of: "/sys/block/\(loop)/loop/backing_file")
        guard backing.hasPrefix(parent + "/"), let end = backing.firstRange(of: "/fuse/disk") else {
            throw ToolError("\(directory) was not mounted by 'varve mount'; use umount")
        }
        return MountPlace(path: String(backing[..<end.lowerBound]), lock: -1)
    }

    /// The loop devices that use the file.
    private var devices: [String] {
        MountTable.entries(of: "/sys/block").filter {
            MountTable.text(of: "/sys/block/\($0)/loop/backing_file").hasPrefix(path + "/")
        }.map { "/dev/\($0)" }
    }

    /// Removes the place unless it is mounted; returns true if it was removed.
    @discardableResult
    func abandon() -> Bool {
        let devices = devices
        let mounted = Set(MountTable.read().map(\.source))
        guard mounted.isDisjoint(with: devices) else { return false }
        // One that another name space has mounted goes away when it is unmounted there.
        for device in devices { _ = try? Tools.run(["losetup", "--detach", device]) }
        remove()
        return true
    }

    /// Ends nbdfuse, if it runs, and removes the place.
    private func remove() {
        // Lazily: the kernel releases a loop device a moment after its last use.
        umount2(fuse, Int32(MNT_DETACH))
        rmdir(fuse)
        rmdir(path)
    }
}

/// The mounts of this process's name space.
enum MountTable {
    /// A mounted file system: its device or name, and its directory.
    struct Entry {
        let source: String
        let target: String
    }

    /// The device or name of what is mounted at a directory, or nil.
    static func source(mountedAt directory: String) throws -> String? {
        guard let resolved = realpath(directory, nil) else {
            throw ToolError("\(directory) cannot be used: \(Output.reason())")
        }
        defer { free(resolved) }
        let target = String(cString: resolved)
        // The last one covers the others.
        return read().last { $0.target == target }?.source
    }

    /// Reads `/proc/self/mountinfo` (proc(5)).
    static func read() -> [Entry] {
        text(of: "/proc/self/mountinfo").split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ")
            guard let separator = words.firstIndex(of: "-"), words.count > separator + 2,
                separator > 4
            else { return nil }
            return Entry(
                source: plain(words[separator + 2]), target: plain(words[4]))
        }
    }

    /// Octal escapes of blanks and backslashes undone.
    private static func plain(_ word: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(word.utf8)[...]
        while let byte = rest.popFirst() {
            if byte == UInt8(ascii: "\\"), rest.count >= 3,
                let code = UInt8(String(decoding: rest.prefix(3), as: UTF8.self), radix: 8)
            {
                bytes.append(code)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// The names in a directory; none if it cannot be read.
    static func entries(of path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// A file of the kernel; empty if it cannot be read.
    static func text(of path: String) -> String {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return "" }
        defer { close(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = Glibc.read(file, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            bytes += buffer[..<count]
        }
        while bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// The file systems that are mounted: those of which the kernel reads no other disk than the one
/// that it is given.
enum FileSystemType: String {
    case ext2
    case ext3
    case ext4
    case xfs
    case vfat
    case iso9660
    case squashfs

    /// Options of mount(8) that it needs.
    var options: [String] {
        // The running guest's disk may be mounted here, and has the same UUID.
        self == .xfs ? ["nouuid"] : []
    }

    /// What a file contains, by blkid's probing, which reads superblocks only.
    static func find(in image: String, _ disk: String, isPartition: Bool) throws -> FileSystemType {
        let process = try ChildProcess(
            ["blkid", "--probe", "--output", "export", image], collectsOutput: true)
        let status = process.wait()
        var values: [Substring: Substring] = [:]
        for line in process.collectedLines {
            let pair = line.split(separator: "=", maxSplits: 1)
            if pair.count == 2 { values[pair[0]] = pair[1] }
        }
        if let found = values["TYPE"] {
            if let type = FileSystemType(rawValue: String(found)) { return type }
            throw ToolError(
                "\(disk) contains '\(found)', which this command does not mount, so that nothing "
                    + "of a guest is activated on its host; read it in a virtual machine: 'varve "
                    + "serve', and guestfish --ro")
        }
        if let table = values["PTTYPE"], !isPartition {
            let list = try? Tools.run(
                ["partx", "--raw", "--noheadings", "--output", "NR,SIZE", image])
            let partitions = (list ?? []).map { line in
                let words = line.split(separator: " ")
                return words.count == 2 ? "\(words[0]) (\(words[1]))" : line
            }
            throw ToolError(
                "\(disk) has a partition table (\(table)); name one by --partition: "
                    + partitions.joined(separator: ", "))
        }
        // 8: more than one file system fits.
        throw ToolError(
            status == 8
                ? "\(disk) has signs of several file systems, and is not mounted"
                : "\(disk) has no file system that blkid knows")
    }
}
