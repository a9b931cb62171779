import Glibc
import SystemPackage
import Varve

/// The files of a repository, identified by device and inode, whatever name or descriptor they are
/// reached by.
enum StoreFiles {
    private static let files = ["repository", "lock", "head"]
    private static let folders = ["packs", "index", "leases", "damaged"]

    /// Throws if an output is a file of the repository.
    static func refuse(_ place: OutputPlace, named name: String, in store: StoreArgument) throws {
        var status = stat()
        let isKnown =
            switch place {
            case .descriptor(let number): fstat(number, &status) == 0
            case .file(let path, exists: true):
                path.withPlatformString { stat($0, &status) } == 0
            default: false
            }
        guard isKnown, holds(status, store) else { return }
        throw ToolError(
            "\(name) is a file of the repository itself, and was left as it is; name a file "
                + "elsewhere")
    }

    /// Throws if standard output or standard error is a file of the repository and would be written
    /// to.
    static func refuseStandardOutput(in store: StoreArgument) throws {
        for (descriptor, name) in [(STDOUT_FILENO, "output"), (STDERR_FILENO, "error")] {
            let flags = fcntl(descriptor, F_GETFL)
            guard flags >= 0, flags & O_ACCMODE != O_RDONLY else { continue }
            try refuse(.descriptor(descriptor), named: "standard \(name)", in: store)
        }
    }

    /// True if a file is one of the repository's; symbolic links inside it are not followed.
    private static func holds(_ file: stat, _ store: StoreArgument) -> Bool {
        guard file.st_mode & S_IFMT == S_IFREG else { return false }
        let root = open(store.description, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard root >= 0 else { return false }
        defer { close(root) }
        return files.contains { isSame(file, $0, in: root) }
            || folders.contains { lies(file, in: $0, of: root) }
    }

    /// True if a directory is the repository's, one of its folders, or below one of them, even if
    /// it is reached through another mount.
    static func holds(folder: FilePath, _ store: StoreArgument) -> Bool {
        // O_PATH, which needs no permission to read: glibc hides the name under _GNU_SOURCE.
        let flags = __O_PATH | O_DIRECTORY | O_CLOEXEC
        let root = open(store.description, flags)
        guard root >= 0 else { return false }
        defer { close(root) }
        let own = ["."] + folders
        var place = (folder.isEmpty ? "." : folder).withPlatformString { open($0, flags) }
        defer { if place >= 0 { close(place) } }
        var top = stat()
        guard stat("/", &top) == 0 else { return false }
        while place >= 0 {
            var status = stat()
            guard fstat(place, &status) == 0 else { return false }
            if own.contains(where: { isSame(status, $0, in: root) }) { return true }
            if status.st_ino == top.st_ino && status.st_dev == top.st_dev { return false }
            let parent = openat(place, "..", flags)
            close(place)
            place = parent
        }
        return false
    }

    private static func isSame(_ file: stat, _ name: String, in directory: Int32) -> Bool {
        var status = stat()
        return fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0
            && status.st_ino == file.st_ino && status.st_dev == file.st_dev
    }

    /// True if a file has a name in a folder.
    private static func lies(_ file: stat, in folder: String, of root: Int32) -> Bool {
        let flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
        let descriptor = openat(root, folder, flags)
        guard descriptor >= 0 else { return false }
        guard let stream = fdopendir(descriptor) else {
            close(descriptor)
            return false
        }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            guard entry.pointee.d_ino == file.st_ino else { continue }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if isSame(file, name, in: descriptor) { return true }
        }
        return false
    }
}
