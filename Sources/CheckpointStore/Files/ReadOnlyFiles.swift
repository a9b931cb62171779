/// The files of another user's store: whatever would change it fails before it is tried.
final class ReadOnlyFiles: RepositoryFiles {
    private let inner: any RepositoryFiles
    private let owner: UInt32

    /// - Parameter owner: whose store it is.
    init(_ inner: any RepositoryFiles, owner: UInt32) {
        self.inner = inner
        self.owner = owner
    }

    private func refusal(_ path: String) -> FileError {
        // EPERM, as the system would say it.
        FileError(.foreign(owner), path: path, errno: 1)
    }

    func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        guard mode == .read else { throw refusal(path) }
        return try inner.open(path, .read)
    }

    func createDirectory(_ path: String) throws(FileError) { throw refusal(path) }
    func list(_ directory: String) throws(FileError) -> [String] { try inner.list(directory) }
    func syncDirectory(_ path: String) throws(FileError) { throw refusal(path) }
    func rename(_ path: String, to newPath: String) throws(FileError) { throw refusal(path) }
    func link(_ path: String, to newPath: String) throws(FileError) { throw refusal(path) }
    func remove(_ path: String) throws(FileError) { throw refusal(path) }

    func checkPlace(writing pack: String?) throws(FileError) {
        try inner.checkPlace(writing: pack)
    }

    func foreignOwner() throws(FileError) -> UInt32? { owner }

    func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    var bootID: [UInt8] { inner.bootID }
}
