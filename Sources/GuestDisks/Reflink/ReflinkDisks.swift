import Glibc
public import GuestModel
import Synchronization
public import SystemPackage

// A cut of raw files is a clone of each, made by FICLONE: it shares all blocks of the file until
// one of them is written. ioctl_ficlone(2); Documentation/filesystems/fiemap.rst.
//
//   prepared   the entry is in the journal; the clones exist and are empty; the file is synced
//   cut        each clone has the file's blocks
//   made       clones and their names are synced, and the entry says so: on the first call that
//              reads, so not in the pause
//   released   the clones and the entry are removed
//
// A line of the entry: `file NAME SECTOR CLONE`, with the path of the clone.

/// Disks that are raw files on XFS, btrfs, or another file system with reflinks.
///
/// For guests whose disks are files: those of your program, of a virtual machine monitor, or of a
/// Xen domain. A cut clones each file (`FICLONE`) at the cost of its extents, not of its size:
/// about 4 ms for each GiB of XFS if it is not badly fragmented. The clone contains what is in the
/// page cache. What a writer has only in its own memory must be written to the file before the cut.
///
/// No one may write to the files between the pause and the end of `cut`, or the cut is not of one
/// instant: neither with several files, nor with one that is written by several calls. An exception
/// are requests that the guest issues again after a restore, as a suspended Xen domain does: each
/// may be in the cut or not. After `cut` the files may be written while the cut is read.
///
/// What changed is known on XFS and btrfs; on other file systems every block is compared. The time
/// that `FICLONE` takes to write dirty pages back is part of the cut, and no drain is measured.
///
/// A file that is not on such a file system is refused by `prepareCut`. So are block devices: for
/// thin volumes there is `ThinDisks`, for others `HookedDisks`.
///
/// A session whose guest is this process, or is stopped by it, reverts the files together with the
/// memory (`CaptureSession.revert`).
///
/// Thread-safe. Calls block as long as the file system takes.
public final class ReflinkDisks: JournaledDisks, RevertibleDisks {
    /// A raw file that is a disk.
    public struct File: Hashable, Sendable {
        /// The disk's name: 1 to 255 bytes.
        public var name: String
        /// The file; a symbolic link is followed.
        public var path: FilePath
        /// The disk's logical block size in bytes: 512 or 4096.
        public var sectorByteCount: Int

        /// Describes a file.
        public init(name: String, path: FilePath, sectorByteCount: Int = 512) {
            self.name = name
            self.path = path
            self.sectorByteCount = sectorByteCount
        }
    }

    let journal: Journal
    private let cloneDirectory: FilePath?
    private let current: Mutex<[File]>

    /// The files that the next cut will contain; may be changed between captures.
    public var files: [File] {
        get { current.withLock { $0 } }
        set { current.withLock { $0 = newValue } }
    }

    /// Creates a group.
    ///
    /// - Parameters:
    ///   - files: the disks.
    ///   - stateDirectory: notes what cuts create. One directory for each guest, which only this
    ///     user can write to, on storage that survives a reboot; created with mode 0700 if missing.
    ///   - cloneDirectory: where clones are created, on the file system of the files. Nil: each
    ///     beside its file, with a name that begins with a dot.
    /// - Throws: `unavailable` if others may write to the state directory; `callFailed`.
    public init(
        files: [File], stateDirectory: FilePath, cloneDirectory: FilePath? = nil
    ) throws(GuestError) {
        journal = try Journal(stateDirectory)
        self.cloneDirectory = cloneDirectory
        current = Mutex(files)
    }

    /// The disks with their sizes as they are now.
    ///
    /// - Throws: `unsupported` for anything but a regular file; `sizeMismatch` if a file does not
    ///   consist of whole blocks; `invalidOption` for a name or a block size that no disk can have;
    ///   `callFailed`.
    public func disks() throws(GuestError) -> [GuestDisk] {
        let files = files
        try DiskNames.check(files.map(\.name))
        var disks: [GuestDisk] = []
        for file in files {
            disks.append(try ReflinkDisks.disk(file, ReflinkDisks.open(file).status()))
        }
        return disks
    }

    /// Syncs the files, and creates the clones, still empty.
    ///
    /// - Throws: `unsupported` if a file system has no reflinks; the message names the remedy.
    public func prepareCut() throws(GuestError) -> any DiskCut {
        let files = files
        try DiskNames.check(files.map(\.name))
        let token = Journal.makeToken()
        var record = JournalRecord(.reflink)
        var disks: [GuestDisk] = []
        var parts: [ReflinkCut.Part] = []
        for (index, file) in files.enumerated() {
            let source = try ReflinkDisks.open(file)
            disks.append(try ReflinkDisks.disk(file, source.status()))
            let clone = try clonePath(file, index, token)
            record.lines.append([
                "file", file.name, "\(file.sectorByteCount)", JournalRecord.encode(clone.bytes),
            ])
            parts.append(ReflinkCut.Part(file: file, source: source, clonePath: clone))
        }
        record.lines += try ReflinkCut.lines(ofDirectoriesOf: parts.map(\.clonePath))
        let entry = try journal.add("cut-\(token)", record)
        let cut = ReflinkCut(journal: entry, disks: disks, parts: parts)
        do throws(GuestError) {
            try cut.prepare()
        } catch {
            try? cut.release()
            throw error
        }
        return cut
    }

