// The only interface between the store and the disk. All of the store's own file access goes
// through it, so that tests can substitute a disk that fails, tears writes and loses what was not
// synced. LMDB accesses its files directly; the index is derived data and may be lost.
//
// What the store relies on:
//  - A write is durable once `sync()` of its file has returned; a file's existence and name once
//    `syncDirectory` of its directory has returned. Nothing else is durable.
//  - A failed or short write may have written any part of its data.
//  - After a failed `sync()`, nothing written since the last successful one may be relied on.

/// A directory of files; paths are relative to the repository.
package protocol RepositoryFiles: AnyObject, Sendable {
    /// Opens a regular file; anything else is an error (`FileError.isOdd`) and is not touched.
    func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile
    /// Creates a directory; an existing one is accepted.
    func createDirectory(_ path: String) throws(FileError)
    /// The names in a directory, without `.` and `..`, unordered.
    func list(_ directory: String) throws(FileError) -> [String]
    /// Makes the names in a directory durable.
    func syncDirectory(_ path: String) throws(FileError)
    /// Renames a file, replacing any file of the new name.
    func rename(_ path: String, to newPath: String) throws(FileError)
    /// Gives a file a second name, which must be unused.
    ///
    /// Both names refer to the same file, and either can be removed. Not all file systems support
    /// this.
    func link(_ path: String, to newPath: String) throws(FileError)
    /// Removes a file.
    func remove(_ path: String) throws(FileError)
    /// Fails (`FileError.Finding.moved`) if the path at which the store was opened now leads
    /// elsewhere, or if the file `repository` or a pack in it was replaced; or
    /// (`FileError.Finding.lockLost`) if the lock is held and its file was removed or replaced.
    ///
    /// Costs four system calls. The answer was true at some moment between call and return.
    ///
    /// - Parameter pack: the path of a pack that was opened for writing; nil: none.
    func checkPlace(writing pack: String?) throws(FileError)
    /// The UID of the store's owner if it is not this process's own; nil otherwise.
    ///
    /// Decided by the owner of the directory: a user who may write there without being the owner
    /// (root) would create files that lock the owner out.
    func foreignOwner() throws(FileError) -> UInt32?
    /// Opens a directory, for LMDB, which accesses its files without this interface.
    func openDirectory(_ path: String) throws(FileError) -> OpenDirectory
    /// Identifies the boot of the machine: what was written during another one and not synced may
    /// be lost. The index, which LMDB writes without this interface, is trusted only within one
    /// boot.
    var bootID: [UInt8] { get }
}

extension RepositoryFiles {
    /// Replaces or creates a small file in the store's directory, and syncs.
    ///
    /// If this throws, the file has either its old or its new contents, and `NAME.new` may remain,
    /// which the next replacement overwrites.
    package func replace(_ name: String, with bytes: [UInt8]) throws(FileError) {
        let file = try open(name + ".new", .create)
        try file.write(bytes, at: 0)
        try file.sync()
        try self.rename(name + ".new", to: name)
        try syncDirectory("")
    }
}

/// How to open a file.
package enum FileMode: Sendable {
    /// The file must exist.
    case read
    /// The file must exist.
    case update
    /// The file is created empty; an existing one is truncated.
    case create
    /// The file is created empty; an existing one is an error, `EEXIST`, and is left unchanged.
    case createNew
    /// The file is created if it does not exist.
    case lock
}

/// An open file.
///
/// Methods may be called from several threads at once. The file is closed on release.
package protocol RepositoryFile: AnyObject, Sendable {
    /// The size of the file in bytes.
    func byteCount() throws(FileError) -> UInt64
    /// Fills `buffer` from `offset`; returns fewer bytes only at the end of the file.
    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(FileError)
        -> Int
    /// Writes all of `bytes`.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError)
    /// Asks the system to start writing a range to the disk, so that a later `sync()` has little
    /// left to do.
    ///
    /// A hint: it makes nothing durable, it is no barrier, and errors appear in `sync()`.
    func startWriteback(_ range: Range<UInt64>)
    /// Truncates the file.
    func truncate(to byteCount: UInt64) throws(FileError)
    /// Blocks until all that was written is durable. `fdatasync`.
    func sync() throws(FileError)
    /// Takes the lock on the file; false if another holder has it. The lock ends when the file is
    /// closed, so a dead process leaves none. `flock`.
    func tryLock() throws(FileError) -> Bool
    /// True if another holder has the lock, as far as the system can tell; does not take it, so it
    /// never delays a writer.
    func isLocked() throws(FileError) -> Bool
}
