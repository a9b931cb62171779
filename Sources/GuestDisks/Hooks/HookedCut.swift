import Glibc
import GuestModel
import Synchronization
import SystemPackage

/// A cut that a command makes.
final class HookedCut: DiskCut {
    private struct State: Sendable {
        var disks: [GuestDisk]
        var readers: [Int: BlockReader] = [:]
        /// The command may have made something.
        var isBegun: Bool
        var isCut: Bool
        var isMade: Bool
    }

    private let group: HookedDisks
    private let journal: JournalEntry
    private let state: Mutex<State>

    var disks: [GuestDisk] { state.withLock { $0.disks } }
    var name: String { journal.name }
    /// Its name for the command.
    var token: String { HookedCut.token(journal.name) }

    init(_ group: HookedDisks, _ entry: JournalEntry, _ disks: [GuestDisk], isMade: Bool) {
        self.group = group
        journal = entry
        state = Mutex(State(disks: disks, isBegun: isMade, isCut: isMade, isMade: isMade))
    }

    static func token(_ name: String) -> String { "varve-\(name.dropFirst("cut-".count))" }

    static func record(_ disks: [GuestDisk]) -> JournalRecord {
        var record = JournalRecord(.hooked)
        record.lines = disks.map {
            ["disk", $0.name, "\($0.byteCount)", "\($0.sectorByteCount)"]
        }
        return record
    }

    /// The disks of an entry; nil if a line is damaged.
    static func disks(_ record: JournalRecord) -> [GuestDisk]? {
        var disks: [GuestDisk] = []
        for words in record.lines("disk") {
            let words = Array(words)
            guard words.count == 3, let byteCount = UInt64(words[1]), let sector = Int(words[2])
            else { return nil }
            disks.append(
                GuestDisk(name: words[0], byteCount: byteCount, sectorByteCount: sector))
        }
        return disks
    }

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        try state.withLock { (state) throws(GuestError) in
            precondition(!state.isBegun, "a cut is made once")
            state.isBegun = true
            let start = ContinuousClock.now
            let answer = try journal.withLock { (lock) throws(GuestError) in
                try group.cut(token, within: budget, lock: lock)
            }
            let elapsed = ContinuousClock.now - start
            let drain = min(try answer.drain(), elapsed)
            if let disks = try answer.disks(isRequired: false) {
                guard disks.map(\.name) == state.disks.map(\.name) else {
                    throw GuestError(
                        code: .callFailed,
                        message: "\(answer.asked) printed other disks than 'disks' did, or in "
                            + "another order; see HookedDisks for what it must print")
                }
                state.disks = disks
            }
            state.isCut = true
            return DiskCutTimes(drain: drain, cut: elapsed - drain)
        }
    }

    /// Notes, once, that the cut was made.
    private func settle(_ state: inout State) throws(GuestError) {
        guard state.isCut else {
            throw GuestError(
                code: .unavailable, message: "this cut was not made; take another one")
        }
        guard !state.isMade else { return }
        var record = HookedCut.record(state.disks)
        record.isMade = true
        try journal.replace(record)
        state.isMade = true
    }

    private func disk(_ index: Int) throws(GuestError) -> GuestDisk {
        try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            return state.disks[index]
        }
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        let disk = try disk(index)
        guard let earlier = earlier as? HookedCut,
            let old = earlier.disks.first(where: { $0.name == disk.name }),
            var found = try group.changed([token, disk.name, earlier.token], disk.blockCount)
        else { return nil }
        let page = UInt64(Page.byteCount)
        if disk.byteCount > old.byteCount {
            found.join(old.byteCount / page..<disk.blockCount)
        } else if disk.byteCount < old.byteCount, disk.byteCount % page != 0 {
            // The last block reads as zeros behind the new end.
            found.join(disk.blockCount - 1..<disk.blockCount)
        }
        return found
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        let disk = try disk(index)
        return try group.changed([token, disk.name], disk.blockCount)
            ?? BlockRanges.all(disk.blockCount)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let reader = try state.withLock { (state) throws(GuestError) in
            try settle(&state)
            if let reader = state.readers[index] { return reader }
            let disk = state.disks[index]
            let path = try group.open(token, disk.name)
            do throws(GuestError) {
                try HookedCut.check(path, disk)
                let reader = try BlockReader(path, of: disk)
                state.readers[index] = reader
                return reader
            } catch {
                throw GuestError(
                    code: error.code,
                    message: "what the command opened for the cut of disk \(disk.name) cannot be "
                        + "read: \(error.message)", errno: error.errno)
            }
        }
        try reader.read(blocks, into: destination)
    }

    /// Throws unless a path is a file or device of at least a disk's size.
    private static func check(_ path: FilePath, _ disk: GuestDisk) throws(GuestError) {
        let file = try OpenFile(path, O_RDONLY | O_NONBLOCK)
        let status = try file.status()
        var byteCount = UInt64(max(0, status.st_size))
        switch status.st_mode & S_IFMT {
        case S_IFREG: break
        case S_IFBLK:
            guard file.withDescriptor({ system_deviceSize($0, &byteCount) }) == 0 else {
                throw GuestError.call("BLKGETSIZE64", path.printable)
            }
        default:
            throw GuestError(
                code: .unsupported,
                message: "\(path.printable), where disk \(disk.name) is to be read, is neither a "
                    + "file nor a block device; correct the command that cuts it")
        }
        guard byteCount >= disk.byteCount else {
            throw GuestError(
                code: .sizeMismatch,
                message: "\(path.printable) has \(byteCount) bytes and disk \(disk.name) "
                    + "\(disk.byteCount); correct the command that cuts it")
        }
    }

    func release() throws(GuestError) {
        let isBegun = state.withLock { state in
            state.readers = [:]
            return state.isBegun
        }
        if isBegun { try group.release(token) }
        try journal.remove()
    }
}
