import CheckpointStore
import Glibc
package import PackStore

/// The files of a simulated disk as seen by one process.
package final class SimulatedFiles: RepositoryFiles {
    fileprivate let disk: SimulatedDisk
    fileprivate let process: Int
    package let bootID: [UInt8]

    init(disk: SimulatedDisk, process: Int, bootCount: Int) {
        self.disk = disk
        self.process = process
        bootID = Array("simulated boot \(bootCount)".utf8)
    }

    fileprivate func call<T: Sendable>(
        _ kind: SimulatedDisk.CallKind, _ path: String, byteCount: Int = 0,
        failing: (inout SimulatedDisk.State) -> Void = { _ in },
        _ body: (inout SimulatedDisk.State) throws(FileError) -> T
    ) throws(FileError) -> T {
        let call = SimulatedDisk.Call(kind: kind, path: path, byteCount: byteCount)
        return try disk.perform(call, process: process, failing: failing, body)
    }

    private static func missing(_ call: String, _ path: String) -> FileError {
        FileError(call: call, path: path, errno: ENOENT)
    }

    package func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile {
        let kind: SimulatedDisk.CallKind =
            switch mode {
            case .read, .update: .open
            case .create, .createNew: .create
            case .lock: .openLock
            }
        let (number, handle) = try call(kind, path) { (state) throws(FileError) -> (Int, Int) in
            if mode == .createNew, state.image.number(path) != nil {
                throw FileError(call: "open", path: path, errno: EEXIST)
            }
            var found: Int?
            switch mode {
            case .read, .update: found = state.image.number(path)
            case .create, .createNew, .lock: found = state.image.create(path)
            }
            guard let number = found else { throw SimulatedFiles.missing("open", path) }
            if case .create = mode, state.image.contents(path)?.isEmpty == false {
                state.image.change(number, .truncate(0))
            }
            state.nextHandle += 1
            return (number, state.nextHandle)
        }
        return SimulatedFile(self, path: path, number: number, handle: handle)
    }

    package func createDirectory(_ path: String) throws(FileError) {
        try call(.makeDirectory, path) { (state) throws(FileError) in
            guard state.image.createDirectory(path) else {
                throw SimulatedFiles.missing("mkdir", path)
            }
        }
        if path == "index" { try disk.realFiles.createDirectory(path) }
    }

    package func list(_ directory: String) throws(FileError) -> [String] {
        let names = try call(.list, directory) { (state) throws(FileError) -> [String] in
            guard let names = state.image.names(directory) else {
                throw SimulatedFiles.missing("readdir", directory)
            }
            return names
        }
        return directory == "index" ? names + (try disk.realFiles.list(directory)) : names
    }

    package func syncDirectory(_ path: String) throws(FileError) {
        try call(.syncDirectory, path) { (state) throws(FileError) in
            guard state.image.syncDirectory(path) else {
                throw SimulatedFiles.missing("open", path)
            }
        }
    }

    package func rename(_ path: String, to newPath: String) throws(FileError) {
        try call(.rename, path) { (state) throws(FileError) in
            guard state.image.rename(path, to: newPath) else {
                throw SimulatedFiles.missing("rename", path)
            }
        }
    }

    package func link(_ path: String, to newPath: String) throws(FileError) {
        try call(.link, path) { (state) throws(FileError) in
            guard state.image.link(path, to: newPath) else {
                throw SimulatedFiles.missing("link", path)
            }
        }
    }

    /// A simulated disk is never moved.
    package func checkPlace(writing pack: String?) {}

    package func foreignOwner() throws(FileError) -> UInt32? { nil }

    package func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        try disk.realFiles.openDirectory(path)
    }

    package func remove(_ path: String) throws(FileError) {
        let isSimulated = try call(.remove, path) { (state) throws(FileError) -> Bool in
            let isSimulated = state.image.remove(path)
            guard isSimulated || path.hasSuffix(".mdb") else {
                throw SimulatedFiles.missing("unlink", path)
            }
            return isSimulated
        }
        if !isSimulated { try disk.realFiles.remove(path) }
    }
}

/// An open file of a simulated disk.
private final class SimulatedFile: RepositoryFile {
    private let files: SimulatedFiles
    private let path: String
    private let number: Int
    private let handle: Int

    init(_ files: SimulatedFiles, path: String, number: Int, handle: Int) {
        self.files = files
        self.path = path
        self.number = number
        self.handle = handle
    }

    deinit {
        files.disk.close(handle: handle)
    }

    func byteCount() throws(FileError) -> UInt64 {
        try files.call(.size, path) { state in
            UInt64(state.image.files[number]?.visible.count ?? 0)
        }
    }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        let address = UInt(bitPattern: buffer.baseAddress)
        let count = buffer.count
        return try files.call(.read, path, byteCount: count) { state -> Int in
            guard let bytes = state.image.files[number]?.visible, Int(offset) < bytes.count,
                let start = UnsafeMutableRawPointer(bitPattern: address)
            else { return 0 }
            let part = bytes[Int(offset)..<min(bytes.count, Int(offset) + count)]
            UnsafeMutableRawBufferPointer(start: start, count: count).copyBytes(from: part)
            return part.count
        }
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {
        let new = Array(bytes)
        let place = Int(offset)
        try files.call(
            .write, path, byteCount: new.count,
            failing: { state in
                let kept = Int.random(in: 0...new.count, using: &state.random)
                state.image.change(number, .write(Array(new[..<kept]), at: place))
            },
            { (state) throws(FileError) in
                let old = state.image.files[number]?.visible.count ?? 0
                let growth = max(0, place + new.count - old)
                let free = state.byteCountMax.map { max(0, $0 - state.image.byteCount) } ?? .max
                guard growth > free else {
                    return state.image.change(number, .write(new, at: place))
                }
                // A full disk writes as much as it has room for.
                let kept = max(0, new.count - (growth - free))
                if kept > 0 { state.image.change(number, .write(Array(new[..<kept]), at: place)) }
                throw FileError(call: "pwrite", path: path, errno: ENOSPC)
            })
    }

    /// Gives no guarantee, so it does nothing: a power cut may lose any of the data.
    func startWriteback(_ range: Range<UInt64>) {}

    func truncate(to byteCount: UInt64) throws(FileError) {
        try files.call(.truncate, path, byteCount: Int(byteCount)) { state in
            state.image.change(number, .truncate(Int(byteCount)))
        }
    }

    func sync() throws(FileError) {
        try files.call(
            .sync, path,
            failing: { state in
                // The kernel has dropped some changes and treats all of them as written; dropped
                // pages may read as they were before.
                let seen = state.image.files[number]?.visible ?? []
                state.image.settle(number, &state.random)
                if Bool.random(using: &state.random) {
                    state.image.files[number]?.visible = seen
                } else if let kept = state.image.files[number]?.visible.count {
                    let missing = max(0, seen.count - kept)
                    state.image.files[number]?.visible += repeatElement(0, count: missing)
                }
            },
            { state in state.image.sync(number) })
    }

    func isLocked() throws(FileError) -> Bool {
        try files.call(.lock, path) { state in
            state.locks[number].map { $0 != handle } ?? false
        }
    }

    func tryLock() throws(FileError) -> Bool {
        try files.call(.lock, path) { state in
            if let holder = state.locks[number], holder != handle { return false }
            state.locks[number] = handle
            return true
        }
    }
}
