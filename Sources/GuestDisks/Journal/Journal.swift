import Glibc
import GuestModel
import Synchronization
import SystemPackage

// What the cuts of one guest leave outside of this process is noted here before it is created:
//
//   DIRECTORY                     0700, owned by this user
//   DIRECTORY/cut-TOKEN           0600; one entry a cut, locked by flock(2) while its owner lives
//   DIRECTORY/exchange-TOKEN      the same for the new contents of a revert
//   DIRECTORY/metadata-TOKEN      the same for the metadata snapshot of a pool
//   DIRECTORY/.TOKEN.new          an entry that is being written
//
// An entry is replaced as a whole: written to a new file that is locked first, synced, renamed over
// the old one, and the directory synced. So an entry that is not locked has no living owner, and
// an entry that exists is whole.

/// The state directory of one guest's disks.
struct Journal: Sendable {
    let directory: FilePath

    /// Opens the directory, and creates it if it is missing.
    init(_ directory: FilePath) throws(GuestError) {
        self.directory = directory
        if system_makeDirectory(directory) != 0 && errno != EEXIST {
            throw GuestError.call("mkdir", directory.printable)
        }
        let folder = try OpenFile(directory, O_RDONLY | O_DIRECTORY)
        let status = try folder.status()
        guard status.st_uid == geteuid(), status.st_mode & 0o022 == 0 else {
            throw GuestError(
                code: .unavailable,
                message: "\(directory.printable), which notes what cuts of disks create, is "
                    + "another user's or may be written by others; give it to this user with "
                    + "mode 0700")
        }
    }

