import Glibc
public import GuestModel
import Synchronization
import SystemPackage

// New contents of a file are a clone of a cut's clone, or of the file as it is, which is then
// written to. The exchange clones them over the file, which stays the same one: a loop device that
// has it open need not know.
//
//   prepared    clone NEW exists, and an empty file for OLD
//   exchanged   OLD has what the file held, the file has NEW's blocks
//   ended       both are removed
//
// Lines of the entry, two for each file: `file NAME SECTOR PATH`, of NEW and of OLD. If the owner
// is dead, both are removed: what the file holds is not decided by them.

/// New contents of raw files.
final class ReflinkExchange: DiskExchange {
    struct Part: Sendable {
        let file: ReflinkDisks.File
        let source: OpenFile
        let new: OpenFile
        let old: OpenFile
    }

    private let group: ReflinkDisks
    private let journal: JournalEntry
    private let parts: [Part]
    private let readers: Mutex<[Int: BlockReader]> = Mutex([:])
    /// Of the files that were changed.
    private let exchanged = Mutex<[Int]>([])

    let disks: [GuestDisk]
    let beginsWithCut: Bool

    init(
        _ group: ReflinkDisks, _ entry: JournalEntry, _ parts: [Part], _ disks: [GuestDisk],
        isCut: Bool
    ) {
        self.group = group
        journal = entry
        self.parts = parts
        self.disks = disks
        beginsWithCut = isCut
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        try ReflinkCut.storedBlocks(of: parts[index].new, disks[index])
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let (part, disk) = (parts[index], disks[index])
        let reader = try readers.withLock { (readers) throws(GuestError) in
            if let reader = readers[index] { return reader }
            let reader = try BlockReader(part.new.path, of: disk)
            readers[index] = reader
            return reader
        }
        try reader.read(blocks, into: destination)
    }

    func write(
        _ blocks: BlockRange, ofDisk index: Int, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        try parts[index].new.write(blocks, from: source, end: disks[index].byteCount)
    }

    func finishWriting() throws(GuestError) -> any DiskCut {
        for part in parts {
            guard part.new.withDescriptor(system_fsync) == 0 else {
                throw GuestError.call("fsync", part.new.path.printable)
            }
            // So that the exchange finds little to write in the pause.
            guard part.source.withDescriptor(system_fdatasync) == 0 else {
                throw GuestError.call("fdatasync", part.source.path.printable)
            }
        }
        return try group.makeCut(of: parts)
    }

    // MARK: - In the pause

    func exchange() throws(GuestError) {
        do throws(GuestError) {
            for (index, part) in parts.enumerated() {
                try ReflinkExchange.clone(part.source, to: part.old)
                exchanged.withLock { $0.append(index) }
                try ReflinkExchange.clone(part.new, to: part.source)
            }
        } catch {
            try takeBack()
            throw error
        }
    }

    func takeBack() throws(GuestError) {
        for index in exchanged.withLock({ $0 }) {
            let part = parts[index]
            do throws(GuestError) {
                try ReflinkExchange.clone(part.old, to: part.source)
            } catch {
                throw GuestError(
                    code: error.code,
                    message: "\(part.source.path.printable) could not be put back to what it held "
                        + "(\(error.message)); that is in \(part.old.path.printable)",
                    errno: error.errno)
            }
            exchanged.withLock { $0.removeAll { $0 == index } }
        }
    }

    static func clone(_ source: OpenFile, to target: OpenFile) throws(GuestError) {
        guard target.clone(source) == 0 else {
            throw GuestError.call("FICLONE", target.path.printable)
        }
    }

    func end() throws(GuestError) {
        readers.withLock { $0 = [:] }
        for part in parts {
            try ReflinkCut.removeClone(part.new.path, journal)
            try ReflinkCut.removeClone(part.old.path, journal)
        }
        try journal.remove()
    }
}

