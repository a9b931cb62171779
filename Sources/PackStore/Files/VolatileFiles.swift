import Glibc
package import SystemPackage

/// Files that are never synced, for stores that need no durability: after a crash of the machine
/// they may hold anything.
package final class VolatileFiles: RepositoryFiles {
    private let inner: any RepositoryFiles
    /// The directory that goes with this; nil: none.
    private let ownDirectory: String?

    /// - Parameter inner: does all but syncing.
    package init(_ inner: any RepositoryFiles) {
        self.inner = inner
        ownDirectory = nil
    }

    /// Files in a new directory, accessible to this user only.
    ///
    /// - Parameter parent: the directory in which it is created.
    package init(in parent: FilePath) throws(FileError) {
        guard let path = system_mkdtemp("\(parent)/varve-volatile-") else {
            throw FileError(call: "mkdtemp", path: parent.string, errno: errno)
        }
        ownDirectory = path
        inner = PosixFiles(root: FilePath(path))
    }

    deinit { discard() }

    /// The directory that goes with this; nil: none.
    package var path: FilePath? { ownDirectory.map { FilePath($0) } }

    /// Removes the directory that goes with this, and everything in it.
    package func discard() {
        guard let ownDirectory else { return }
        let folders = [
            StoreDirectory.packs, StoreDirectory.index, StoreDirectory.leases,
            StoreDirectory.damaged,
        ]
        for folder in folders.map({ "\(ownDirectory)/\($0)" }) + [ownDirectory] {
            for name in system_names(folder) ?? [] { _ = system_unlink("\(folder)/\(name)") }
            _ = system_rmdir(folder)
        }
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        VolatileFile(try inner.open(path, mode))
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

private final class VolatileFile: RepositoryFile {
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
