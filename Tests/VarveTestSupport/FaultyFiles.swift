import CheckpointStore
package import PackStore
import Synchronization

/// Wraps files and fails at the n-th call that changes something.
package final class FaultyFiles: RepositoryFiles {
    /// The calls that fail from some call on.
    package enum Lasting: Sendable, CaseIterable {
        /// Every call: as for a process that is killed.
        case everything
        /// Calls that need space on the disk, which is full.
        case growth

        fileprivate func errno(_ call: String) -> Int32? {
            switch self {
            case .everything: 5
            case .growth: ["pwrite", "open", "mkdir", "link"].contains(call) ? 28 : nil
            }
        }
    }

    private struct State {
        var lasting: (callsUntil: Int, failure: Lasting, didFail: Bool)?
        var callsUntilFailure: Int?
        var errno: Int32 = 5
        var callCount = 0
        var event: (callsUntil: Int, body: @Sendable () -> Void)?
        var readEvent: (path: String, offset: UInt64, body: @Sendable () -> Void)?
    }

    private let inner: any RepositoryFiles
    private let state = Mutex(State())

    package init(_ inner: any RepositoryFiles) {
        self.inner = inner
    }

    /// Makes the n-th changing call from now fail; 0 is the next one.
    package func failCall(_ count: Int?, errno: Int32) {
        state.withLock { state in
            state.callsUntilFailure = count
            state.errno = errno
        }
    }

    /// Makes the n-th changing call from now and later calls fail.
    package func failCalls(from count: Int, _ failure: Lasting) {
        state.withLock { $0.lasting = (count, failure, false) }
    }

    /// Ends the effect of `failCalls`.
    ///
    /// - Returns: true if any call has failed.
    @discardableResult
    package func endFailing() -> Bool {
        state.withLock { state in
            defer { state.lasting = nil }
            return state.lasting?.didFail ?? false
        }
    }

    /// Runs a closure before the n-th changing call, or check of the store's place, from now.
    package func before(call count: Int, _ body: @escaping @Sendable () -> Void) {
        state.withLock { $0.event = (count, body) }
    }

    /// Runs a closure before the next read of a byte of a file.
    package func beforeRead(
        of path: String, at offset: UInt64, _ body: @escaping @Sendable () -> Void
    ) {
        state.withLock { $0.readEvent = (path, offset, body) }
    }

    fileprivate func willRead(_ path: String, _ range: Range<UInt64>) {
        let event = state.withLock { state -> (@Sendable () -> Void)? in
            guard let event = state.readEvent, event.path == path, range.contains(event.offset)
            else { return nil }
            state.readEvent = nil
            return event.body
        }
        event?()
    }

    /// True if the closure given to `before` has not been run.
    package var isEventAhead: Bool { state.withLock { $0.event != nil } }

    /// Changing calls so far.
    package var callCount: Int { state.withLock { $0.callCount } }

    fileprivate func check(_ call: String, _ path: String) throws(FileError) {
        let event = state.withLock { state -> (@Sendable () -> Void)? in
            guard let event = state.event else { return nil }
            state.event = event.callsUntil == 0 ? nil : (event.callsUntil - 1, event.body)
            return event.callsUntil == 0 ? event.body : nil
        }
        event?()
        let code = state.withLock { state -> Int32? in
            state.callCount += 1
            if let lasting = state.lasting {
                if lasting.callsUntil > 0 {
                    state.lasting?.callsUntil -= 1
                } else if let errno = lasting.failure.errno(call) {
                    state.lasting?.didFail = true
                    return errno
                }
            }
            guard let left = state.callsUntilFailure else { return nil }
            state.callsUntilFailure = left == 0 ? nil : left - 1
            return left == 0 ? state.errno : nil
        }
        if let code { throw FileError(call: call, path: path, errno: code) }
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        if mode == .create || mode == .createNew { try check("open", path) }
        return FaultyFile(try inner.open(path, mode), path, self)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        try check("mkdir", path)
        try inner.createDirectory(path)
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        try inner.list(directory)
    }

    package func syncDirectory(_ path: String) throws(FileError) {
        try check("fsync", path)
        try inner.syncDirectory(path)
    }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        try check("rename", path)
        try inner.rename(path, to: newPath)
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        try check("link", path)
        try inner.link(path, to: newPath)
    }

    package func remove(_ path: String) throws(FileError) {
        try check("unlink", path)
        try inner.remove(path)
    }

    package func checkPlace(writing pack: String?) throws(FileError) {
        try check("stat", pack ?? "")
        try inner.checkPlace(writing: pack)
    }

    package func foreignOwner() throws(FileError) -> UInt32? { try inner.foreignOwner() }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try inner.openDirectory(path)
    }

    package var bootID: [UInt8] { inner.bootID }
}

private final class FaultyFile: RepositoryFile {
    private let inner: any RepositoryFile
    private let path: String
    private let owner: FaultyFiles

    init(_ inner: any RepositoryFile, _ path: String, _ owner: FaultyFiles) {
        self.inner = inner
        self.path = path
        self.owner = owner
    }

    func byteCount() throws(FileError) -> UInt64 { try inner.byteCount() }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        owner.willRead(path, offset..<offset + UInt64(buffer.count))
        return try inner.read(into: buffer, at: offset)
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        do throws(FileError) {
            try owner.check("pwrite", path)
        } catch {
            // A failed write has written half of its data.
            let half = UnsafeRawBufferPointer(rebasing: bytes[..<(bytes.count / 2)])
            try inner.write(half, at: offset)
            throw error
        }
        try inner.write(bytes, at: offset)
    }

    func startWriteback(_ range: Range<UInt64>) { inner.startWriteback(range) }

    func truncate(to byteCount: UInt64) throws(FileError) {
        try owner.check("ftruncate", path)
        try inner.truncate(to: byteCount)
    }

    func sync() throws(FileError) {
        try owner.check("fdatasync", path)
        try inner.sync()
    }

    func tryLock() throws(FileError) -> Bool { try inner.tryLock() }
    func isLocked() throws(FileError) -> Bool { try inner.isLocked() }
}