extension ReflinkDisks: ExchangeableDisks {
    /// Makes clones in which new contents are written.
    public func prepareExchange(
        from cut: (any DiskCut)?
    ) throws(GuestError) -> any DiskExchange {
        let files = files
        try DiskNames.check(files.map(\.name))
        let token = Journal.makeToken()
        var record = JournalRecord(.reflinkExchange)
        var paths: [FilePath] = []
        for (index, file) in files.enumerated() {
            for half in 0..<2 {
                let path = try clonePath(file, index * 2 + half, token)
                record.lines.append([
                    "file", file.name, "\(file.sectorByteCount)",
                    JournalRecord.encode(path.bytes),
                ])
                paths.append(path)
            }
        }
        record.lines += try ReflinkCut.lines(ofDirectoriesOf: paths)
        let entry = try journal.add("exchange-\(token)", record)
        do throws(GuestError) {
            var origins: [OpenFile]?
            if let cut = cut as? ReflinkCut { origins = try self.origins(in: cut, files) }
            var parts: [ReflinkExchange.Part] = []
            var disks: [GuestDisk] = []
            for (index, file) in files.enumerated() {
                let flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW
                let part = ReflinkExchange.Part(
                    file: file, source: try OpenFile(file.path, O_RDWR | O_NONBLOCK),
                    new: try OpenFile(paths[index * 2], flags, 0o600),
                    old: try OpenFile(paths[index * 2 + 1], flags, 0o600))
                for clone in [part.new, part.old] { try ReflinkCut.probe(clone, part.source) }
                try ReflinkExchange.clone(origins?[index] ?? part.source, to: part.new)
                disks.append(try ReflinkDisks.disk(file, part.source.status()))
                parts.append(part)
            }
            return ReflinkExchange(self, entry, parts, disks, isCut: origins != nil)
        } catch {
            for path in paths { try? ReflinkCut.removeClone(path, entry) }
            try? entry.remove()
            throw error
        }
    }

    /// The clones of files in a cut; nil if one is missing or has another size.
    private func origins(
        in cut: ReflinkCut, _ files: [File]
    ) throws(GuestError) -> [OpenFile]? {
        var origins: [OpenFile] = []
        for file in files {
            let disk = try ReflinkDisks.disk(file, ReflinkDisks.open(file).status())
            guard let clone = try cut.clone(of: file.name),
                clone.disk.byteCount == disk.byteCount
            else { return nil }
            origins.append(clone.file)
        }
        return origins
    }

    /// A cut that consists of clones of new contents, made at once.
    func makeCut(of parts: [ReflinkExchange.Part]) throws(GuestError) -> any DiskCut {
        let token = Journal.makeToken()
        var record = JournalRecord(.reflink)
        var paths: [FilePath] = []
        for (index, part) in parts.enumerated() {
            let path = try clonePath(part.file, index, token)
            record.lines.append([
                "file", part.file.name, "\(part.file.sectorByteCount)",
                JournalRecord.encode(path.bytes),
            ])
            paths.append(path)
        }
        record.lines += try ReflinkCut.lines(ofDirectoriesOf: paths)
        let entry = try journal.add("cut-\(token)", record)
        do throws(GuestError) {
            for (path, part) in zip(paths, parts) {
                let clone = try OpenFile(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
                try ReflinkCut.probe(clone, part.new)
                try ReflinkExchange.clone(part.new, to: clone)
                guard clone.withDescriptor(system_fsync) == 0 else {
                    throw GuestError.call("fsync", clone.path.printable)
                }
                try Journal.sync(path.removingLastComponent())
            }
            record.isMade = true
            try entry.replace(record)
            if let cut = try ReflinkCut(standing: entry) { return cut }
            throw GuestError(
                code: .unavailable, message: "a clone of the new contents has vanished")
        } catch {
            for path in paths { try? ReflinkCut.removeClone(path, entry) }
            try? entry.remove()
            throw error
        }
    }
}
