import Glibc
import GuestModel
import SystemPackage

/// An open file or device, closed with the last reference.
final class OpenFile: Sendable {
    let descriptor: Int32
    /// For messages.
    let path: FilePath

    /// Takes over a descriptor.
    init(descriptor: Int32, path: FilePath) {
        self.descriptor = descriptor
        self.path = path
    }

    /// Opens a file.
    ///
    /// `open(2)`.
    convenience init(
        _ path: FilePath, _ flags: Int32 = O_RDONLY, _ mode: mode_t = 0
    ) throws(GuestError) {
        let descriptor = system_open(path, flags, mode)
        guard descriptor >= 0 else { throw GuestError.call("open", path.printable) }
        self.init(descriptor: descriptor, path: path)
    }

    deinit { system_close(descriptor) }

    /// Its status.
    ///
    /// `fstat(2)`.
    func status() throws(GuestError) -> stat {
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else {
            throw GuestError.call("fstat", path.printable)
        }
        return status
    }

    /// Fills a buffer from an offset; bytes past the end are zero.
    ///
    /// A file that ends before `end` is an error.
    ///
    /// `pread(2)`.
    func read(
        into destination: UnsafeMutableRawBufferPointer, at offset: Int, end: Int
    ) throws(GuestError) {
        let wanted = max(0, min(destination.count, end - offset))
        var done = 0
        while done < wanted {
            let count = system_pread(
                descriptor, UnsafeMutableRawBufferPointer(rebasing: destination[done..<wanted]),
                at: offset + done)
            guard count >= 0 else { throw GuestError.call("pread", path.printable) }
            guard count > 0 else {
                throw GuestError(
                    code: .sizeMismatch,
                    message: "\(path.printable) ends at byte \(offset + done), before its "
                        + "\(end) bytes; take another cut")
            }
            done += count
        }
        if wanted < destination.count {
            UnsafeMutableRawBufferPointer(rebasing: destination[wanted...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }
}
