import Glibc
package import GuestModel
import SystemPackage

/// Sequential output to whatever a path names.
///
/// A regular file gets its name when it is complete (`NewFile`); pipes, devices and open
/// descriptors are written in place.
package final class OutputFile: Sendable {
    private enum Target {
        case file(NewFile)
        /// Opened here, and closed here.
        case opened(isBlockDevice: Bool)
        /// Owned by the caller.
        case borrowed
    }

    private let name: String
    private let descriptor: Int32
    private let target: Target

    /// Opens the place.
    ///
    /// Opening a pipe waits for a reader.
    ///
    /// - Parameters:
    ///   - place: the destination.
    ///   - replacing: whether a file may be replaced.
    ///   - byteCount: the least number of bytes that will be written, if that is known; a place
    ///     without that much room is refused now.
    package init(
        _ place: OutputPlace, replacing: Bool = false, byteCount: Int? = nil
    ) throws(GuestError) {
        switch place {
        case .file(let path, _):
            let file = try NewFile(path, replacing: replacing, byteCount: byteCount)
            name = path.printable
            descriptor = file.descriptor
            target = .file(file)
        case .pipe(let path), .characterDevice(let path):
            name = path.printable
            descriptor = try OutputFile.openSpecial(path)
            target = .opened(isBlockDevice: false)
        case .blockDevice(let path):
            name = path.printable
            descriptor = try OutputFile.openBlockDevice(path, holding: byteCount)
            target = .opened(isBlockDevice: true)
        case .descriptor(let number):
            name = number == STDOUT_FILENO ? "standard output" : "descriptor \(number)"
            descriptor = number
            target = .borrowed
        }
    }

    deinit {
        if case .opened = target { system_close(descriptor) }
    }

    /// Appends bytes; blocks as the place does.
    package func write(_ bytes: UnsafeRawBufferPointer) throws(GuestError) {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = system_write(descriptor, rest)
            guard count >= 0 else { throw GuestError.call("write", name) }
            done += count
        }
    }

    /// Makes a file durable and gives it its name; a block device is synced.
    package func finish() throws(GuestError) {
        switch target {
        case .file(let file): try file.finish()
        case .opened(isBlockDevice: true):
            guard system_fsync(descriptor) == 0 else { throw GuestError.call("fsync", name) }
        case .opened, .borrowed: return
        }
    }

    // MARK: - Opening

    /// Opens what is not a regular file; a regular file that has meanwhile got its name is left
    /// alone.
    private static func openSpecial(
        _ path: FilePath, _ flags: Int32 = 0
    ) throws(GuestError) -> Int32 {
        let descriptor = system_open(path, O_WRONLY | O_NOCTTY | flags)
        guard descriptor >= 0 else { throw GuestError.call("open", path.printable) }
        var status = stat()
        guard system_fstat(descriptor, &status) == 0, status.st_mode & S_IFMT != S_IFREG else {
            system_close(descriptor)
            throw GuestError(
                code: .unavailable,
                message: "\(path.printable) was replaced by a regular file meanwhile; try again")
        }
        return descriptor
    }

    /// Opens a block device for writing.
    ///
    /// Refuses one that is mounted or otherwise in use, and one that is too small.
    static func openBlockDevice(
        _ path: FilePath, holding byteCount: Int?
    ) throws(GuestError) -> Int32 {
        let descriptor: Int32
        do throws(GuestError) {
            descriptor = try openSpecial(path, O_EXCL)
        } catch {
            guard error.errno == EBUSY else { throw error }
            throw GuestError(
                code: .busy,
                message: "\(path.printable) is mounted or in use and was left as it is; name "
                    + "another place")
        }
        do throws(GuestError) {
            try checkSize(of: descriptor, path, holding: byteCount ?? 0)
        } catch {
            system_close(descriptor)
            throw error
        }
        return descriptor
    }

    static func checkSize(
        of device: Int32, _ path: FilePath, holding byteCount: Int
    ) throws(GuestError) {
        let end = lseek(device, 0, SEEK_END)
        guard end >= 0, lseek(device, 0, SEEK_SET) == 0 else {
            throw GuestError.call("lseek", path.printable)
        }
        guard byteCount <= end else {
            throw GuestError(
                code: .sizeMismatch,
                message: "\(path.printable) has \(end) bytes, but at least \(byteCount) are to be "
                    + "written; name a larger device, or a file")
        }
    }
}
