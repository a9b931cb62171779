import Glibc
import GuestModel
import SystemPackage

/// An open file or device, closed with the last reference.
final class OpenFile: Sendable {
    private let descriptor: Int32
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

    /// Calls `body` with the descriptor, which stays open until it returns.
    ///
    /// A descriptor that is read from an object which is then not used any more may be closed
    /// before the call that it is read for, and be another file's by then.
    func withDescriptor<T, E: Error>(_ body: (Int32) throws(E) -> T) throws(E) -> T {
        try withExtendedLifetime(self) { () throws(E) -> T in try body(descriptor) }
    }

    /// Shares the blocks of another file of the file system: all of its contents.
    ///
    /// `ioctl(FICLONE)`: 0, or -1 with errno set.
    func clone(_ source: OpenFile) -> Int32 {
        withDescriptor { own in source.withDescriptor { system_clone(own, from: $0) } }
    }

    /// Shares the blocks of a file's beginning; 0 bytes are all of it.
    ///
    /// `ioctl(FICLONERANGE)`: 0, or -1 with errno set.
    func clone(_ source: OpenFile, _ byteCount: Int) -> Int32 {
        withDescriptor { own in
            source.withDescriptor { system_cloneBeginning(own, from: $0, byteCount) }
        }
    }

    /// Its status.
    ///
    /// `fstat(2)`.
    func status() throws(GuestError) -> stat {
        var status = stat()
        guard withDescriptor({ system_fstat($0, &status) }) == 0 else {
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
            let count = withDescriptor { descriptor in
                system_pread(
                    descriptor, UnsafeMutableRawBufferPointer(rebasing: destination[done..<wanted]),
                    at: offset + done)
            }
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
