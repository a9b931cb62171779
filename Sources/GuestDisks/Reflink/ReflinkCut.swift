import Glibc
import GuestModel
import Synchronization
import SystemPackage

/// Clones of all files of a group.
final class ReflinkCut: DiskCut {
    /// In the name of each clone, before the token: nothing else is ever removed.
    static let mark = ".varve-cut-"

    struct Part: Sendable {
        let file: ReflinkDisks.File
        /// Nil for a cut that was found again.
        let source: OpenFile?
        let clonePath: FilePath
        /// Nil before it is created.
        var clone: OpenFile?
    }

    private struct State: Sendable {
        var disks: [GuestDisk]
        var parts: [Part]
        /// By index; opened when first read.
        var readers: [Int: BlockReader] = [:]
        var isCut = false
        var isMade = false
    }

    private let journal: JournalEntry
    private let state: Mutex<State>

    var disks: [GuestDisk] { state.withLock { $0.disks } }
    var name: String { journal.name }

    init(journal: JournalEntry, disks: [GuestDisk], parts: [Part]) {
        self.journal = journal
        state = Mutex(State(disks: disks, parts: parts))
    }

    /// A cut that was made before; nil if a clone is missing.
    init?(standing entry: JournalEntry) throws(GuestError) {
        var (disks, parts): ([GuestDisk], [Part]) = ([], [])
        for words in entry.record.lines("file") {
            let words = Array(words)
            guard words.count == 3, let sector = Int(words[1]),
                let bytes = JournalRecord.decode(words[2])
            else { return nil }
            let path = FilePath(bytes: bytes)
            let file = ReflinkDisks.File(name: words[0], path: path, sectorByteCount: sector)
            let descriptor = system_open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
            guard descriptor >= 0 else {
                if errno == ENOENT || errno == ELOOP { return nil }
                throw GuestError.call("open", path.printable)
            }
            let clone = OpenFile(descriptor: descriptor, path: path)
            disks.append(try ReflinkDisks.disk(file, clone.status()))
            parts.append(Part(file: file, source: nil, clonePath: path, clone: clone))
        }
        journal = entry
        state = Mutex(State(disks: disks, parts: parts, isCut: true, isMade: true))
    }

    // MARK: - Before the pause

    /// Creates the clones, and finds out whether their file systems can share blocks.
    func prepare() throws(GuestError) {
        try state.withLock { (state) throws(GuestError) in
            for index in state.parts.indices {
                let part = state.parts[index]
                guard let source = part.source else { continue }
                let clone = try OpenFile(
                    part.clonePath, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
                state.parts[index].clone = clone
                try ReflinkCut.probe(clone, source)
                // So that the clone finds little to write in the pause.
                guard source.withDescriptor(system_fdatasync) == 0 else {
                    throw GuestError.call("fdatasync", source.path.printable)
                }
            }
        }
    }

    /// Throws unless a file's blocks can be shared with a clone, which is empty afterwards.
    static func probe(_ clone: OpenFile, _ source: OpenFile) throws(GuestError) {
        // btrfs shares blocks only between files that are both written in place, or both not.
        if source.withDescriptor(system_isNocow) == 1 && clone.withDescriptor(system_isNocow) == 0 {
            guard clone.withDescriptor(system_setNocow) == 0 else {
                throw GuestError.call("FS_IOC_SETFLAGS", clone.path.printable)
            }
        }
        let status = try source.status()
        // All of a small file; a range of a larger one must end at a block of the file system.
        let block = Int(status.st_blksize)
        let length = Int(status.st_size) > block ? block : 0
        guard clone.clone(source, length) == 0 else {
            throw refusal(source.path, clone.path, errno)
        }
        guard clone.withDescriptor(system_truncate) == 0 else {
            throw GuestError.call("ftruncate", clone.path.printable)
        }
    }

    /// ioctl_ficlone(2), section ERRORS.
    private static func refusal(
        _ file: FilePath, _ clone: FilePath, _ code: Int32
    ) -> GuestError {
        let remedy = "move the disk to XFS (with reflink=1) or btrfs, or use a thin volume"
        return switch code {
        case EOPNOTSUPP, ENOTTY, ENOSYS, EINVAL:
            GuestError(
                code: .unsupported,
                message: "the file system of \(file.printable) cannot share blocks between files; "
                    + remedy, errno: code)
        case EXDEV:
            GuestError(
                code: .unsupported,
                message: "\(file.printable) and its clone \(clone.printable) are on different file "
                    + "systems; name a clone directory on the file system of the disk",
                errno: code)
        case ETXTBSY:
            GuestError(
                code: .unsupported,
                message: "\(file.printable) is used for swapping, and cannot be cloned; \(remedy)",
                errno: code)
        default: GuestError.call("FICLONE", file.printable, errno: code)
        }
    }

    // MARK: - In the pause

    /// Clones each file.
    ///
    /// The same calls write dirty pages first, so that wait is part of the time of the cut.
    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        let start = ContinuousClock.now
        try state.withLock { (state) throws(GuestError) in
            precondition(!state.isCut, "a cut is made once")
            for index in state.parts.indices {
                guard let source = state.parts[index].source, let clone = state.parts[index].clone
                else { continue }
                guard clone.clone(source) == 0 else {
                    throw ReflinkCut.refusal(source.path, clone.path, errno)
                }
                state.disks[index] = try ReflinkDisks.disk(state.parts[index].file, clone.status())
                guard ContinuousClock.now - start <= budget else {
                    throw GuestError(
                        code: .timedOut,
                        message:
                            "the cut of \(counted(state.parts.count, "file")) took longer than "
                            + "\(budget) and was given up at \(source.path.printable); allow "
                            + "more, or defragment the files")
                }
            }
            state.isCut = true
        }
        return DiskCutTimes(cut: ContinuousClock.now - start)
    }

