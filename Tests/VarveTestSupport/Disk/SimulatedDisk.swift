import CheckpointStore
import Glibc
import PackStore
import Synchronization
package import SystemPackage

/// A disk in memory that loses unsynced data, fails on request, and lists every call.
///
/// Processes access it through `boot()`; after `kill()` or `cutPower(_:)` their files are dead:
/// each call fails and changes nothing, so that remaining threads of a dead process cannot write.
/// LMDB's files are in a real directory outside the simulation; see `IndexCopies` for the effect of
/// a crash on them.
package final class SimulatedDisk: Sendable {
    /// The calls that the store uses.
    package enum CallKind: String, Sendable {
        case open, create, openLock, makeDirectory, list, syncDirectory, rename, link, remove
        case size, read, write, truncate, sync, lock

        /// True if it can change what a crash leaves.
        package var isChange: Bool {
            switch self {
            case .create, .openLock, .makeDirectory, .syncDirectory, .rename, .link, .remove,
                .write, .truncate, .sync:
                true
            case .open, .list, .size, .read, .lock: false
            }
        }

        /// The system call that errors name.
        var systemCall: String {
            switch self {
            case .open, .create, .openLock: "open"
            case .makeDirectory: "mkdir"
            case .list: "readdir"
            case .syncDirectory: "fsync"
            case .rename: "rename"
            case .link: "link"
            case .remove: "unlink"
            case .size: "fstat"
            case .read: "pread"
            case .write: "pwrite"
            case .truncate: "ftruncate"
            case .sync: "fdatasync"
            case .lock: "flock"
            }
        }
    }

    /// One call.
    package struct Call: Sendable, CustomStringConvertible {
        package let kind: CallKind
        package let path: String
        package let byteCount: Int

        package var description: String { "\(kind.rawValue) \(path) \(byteCount)" }
    }

    /// The effect of a failing call.
    package struct Failure: Sendable {
        package let errno: Int32
        /// A write leaves a random part of its data, a sync makes a part of the changes durable.
        package let leavesPart: Bool

        package init(errno: Int32, leavesPart: Bool) {
            self.errno = errno
            self.leavesPart = leavesPart
        }
    }

    struct State: Sendable {
        var image: DiskImage
        var random: SeededGenerator
        var process = 0
        var bootCount = 0
        /// The process that has the lock of each file.
        var locks: [Int: Int] = [:]
        var nextHandle = 1
        var calls: [Call] = []
        var failure: (call: Int, failure: Failure)?
        var byteCountMax: Int?
        var observer: (@Sendable (_ count: Int, Call, DiskImage) -> Void)?
    }

    private let state: Mutex<State>
    /// The index's directory: the `path` with which a repository on this disk is opened.
    package let indexRoot: FilePath
    let realFiles: PosixFiles

    /// Creates a disk.
    ///
    /// - Parameters:
    ///   - image: its contents.
    ///   - indexRoot: a real directory for LMDB's files.
    ///   - seed: determines the partial effects of failing calls.
    package init(_ image: DiskImage = DiskImage(), indexRoot: FilePath, seed: UInt64) {
        state = Mutex(State(image: image, random: SeededGenerator(seed: seed)))
        self.indexRoot = indexRoot
        realFiles = PosixFiles(root: indexRoot)
    }

    // MARK: - For tests

    /// The files of a process that begins.
    package func boot() -> SimulatedFiles {
        let (process, boot) = state.withLock { ($0.process, $0.bootCount) }
        return SimulatedFiles(disk: self, process: process, bootCount: boot)
    }

    /// Its present contents.
    package var image: DiskImage {
        get { state.withLock { $0.image } }
        set { state.withLock { $0.image = newValue } }
    }

    /// Every call so far.
    package var calls: [Call] { state.withLock { $0.calls } }

    /// Makes the n-th call from now fail, once; 0 is the next one, nil: none fails.
    package func failCall(_ count: Int?, _ failure: Failure = Failure(errno: 5, leavesPart: true)) {
        state.withLock { state in
            state.failure = count.map { (state.calls.count + $0, failure) }
        }
    }

    /// True if a failure was requested and has not happened.
    package var isFailureAhead: Bool { state.withLock { $0.failure != nil } }

    /// Makes the disk full at this many bytes; nil: unlimited.
    package func limit(byteCount: Int?) {
        state.withLock { $0.byteCountMax = byteCount }
    }

    /// Calls `observer` after each call, with the number of calls so far and the disk.
    ///
    /// It is called with the disk's lock held and must not use the disk.
    package func observe(_ observer: (@Sendable (Int, Call, DiskImage) -> Void)?) {
        state.withLock { $0.observer = observer }
    }

    /// Ends every process: their writes are kept, their locks are released.
    package func kill() {
        state.withLock { state in
            state.process += 1
            state.locks = [:]
            state.failure = nil
            state.image = state.image.afterKill()
        }
    }

    /// Ends the machine: unsynced changes are kept, lost or torn.
    package func cutPower(_ random: inout SeededGenerator) {
        var generator = random
        state.withLock { state in
            state.process += 1
            state.bootCount += 1
            state.locks = [:]
            state.failure = nil
            state.image = state.image.afterPowerCut(&generator)
        }
        random = generator
    }

    // MARK: - For its files

    /// Makes a call: records it, fails it if requested, and otherwise runs `body`.
    ///
    /// - Parameter failing: the partial effect of a failing call.
    func perform<T: Sendable>(
        _ call: Call, process: Int,
        failing: (inout State) -> Void = { _ in },
        _ body: (inout State) throws(FileError) -> T
    ) throws(FileError) -> T {
        let result: Result<T, FileError> = state.withLock { state in
            func failed(_ errno: Int32) -> Result<T, FileError> {
                .failure(FileError(call: call.kind.systemCall, path: call.path, errno: errno))
            }
            guard state.process == process else { return failed(EIO) }
            let number = state.calls.count
            state.calls.append(call)
            defer { state.observer?(state.calls.count, call, state.image) }
            if let (planned, failure) = state.failure, planned == number {
                state.failure = nil
                if failure.leavesPart { failing(&state) }
                return failed(failure.errno)
            }
            do throws(FileError) {
                return .success(try body(&state))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Closes an open file: its lock is released.
    func close(handle: Int) {
        state.withLock { state in
            state.locks = state.locks.filter { $0.value != handle }
        }
    }
}