    /// The cut with a name, if it was made, is not owned by another process, and its clones exist.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        guard name.hasPrefix("cut-"), !name.contains("/"), let entry = try journal.take(name),
            entry.record.kind == .reflink, entry.record.isMade
        else { return nil }
        return try ReflinkCut(standing: entry)
    }

    // MARK: - Reverts

    /// Sets the size of a file.
    public func resize(_ disk: String, to byteCount: UInt64) throws(GuestError) {
        let file = try openForWriting(disk)
        guard file.withDescriptor({ system_resize($0, Int(clamping: byteCount)) }) == 0 else {
            throw GuestError.call("ftruncate", file.path.printable)
        }
    }

    /// Writes blocks of a file, through the page cache.
    public func write(
        _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        let file = try openForWriting(disk)
        try file.write(blocks, from: source, end: UInt64(try file.status().st_size))
    }

    private func openForWriting(_ disk: String) throws(GuestError) -> OpenFile {
        // `==` takes different bytes for one name if they look equal.
        guard let file = files.first(where: { $0.name.utf8.elementsEqual(disk.utf8) }) else {
            throw GuestError(
                code: .unavailable,
                message: "there is no file of disk '\(PrintableText.escape(disk))' any more")
        }
        return try OpenFile(file.path, O_WRONLY | O_NONBLOCK)
    }

    // MARK: - Leftovers

    /// The entries of the state directory, whether a living process owns them or not.
    public func leftovers() throws(GuestError) -> [DiskLeftover] {
        try Leftovers.list(journal, [.reflink, .reflinkExchange]) { record in
            ReflinkDisks.clones(record).map(\.printable)
        }
    }

    /// Removes the clones that no living process owns, and returns them.
    ///
    /// Take the cut that is still needed with `standingCut` first, or create the session that does:
    /// this also drops cuts that were made.
    @discardableResult
    public func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        try Leftovers.drop(journal, [.reflink, .reflinkExchange]) { (entry) throws(GuestError) in
            let clones = ReflinkDisks.clones(entry.record)
            for clone in clones { try ReflinkCut.removeClone(clone, entry) }
            return clones.map(\.printable)
        }
    }

    private static func clones(_ record: JournalRecord) -> [FilePath] {
        record.lines("file").compactMap { words in
            words.last.flatMap { JournalRecord.decode($0) }.map { FilePath(bytes: $0) }
        }
    }

    // MARK: - Files

    /// `.NAME.varve-cut-TOKEN-INDEX`, beside the file or in the clone directory.
    func clonePath(
        _ file: File, _ index: Int, _ token: String
    ) throws(GuestError) -> FilePath {
        guard let path = system_realpath(file.path) else {
            throw GuestError.call("realpath", file.path.printable)
        }
        let bytes = path.bytes
        let slash = bytes.lastIndex(of: UInt8(ascii: "/")) ?? 0
        var directory = Array(bytes[...slash])
        if let cloneDirectory {
            guard let found = system_realpath(cloneDirectory) else {
                throw GuestError.call("realpath", cloneDirectory.printable)
            }
            directory = found.bytes + [UInt8(ascii: "/")]
        }
        // The file's own name is only for people: one that would be too long is cut.
        return FilePath(
            bytes: directory + [UInt8(ascii: ".")] + bytes[(slash + 1)...].prefix(200)
                + Array("\(ReflinkCut.mark)\(token)-\(index)".utf8))
    }

    static func open(_ file: File) throws(GuestError) -> OpenFile {
        // A pipe without a writer must not block.
        try OpenFile(file.path, O_RDONLY | O_NONBLOCK)
    }

    static func disk(_ file: File, _ status: stat) throws(GuestError) -> GuestDisk {
        guard [512, 4096].contains(file.sectorByteCount) else {
            throw GuestError(
                code: .invalidOption,
                message: "disk \(file.name) cannot have blocks of \(file.sectorByteCount) bytes; "
                    + "its block size is 512 or 4096")
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            let isDevice = status.st_mode & S_IFMT == S_IFBLK
            throw GuestError(
                code: .unsupported,
                message: "disk \(file.name), \(file.path.printable), is "
                    + (isDevice
                        ? "a block device, which cannot be cloned; use a thin volume (ThinDisks), "
                            + "a command of yours (HookedDisks), or a raw file on XFS or btrfs"
                        : "not a regular file; name a raw file on XFS or btrfs"))
        }
        guard Int(status.st_size) % file.sectorByteCount == 0 else {
            throw GuestError(
                code: .sizeMismatch,
                message: "disk \(file.name), \(file.path.printable), has \(status.st_size) bytes, "
                    + "which is not a multiple of \(file.sectorByteCount); extend it")
        }
        return GuestDisk(
            name: file.name, byteCount: UInt64(status.st_size),
            sectorByteCount: file.sectorByteCount)
    }
}
