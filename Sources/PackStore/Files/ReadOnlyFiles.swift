/// The files of another user's store: changes fail before they are attempted.
package final class ReadOnlyFiles: RepositoryFiles {
    private let inner: any RepositoryFiles
    private let owner: UInt32

    /// - Parameter owner: the UID of the store's owner.
    package init(_ inner: any RepositoryFiles, owner: UInt32) {
        self.inner = inner
        self.owner = owner
    }

    private func refusal(_ path: String) -> FileError {
        // EPERM, as the system would report it.
        FileError(.foreign(owner), path: path, errno: 1)
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        guard mode == .read else { throw refusal(path) }
        return try inner.open(path, .read)
    }

    package func createDirectory(_ path: String) throws(FileError) { throw refusal(path) }
    package func list(_ directory: String) throws(FileError) -> [String] {
        try inner.list(directory)
    }
    package func syncDirectory(_ path: String) throws(FileError) { throw refusal(path) }
    package func rename(_ path: String, to newPath: String) throws(FileError) {
        throw refusal(path)
    }
    package func link(_ path: String, to newPath: String) throws(FileError) { throw refusal(path) }
    package func remove(_ path: String) throws(FileError) { throw refusal(path) }

    package func checkPlace(writing pack: String?) throws(FileError) {
        try inner.checkPlace(writing: pack)
    }

    package func foreignOwner() throws(FileError) -> UInt32? { owner }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    package var bootID: [UInt8] { inner.bootID }
}
