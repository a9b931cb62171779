import CheckpointStore
import Synchronization

/// Files over others that count the calls and the bytes.
final class CountingFiles: RepositoryFiles {
    /// What went through so far.
    struct Tally: Equatable {
        var reads = 0
        var readBytes = 0
        var writes = 0
        var writtenBytes = 0
        var syncs = 0
        /// Opens, renames, removals, directory syncs and the like.
        var others = 0

        static func - (left: Tally, right: Tally) -> Tally {
            Tally(
                reads: left.reads - right.reads, readBytes: left.readBytes - right.readBytes,
                writes: left.writes - right.writes,
                writtenBytes: left.writtenBytes - right.writtenBytes,
                syncs: left.syncs - right.syncs, others: left.others - right.others)
        }
    }

    private let inner: any RepositoryFiles
    private let state = Mutex(Tally())

    init(_ inner: any RepositoryFiles) {
        self.inner = inner
    }

    var tally: Tally { state.withLock { $0 } }

    fileprivate func count(_ change: (inout Tally) -> Void) {
        state.withLock { change(&$0) }
    }

    func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        count { $0.others += 1 }
        return CountingFile(try inner.open(path, mode), self)
    }

    func createDirectory(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.createDirectory(path)
    }

    func list(_ directory: String) throws(FileError) -> [String] {
        count { $0.others += 1 }
        return try inner.list(directory)
    }

    func syncDirectory(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.syncDirectory(path)
    }

    func rename(_ path: String, to newPath: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.rename(path, to: newPath)
    }

    func link(_ path: String, to newPath: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.link(path, to: newPath)
    }

    func remove(_ path: String) throws(FileError) {
        count { $0.others += 1 }
        try inner.remove(path)
    }

    var bootID: [UInt8] { inner.bootID }
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
        owner.count {
            $0.reads += 1
            $0.readBytes += buffer.count
        }
        return try inner.read(into: buffer, at: offset)
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
}
