import CheckpointStore
import Glibc
package import PackStore
import Synchronization

/// Wraps files and counts the calls and bytes.
package final class CountingFiles: RepositoryFiles {
    /// The counts so far.
    package struct Tally: Equatable, Sendable {
        package var reads = 0
        package var readBytes = 0
        package var writes = 0
        package var writtenBytes = 0
        package var syncs = 0
        /// Opens, renames, removals, directory syncs and others.
        package var others = 0

        package static func - (left: Tally, right: Tally) -> Tally {
            Tally(
                reads: left.reads - right.reads, readBytes: left.readBytes - right.readBytes,
                writes: left.writes - right.writes,
                writtenBytes: left.writtenBytes - right.writtenBytes,
                syncs: left.syncs - right.syncs, others: left.others - right.others)
        }
    }

    private let inner: any RepositoryFiles
    private let state = Mutex(Tally())
    private let calls = Mutex<[UInt: Int]>([:])

    package init(_ inner: any RepositoryFiles) {
        self.inner = inner
    }

    package var tally: Tally { state.withLock { $0 } }

    /// Calls of any kind by the calling thread.
    package var callsOfThisThread: Int { calls.withLock { $0[UInt(pthread_self())] ?? 0 } }

    fileprivate func count(_ change: (inout Tally) -> Void) {
        state.withLock { change(&$0) }
        calls.withLock { $0[UInt(pthread_self()), default: 0] += 1 }
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        count { $0.others += 1 }
        return CountingFile(try inner.open(path, mode), self)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.createDirectory(path)
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        count { $0.others += 1 }
        return try inner.list(directory)
    }

    package func syncDirectory(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.syncDirectory(path)
    }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.rename(path, to: newPath)
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.link(path, to: newPath)
    }

    package func remove(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.remove(path)
    }

    package func checkPlace(writing pack: String?) throws(FileError) {
        count { $0.others += 1 }
        try inner.checkPlace(writing: pack)
    }

    package func foreignOwner() throws(FileError) -> UInt32? { try inner.foreignOwner() }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    package var bootID: [UInt8] { inner.bootID }
}

private final class CountingFile: RepositoryFile {
    private let inner: any RepositoryFile
    private let owner: CountingFiles

    init(_ inner: any RepositoryFile, _ owner: CountingFiles) {
        self.inner = inner
        self.owner = owner
    }

    func byteCount() throws(FileError) -> UInt64 {
        owner.count { $0.others += 1 }
        return try inner.byteCount()
    }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        let count = try inner.read(into: buffer, at: offset)
        owner.count {
            $0.reads += 1
            $0.readBytes += count
        }
        return count
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        owner.count {
            $0.writes += 1
            $0.writtenBytes += bytes.count
        }
        try inner.write(bytes, at: offset)
    }

    func startWriteback(_ range: Range<UInt64>) {
        owner.count { $0.others += 1 }
        inner.startWriteback(range)
    }

    func truncate(to byteCount: UInt64) throws(FileError) {
        owner.count { $0.others += 1 }
        try inner.truncate(to: byteCount)
    }

    func sync() throws(FileError) {
        owner.count { $0.syncs += 1 }
        try inner.sync()
    }

    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
    func isLocked() throws(FileError) -> Bool { try inner.isLocked() }
}
