package import CheckpointStore
import Synchronization

/// Files over others that count what is read.
package final class CountingFiles: RepositoryFiles {
    /// What was read.
    package struct Count: Sendable {
        /// Bytes that reads returned.
        package var byteCount = 0
        /// Reads.
        package var readCount = 0
        /// Files that were opened.
        package var openCount = 0
    }

    private let inner: any RepositoryFiles
    private let counted = Mutex(Count())

    package init(_ inner: any RepositoryFiles) {
        self.inner = inner
    }

    /// What was read since the last call.
    package func take() -> Count {
        counted.withLock { count in
            defer { count = Count() }
            return count
        }
    }

    fileprivate func note(_ byteCount: Int) {
        counted.withLock { count in
            count.byteCount += byteCount
            count.readCount += 1
        }
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        counted.withLock { $0.openCount += 1 }
        return CountingFile(try inner.open(path, mode), self)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        try inner.createDirectory(path)
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        try inner.list(directory)
    }

    package func syncDirectory(_ path: String) throws(FileError) { try inner.syncDirectory(path) }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        try inner.rename(path, to: newPath)
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        try inner.link(path, to: newPath)
    }

    package func remove(_ path: String) throws(FileError) { try inner.remove(path) }

    package var bootID: [UInt8] { inner.bootID }
}

private final class CountingFile: RepositoryFile {
    private let inner: any RepositoryFile
    private let owner: CountingFiles

    init(_ inner: any RepositoryFile, _ owner: CountingFiles) {
        self.inner = inner
        self.owner = owner
    }

    func byteCount() throws(FileError) -> UInt64 { try inner.byteCount() }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        let count = try inner.read(into: buffer, at: offset)
        owner.note(count)
        return count
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        try inner.write(bytes, at: offset)
    }

    func startWriteback(_ range: Range<UInt64>) { inner.startWriteback(range) }

    func truncate(to byteCount: UInt64) throws(FileError) { try inner.truncate(to: byteCount) }

    func sync() throws(FileError) { try inner.sync() }

    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
}
