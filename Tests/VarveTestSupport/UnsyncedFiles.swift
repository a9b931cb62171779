import CheckpointStore
package import PackStore

/// Wraps files and never syncs them, for stores that need no durability.
package final class UnsyncedFiles: RepositoryFiles {
    private let inner: any RepositoryFiles

    package init(_ inner: any RepositoryFiles) { self.inner = inner }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        UnsyncedFile(try inner.open(path, mode))
    }

    package func createDirectory(_ path: String) throws(FileError) {
        try inner.createDirectory(path)
    }
    package func list(_ directory: String) throws(FileError) -> [String] {
        try inner.list(directory)
    }
    package func syncDirectory(_ path: String) throws(FileError) {}

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        try inner.rename(path, to: newPath)
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        try inner.link(path, to: newPath)
    }

    package func remove(_ path: String) throws(FileError) { try inner.remove(path) }
    package func checkPlace(writing pack: String?) throws(FileError) {
        try inner.checkPlace(writing: pack)
    }

    package func foreignOwner() throws(FileError) -> UInt32? { try inner.foreignOwner() }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    package var bootID: [UInt8] { inner.bootID }
}

private final class UnsyncedFile: RepositoryFile {
    private let inner: any RepositoryFile

    init(_ inner: any RepositoryFile) { self.inner = inner }

    func byteCount() throws(FileError) -> UInt64 { try inner.byteCount() }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int { try inner.read(into: buffer, at: offset) }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        try inner.write(bytes, at: offset)
    }

    func startWriteback(_ range: Range<UInt64>) { inner.startWriteback(range) }
    func truncate(to byteCount: UInt64) throws(FileError) { try inner.truncate(to: byteCount) }
    func sync() throws(FileError) {}
    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
    func isLocked() throws(FileError) -> Bool { try inner.isLocked() }
}
