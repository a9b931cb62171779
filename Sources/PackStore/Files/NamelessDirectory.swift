import Glibc

/// A directory for files that lose their names when it is dropped; who has them open keeps them.
///
/// In $TMPDIR, or `/tmp`.
package struct NamelessDirectory: ~Copyable {
    package let path: String
    /// What it lies in.
    package let parent: String

    package init() throws(FileError) {
        parent = system_environment("TMPDIR") ?? "/tmp"
        guard let path = system_mkdtemp(parent + "/varve-") else {
            throw FileError(call: FileError.makingTemporary, path: parent, errno: errno)
        }
        self.path = path
    }

    deinit {
        for name in system_names(path) ?? [] { _ = system_unlink(path + "/" + name) }
        _ = system_rmdir(path)
    }
}
