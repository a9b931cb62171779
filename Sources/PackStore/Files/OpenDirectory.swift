package import Glibc

/// An open directory: it remains the same one even if its path changes.
///
/// Files in it are named relative to it, and symbolic links are never followed.
package final class OpenDirectory: Sendable {
    package let descriptor: Int32
    /// The path, as shown in messages.
    package let path: String
    /// Its path when it was opened; nil if the process's working directory was gone.
    private let absolutePath: String?

    /// Opens a directory by a user's path: symbolic links on the way to it are followed.
    ///
    /// - Parameter name: the name for messages, if it differs from the path.
    package init(_ path: String, named name: String? = nil) throws(FileError) {
        descriptor = system_openDirectory(path)
        guard descriptor >= 0 else { throw FileError(call: "open", path: path, errno: errno) }
        self.path = name ?? path
        absolutePath = OpenDirectory.absolute(path)
    }

    /// Opens a subdirectory of an open directory.
    init(_ name: String, in parent: OpenDirectory) throws(FileError) {
        path = "\(parent.path)/\(name)"
        absolutePath = parent.absolutePath.map { "\($0)/\(name)" }
        descriptor = system_openDirectory(at: parent.descriptor, name)
        guard descriptor < 0 else { return }
        let code = errno
        var status = stat()
        if system_stat(name, at: parent.descriptor, &status) == 0,
            status.st_mode & S_IFMT != S_IFDIR
        {
            throw FileError.odd(path, status, not: "directory")
        }
        throw FileError(call: "open", path: path, errno: code)
    }

    deinit {
        if descriptor >= 0 { system_close(descriptor) }
    }

    /// The absolute form of a path; nil if the working directory is gone.
    static func absolute(_ path: String) -> String? {
        if path.hasPrefix("/") { return path }
        return system_currentDirectory().map { "\($0)/\(path)" }
    }

    /// Its `fstat(2)` result.
    package func status() throws(FileError) -> stat {
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else {
            throw FileError(call: "fstat", path: path, errno: errno)
        }
        return status
    }

    /// The status of an entry, without following symbolic links; nil if there is none.
    package func status(of name: String) throws(FileError) -> stat? {
        var status = stat()
        if system_stat(name, at: descriptor, &status) == 0 { return status }
        if errno == ENOENT || errno == ENOTDIR { return nil }
        throw FileError(call: "fstatat", path: "\(path)/\(name)", errno: errno)
    }

    /// Opens a regular file in it; anything else is left untouched.
    ///
    /// Its kind is checked before it is opened, because opening a device may have side effects, and
    /// again afterwards, because it may have been replaced.
    package func open(_ name: String, _ flags: Int32, _ mode: mode_t = 0) throws(FileError) -> Int32
    {
        if let status = try status(of: name) { try check(status, name) }
        let descriptor = system_openat(self.descriptor, name, flags, mode)
        guard descriptor >= 0 else {
            throw FileError(call: "open", path: "\(path)/\(name)", errno: errno)
        }
        var status = stat()
        guard system_fstat(descriptor, &status) == 0 else {
            let code = errno
            system_close(descriptor)
            throw FileError(call: "fstat", path: "\(path)/\(name)", errno: code)
        }
        do throws(FileError) {
            try check(status, name)
        } catch {
            system_close(descriptor)
            throw error
        }
        return descriptor
    }

    private func check(_ status: stat, _ name: String) throws(FileError) {
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw FileError.odd("\(path)/\(name)", status, not: "regular file")
        }
    }

    /// A path to it, for libraries that accept only paths.
    ///
    /// Its name in /proc, which leads to it wherever it is moved. Where /proc is not mounted, the
    /// path at which it was opened, if that still leads to it: a move between this call and the use
    /// of the path is detected by `Identity`, not prevented.
    package func systemPath() throws(FileError) -> String {
        let own = Identity(try status())
        for path in ["/proc/self/fd/\(descriptor)", absolutePath].compactMap({ $0 }) {
            var status = stat()
            if system_stat(path, &status) == 0, Identity(status) == own { return path }
        }
        throw FileError(.moved("was moved, and /proc is not mounted"), path: path, errno: ESTALE)
    }
}

/// Identifies a file or a directory.
package struct Identity: Hashable, Sendable {
    private let device: UInt
    private let inode: UInt

    package init(_ status: stat) {
        device = UInt(status.st_dev)
        inode = UInt(status.st_ino)
    }
}

extension FileError {
    /// The error for an object of the wrong kind.
    package static func odd(_ path: String, _ status: stat, not expected: String) -> FileError {
        let (what, code): (String, Int32) =
            switch status.st_mode & S_IFMT {
            case S_IFLNK: ("a symbolic link", ELOOP)
            case S_IFDIR: ("a directory", EISDIR)
            case S_IFIFO: ("a pipe", ENXIO)
            case S_IFSOCK: ("a socket", ENXIO)
            case S_IFCHR, S_IFBLK: ("a device", ENXIO)
            case S_IFREG: ("a regular file", ENOTDIR)
            default: ("of an unknown kind", ENXIO)
            }
        return FileError(.odd("\(what), not a \(expected)"), path: path, errno: code)
    }
}