    /// A new token: 16 hexadecimal digits.
    static func makeToken() -> String {
        let digits = String(UInt64.random(in: 0...UInt64.max), radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    /// The entries, in no order, as they are named.
    func names() throws(GuestError) -> [String] {
        guard let names = system_list(directory) else {
            throw GuestError.call("readdir", directory.printable)
        }
        return names.filter { name in
            ["cut-", "metadata-", "exchange-"].contains { name.hasPrefix($0) }
        }
    }

    /// What an entry says; nil if there is none of this name, or it is not whole.
    func read(_ name: String) throws(GuestError) -> JournalRecord? {
        let path = directory.appending(name)
        let descriptor = system_open(path, O_RDONLY | O_NOFOLLOW)
        guard descriptor >= 0 else {
            if errno == ENOENT || errno == ELOOP { return nil }
            throw GuestError.call("open", path.printable)
        }
        return try Journal.record(OpenFile(descriptor: descriptor, path: path))
    }

    /// Takes over an entry that has no living owner; nil if it has one, or does not exist.
    func take(_ name: String) throws(GuestError) -> JournalEntry? {
        let path = directory.appending(name)
        let descriptor = system_open(path, O_RDWR | O_NOFOLLOW)
        guard descriptor >= 0 else {
            if errno == ENOENT || errno == ELOOP { return nil }
            throw GuestError.call("open", path.printable)
        }
        let file = OpenFile(descriptor: descriptor, path: path)
        guard file.withDescriptor(system_lock) == 0 else {
            if errno == EWOULDBLOCK { return nil }
            throw GuestError.call("flock", path.printable)
        }
        // Its owner may have replaced or removed the file between the two calls.
        let own = try file.status()
        var named = stat()
        guard system_lstat(path, &named) == 0, named.st_ino == own.st_ino,
            named.st_dev == own.st_dev, let record = try Journal.record(file)
        else {
            file.withDescriptor(system_unlock)
            return nil
        }
        return JournalEntry(self, name, record, file)
    }

    /// Writes a new entry, which this process owns.
    func add(_ name: String, _ record: JournalRecord) throws(GuestError) -> JournalEntry {
        let entry = JournalEntry(self, name, record, try write(name, record))
        try sync()
        return entry
    }

    /// Removes files of entries that were being written when their owner died.
    func removeTornEntries() throws(GuestError) {
        guard let names = system_list(directory) else {
            throw GuestError.call("readdir", directory.printable)
        }
        for name in names where name.hasPrefix(".") && name.hasSuffix(".new") {
            let path = directory.appending(name)
            let descriptor = system_open(path, O_RDWR | O_NOFOLLOW)
            guard descriptor >= 0 else { continue }
            let file = OpenFile(descriptor: descriptor, path: path)
            if file.withDescriptor(system_lock) == 0 { _ = system_unlink(path) }
        }
    }

    // MARK: - Files

    fileprivate func write(
        _ name: String, _ record: JournalRecord
    ) throws(GuestError) -> OpenFile {
        let path = directory.appending(name)
        let newPath = directory.appending(".\(name).new")
        let file = try OpenFile(newPath, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
        do throws(GuestError) {
            guard file.withDescriptor(system_lock) == 0 else {
                throw GuestError.call("flock", newPath.printable)
            }
            var done = 0
            let bytes = Array(record.text.utf8)
            while done < bytes.count {
                let count = file.withDescriptor { file in
                    bytes[done...].withUnsafeBytes { system_pwrite(file, $0, at: done) }
                }
                guard count > 0 else { throw GuestError.call("pwrite", newPath.printable) }
                done += count
            }
            guard file.withDescriptor(system_fsync) == 0 else {
                throw GuestError.call("fsync", newPath.printable)
            }
            guard system_rename(newPath, path) == 0 else {
                throw GuestError.call("rename", newPath.printable)
            }
        } catch {
            _ = system_unlink(newPath)
            throw error
        }
        return file
    }

    /// Makes the names in the directory durable.
    func sync() throws(GuestError) {
        try Journal.sync(directory)
    }

    /// Makes the names in a directory durable.
    static func sync(_ directory: FilePath) throws(GuestError) {
        let folder = try OpenFile(directory, O_RDONLY | O_DIRECTORY)
        guard folder.withDescriptor(system_fsync) == 0 else {
            throw GuestError.call("fsync", directory.printable)
        }
    }

    private static func record(_ file: OpenFile) throws(GuestError) -> JournalRecord? {
        let status = try file.status()
        guard status.st_mode & S_IFMT == S_IFREG, status.st_size <= JournalRecord.byteLimit else {
            return nil
        }
        var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
        let count = file.withDescriptor { file in
            bytes.withUnsafeMutableBytes { system_pread(file, $0, at: 0) }
        }
        guard count >= 0 else { throw GuestError.call("pread", file.path.printable) }
        return String(validating: bytes[..<count], as: UTF8.self).flatMap {
            JournalRecord(text: $0)
        }
    }
}

/// One entry of the journal, owned by this process until it is removed or this is dropped.
final class JournalEntry: Sendable {
    private struct State: Sendable {
        var record: JournalRecord
        var file: OpenFile
    }

    private let journal: Journal
    let name: String
    private let state: Mutex<State>

    fileprivate init(
        _ journal: Journal, _ name: String, _ record: JournalRecord, _ file: OpenFile
    ) {
        self.journal = journal
        self.name = name
        state = Mutex(State(record: record, file: file))
    }

    deinit {
        // Closing is not enough: a program that another thread is starting briefly has every
        // descriptor.
        state.withLock { $0.file.withDescriptor(system_unlock) }
    }

    var record: JournalRecord { state.withLock { $0.record } }

    /// Calls `body` with the descriptor that holds its lock; a process that inherits it owns the
    /// entry as well.
    func withLock<T: Sendable>(
        _ body: (Int32) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try state.withLock { $0.file }.withDescriptor(body)
    }

    /// Replaces what it says, durably.
    ///
    /// On failure either is in the journal.
    func replace(_ record: JournalRecord) throws(GuestError) {
        try state.withLock { (state) throws(GuestError) in
            let file = try journal.write(name, record)
            state.file.withDescriptor(system_unlock)
            state = State(record: record, file: file)
            try journal.sync()
        }
    }

    /// Removes it: nothing that it names is left.
    func remove() throws(GuestError) {
        let path = journal.directory.appending(name)
        guard system_unlink(path) == 0 || errno == ENOENT else {
            throw GuestError.call("unlink", path.printable)
        }
        // If the removal is lost with the host's power, what it names is looked for in vain.
        try journal.sync()
    }
}