    // MARK: - After it

    /// Makes the cut durable, once.
    private func settle(_ state: inout State) throws(GuestError) {
        guard state.isCut else {
            throw GuestError(
                code: .unavailable, message: "this cut was not made; take another one")
        }
        guard !state.isMade else { return }
        var directories: Set<FilePath> = []
        for part in state.parts {
            guard let clone = part.clone else { continue }
            guard clone.withDescriptor(system_fsync) == 0 else {
                throw GuestError.call("fsync", clone.path.printable)
            }
            directories.insert(part.clonePath.removingLastComponent())
        }
        for directory in directories { try Journal.sync(directory) }
        var record = journal.record
        record.isMade = true
        try journal.replace(record)
        state.isMade = true
    }

    private func clone(_ index: Int) throws(GuestError) -> (OpenFile, GuestDisk) {
        try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            guard let clone = state.parts[index].clone else {
                throw GuestError(
                    code: .unavailable, message: "the cut has no clone of disk \(index)")
            }
            return (clone, state.disks[index])
        }
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        let (clone, disk) = try clone(index)
        guard let earlier = earlier as? ReflinkCut,
            let other = earlier.disks.firstIndex(where: { $0.name == disk.name })
        else { return nil }
        let (earlierClone, earlierDisk) = try earlier.clone(other)
        return try ExtentComparison(
            new: clone, old: earlierClone, newByteCount: disk.byteCount,
            oldByteCount: earlierDisk.byteCount
        ).changedBlocks()
    }

    /// The clone of a disk by its name; nil if there is none.
    func clone(of name: String) throws(GuestError) -> (file: OpenFile, disk: GuestDisk)? {
        guard let index = disks.firstIndex(where: { $0.name.utf8.elementsEqual(name.utf8) })
        else { return nil }
        let (file, disk) = try clone(index)
        return (file, disk)
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let (clone, disk) = try clone(index)
        return try ReflinkCut.storedBlocks(of: clone, disk)
    }

    /// The blocks of a file that are not in holes.
    static func storedBlocks(
        of clone: OpenFile, _ disk: GuestDisk
    ) throws(GuestError) -> [BlockRange] {
        var found = BlockRanges(blockCount: disk.blockCount)
        let end = Int(clamping: disk.byteCount)
        var offset = 0
        while offset < end {
            let data = clone.withDescriptor { system_seekData($0, offset) }
            guard data >= 0 else {
                if errno == ENXIO { break }
                if errno == EINVAL { return BlockRanges.all(disk.blockCount) }
                throw GuestError.call("lseek", clone.path.printable)
            }
            let hole = clone.withDescriptor { system_seekHole($0, data) }
            guard hole >= 0 else { throw GuestError.call("lseek", clone.path.printable) }
            guard hole > data, found.add(bytes: UInt64(data)..<UInt64(hole)) else {
                return BlockRanges.all(disk.blockCount)
            }
            offset = hole
        }
        return found.ranges
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let reader = try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            if let reader = state.readers[index] { return reader }
            let reader = try BlockReader(
                state.parts[index].clonePath, of: state.disks[index])
            state.readers[index] = reader
            return reader
        }
        try reader.read(blocks, into: destination)
    }

    func release() throws(GuestError) {
        let parts = state.withLock { state in
            state.readers = [:]
            return state.parts
        }
        for part in parts { try ReflinkCut.removeClone(part.clonePath, journal) }
        try journal.remove()
    }

    /// A line of an entry for each directory of clones, so that it is known to be the same one
    /// later: `directory INODE PATH`.
    static func lines(ofDirectoriesOf clones: [FilePath]) throws(GuestError) -> [[String]] {
        var lines: [[String]] = []
        for path in Set(clones.map { $0.removingLastComponent() }) {
            let directory = try OpenFile(path, O_RDONLY | O_DIRECTORY)
            lines.append([
                "directory", "\(try directory.status().st_ino)", JournalRecord.encode(path.bytes),
            ])
        }
        return lines
    }

    /// Throws unless the directory of a clone is the one in which it was made: its file system may
    /// not be mounted.
    private static func checkDirectory(
        of clone: FilePath, _ entry: JournalEntry
    ) throws(GuestError) {
        let path = clone.removingLastComponent()
        let noted = entry.record.lines("directory").first {
            JournalRecord.decode($0.last ?? "") == path.bytes
        }
        var status = stat()
        let isThere = system_lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
        guard isThere, noted.map({ $0.first == "\(status.st_ino)" }) ?? true else {
            throw GuestError(
                code: .unavailable,
                message: "\(entry.name) has left \(clone.printable), whose directory is not the "
                    + "one of then; mount its file system, or remove the entry if it is gone for "
                    + "good")
        }
    }

    /// Removes a clone of an entry, if it exists and is one.
    static func removeClone(_ path: FilePath, _ entry: JournalEntry) throws(GuestError) {
        var status = stat()
        guard system_lstat(path, &status) == 0 else {
            guard errno == ENOENT || errno == ENOTDIR else {
                throw GuestError.call("lstat", path.printable)
            }
            return try checkDirectory(of: path, entry)
        }
        let name = path.lastComponent?.string ?? ""
        guard status.st_mode & S_IFMT == S_IFREG, name.hasPrefix("."), name.contains(mark) else {
            throw GuestError(
                code: .unavailable,
                message: "\(path.printable) is noted as the clone of a cut and is none; look at "
                    + "it, and remove it if it is of no use")
        }
        guard system_unlink(path) == 0 || errno == ENOENT else {
            throw GuestError.call("unlink", path.printable)
        }
    }
}
