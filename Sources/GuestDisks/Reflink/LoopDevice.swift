import Glibc
package import GuestModel
package import SystemPackage

/// Loop devices, which show a file as a block device.
///
/// What was written to one and is completed is in its file, or in the page cache of that: so a
/// clone of the file is a cut of the device. Documentation/ABI/testing/sysfs-block-loop.
package enum LoopDevice {
    /// `LOOP_MAJOR` of linux/major.h.
    private static let major: UInt32 = 7

    /// The file behind a loop device as a disk; nil if the path names another device, or none.
    ///
    /// - Throws: `unsupported` if the device shows only a part of its file, or the file is gone.
    package static func file(
        of path: FilePath, named name: String
    ) throws(GuestError) -> ReflinkDisks.File? {
        var status = stat()
        guard system_stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFBLK else {
            return nil
        }
        let number = DeviceNumber(UInt64(status.st_rdev))
        guard number.major == major else { return nil }
        return try file(in: FilePath("/sys/dev/block/\(number.text)"), named: name)
    }

    /// The same by the device's directory in sysfs.
    static func file(
        in directory: FilePath, named name: String
    ) throws(GuestError) -> ReflinkDisks.File {
        let bytes = try contents(of: directory.appending("loop/backing_file"))
        let path = FilePath(bytes: bytes)
        let start = String(
            decoding: try contents(of: directory.appending("loop/offset")), as: UTF8.self)
        let limit = String(
            decoding: try contents(of: directory.appending("loop/sizelimit")), as: UTF8.self)
        guard start == "0", limit == "0" else {
            throw refusal(name, path, "shows a part of a file; attach all of it (losetup)")
        }
        var status = stat()
        guard system_lstat(path, &status) == 0 else {
            throw refusal(name, path, "has a file that was removed or moved; attach it again")
        }
        let sector = String(
            decoding: try contents(of: directory.appending("queue/logical_block_size")),
            as: UTF8.self)
        return ReflinkDisks.File(name: name, path: path, sectorByteCount: Int(sector) ?? 0)
    }

    private static func refusal(
        _ name: String, _ path: FilePath, _ what: String
    ) -> GuestError {
        GuestError(
            code: .unsupported,
            message: "the loop device of disk \(name), on \(path.printable), \(what)")
    }

    /// The line in a file of sysfs.
    private static func contents(of path: FilePath) throws(GuestError) -> [UInt8] {
        let file = try OpenFile(path)
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = file.withDescriptor { file in
            bytes.withUnsafeMutableBytes { system_pread(file, $0, at: 0) }
        }
        guard count >= 0 else { throw GuestError.call("pread", path.printable) }
        let line = bytes.prefix(count)
        return Array(line.last == UInt8(ascii: "\n") ? line.dropLast() : line)
    }
}
