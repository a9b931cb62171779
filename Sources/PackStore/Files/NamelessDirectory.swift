import Glibc

/// A directory for files whose names are removed when it is dropped; open descriptors stay valid.
///
/// In $TMPDIR, or `/tmp`.
package struct NamelessDirectory: ~Copyable {
    package let path: String
    /// The parent directory.
    package let parent: String

    package init() throws(FileError) {
        parent = system_environment("TMPDIR") ?? "/tmp"
        guard let path = system_mkdtemp(parent + "/varve-") else {
            throw FileError(.noTemporaryPlace, path: parent, errno: errno)
        }
        self.path = path
    }

    deinit {
        for name in system_names(path) ?? [] { _ = system_unlink(path + "/" + name) }
        _ = system_rmdir(path)
    }
}
