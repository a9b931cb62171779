import Glibc
package import GuestModel
package import SystemPackage

/// What a path names as an output, determined before any work is done.
///
/// Only a regular file is ever replaced. Pipes and devices are written in place, and a path that
/// names an open descriptor of this process refers to that descriptor.
package enum OutputPlace: Hashable, Sendable {
    /// A regular file, or a name that does not exist.
    ///
    /// The path is that of the file itself: a symbolic link at the end of the given path has been
    /// followed, and is kept.
    case file(FilePath, exists: Bool)
    /// A named pipe, which is written sequentially.
    case pipe(FilePath)
    /// A block device, which is written in place.
    case blockDevice(FilePath)
    /// A terminal, `/dev/null`, and the like.
    case characterDevice(FilePath)
    /// An open descriptor of this process: `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/3`.
    case descriptor(Int32)

    /// Examines a path.
    ///
    /// Throws `GuestError` for a directory, a socket, a dangling symbolic link, an open file of
    /// another process, a name that is too long, and a path that cannot be examined.
    package init(_ path: FilePath) throws(GuestError) {
        guard !path.isEmpty else { throw OutputPlace.refusal("an empty path", "names no file") }
        var target = path
        for _ in 0..<OutputPlace.linkCountMax {
            if let number = OutputPlace.descriptor(target) {
                try OutputPlace.checkWritable(number, path)
                self = .descriptor(number)
                return
            }
            guard let link = system_readlink(target) else { break }
            if OutputPlace.isOfProcess(target) {
                throw OutputPlace.refusal(
                    path.printable, "is an open file of another process; name the file itself")
            }
            let next = FilePath(bytes: link)
            target = next.isAbsolute ? next : target.directory.pushing(next)
        }
        var status = stat()
        // The given path: the kernel may forbid following another user's link.
        if system_stat(path, &status) != 0 {
            guard errno == ENOENT else { throw GuestError.call("stat", path.printable) }
            guard target == path else {
                throw OutputPlace.refusal(
                    path.printable,
                    "is a symbolic link to \(target.printable), which does not exist; name the "
                        + "file itself, or remove the link")
            }
            self = .file(path, exists: false)
            return
        }
        switch status.st_mode & S_IFMT {
        case S_IFREG: self = .file(target, exists: true)
        case S_IFIFO: self = .pipe(target)
        case S_IFBLK: self = .blockDevice(target)
        case S_IFCHR: self = .characterDevice(target)
        case S_IFDIR:
            throw OutputPlace.refusal(path.printable, "is a directory; name a file in it")
        default:
            throw OutputPlace.refusal(
                path.printable, "is a socket; name a file, a pipe or a device")
        }
    }

    /// The kernel's limit (path_resolution(7)).
    private static let linkCountMax = 40

    private static func refusal(_ subject: String, _ reason: String) -> GuestError {
        GuestError(code: .unavailable, message: "\(subject) \(reason)")
    }

    /// The number of an open descriptor that a path names; proc(5), section /proc/pid/fd.
    private static func descriptor(_ path: FilePath) -> Int32? {
        let text = path.string
        let named: [String: Int32] = ["/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2]
        if let number = named[text] { return number }
        let own = getpid()
        for folder in [
            "/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/", "/proc/\(own)/fd/",
            "/proc/\(own)/task/\(own)/fd/",
        ] where text.hasPrefix(folder) {
            let digits = text.dropFirst(folder.count)
            return digits.allSatisfy(\.isNumber) ? Int32(digits) : nil
        }
        return nil
    }

    /// True for a link that leads to an open file without a path: its text may name something else.
    private static func isOfProcess(_ path: FilePath) -> Bool {
        let parts = path.components.map(\.string)
        return path.isAbsolute && parts.count >= 4 && parts[0] == "proc"
            && parts[parts.count - 2] == "fd"
    }

    private static func checkWritable(
        _ descriptor: Int32, _ path: FilePath
    ) throws(GuestError) {
        let flags = system_descriptorFlags(descriptor)
        guard flags >= 0 else {
            throw refusal(path.printable, "is not open; redirect it, or name a file")
        }
        guard flags & O_ACCMODE != O_RDONLY else {
            throw refusal(path.printable, "is open only for reading; name another place")
        }
    }
}
