// The one seam between the store and the disk. All of the store's own file access goes through it,
// so that tests can put a disk there that fails, tears writes and forgets what was not synced.
// LMDB reaches its files by itself; what it holds is derived and can be lost.
//
// What the store relies on:
//  - A write is durable once `sync()` of its file returned; a file's existence and name once
//    `syncDirectory` of its directory returned. Nothing else is.
//  - A failed or short write may have left any part of itself behind.
//  - After a failed `sync()` nothing written since the last good one may be relied on.

/// A directory of files; paths are relative to the repository.
package protocol RepositoryFiles: AnyObject, Sendable {
    /// Opens a regular file; anything else is a failure (`FileError.isOdd`), and is not touched.
    func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile
    /// Makes a directory; one that exists is fine.
    func createDirectory(_ path: String) throws(FileError)
    /// The names in a directory, without `.` and `..`, in no order.
    func list(_ directory: String) throws(FileError) -> [String]
    /// Makes names in a directory durable.
    func syncDirectory(_ path: String) throws(FileError)
    /// Gives a file another name, over one that has it.
    func rename(_ path: String, to newPath: String) throws(FileError)
    /// Gives a file a second name, which nothing has.
    ///
    /// Both names stand for the same bytes; either can go. Not every file system can.
    func link(_ path: String, to newPath: String) throws(FileError)
    /// Removes a file.
    func remove(_ path: String) throws(FileError)
    /// Fails (`FileError.Finding.moved`) if the path at which the store was opened leads to
    /// something else now, or if the file `repository` or a pack in it was replaced; or
    /// (`FileError.Finding.lockLost`) if the lock is held and its file was removed or replaced.
    ///
    /// Four calls of the system. It says what is true at some moment between call and return.
    ///
    /// - Parameter pack: the path of a pack that was opened to be written; nil: none.
    func checkPlace(writing pack: String?) throws(FileError)
    /// The number of the user whose store it is, if it is not this process's own.
    ///
    /// By the owner of its directory: whoever may write there in another user's name (the system's
    /// administrator) would make files that lock the owner out.
    func foreignOwner() throws(FileError) -> UInt32?
    /// Opens a directory, for LMDB: it reaches its files past this seam.
    func openDirectory(_ path: String) throws(FileError) -> OpenDirectory
    /// Which run of the machine this is: what was written in another one and not synced may be
    /// lost. The index, which LMDB writes past this seam, is trusted by it.
    var bootID: [UInt8] { get }
}

extension RepositoryFiles {
    /// Replaces a small file of the store's own directory, or makes it, and syncs.
    ///
    /// If this throws, the file has its old bytes or the new ones, and `NAME.new` may be left,
    /// which the next replacement empties.
    package func replace(_ name: String, with bytes: [UInt8]) throws(FileError) {
        let file = try open(name + ".new", .create)
        try file.write(bytes, at: 0)
        try file.sync()
        try self.rename(name + ".new", to: name)
        try syncDirectory("")
    }
}

/// How a file is opened.
package enum FileMode: Sendable {
    /// It must exist.
    case read
    /// It must exist.
    case update
    /// It is made, empty; one that exists is emptied.
    case create
    /// It is made, empty; one that exists is a failure, `EEXIST`, and stays as it is.
    case createNew
    /// It is made if it does not exist.
    case lock
}

/// An open file.
///
/// Calls may come from several threads at once. It closes when it is released.
package protocol RepositoryFile: AnyObject, Sendable {
    /// Bytes in the file.
    func byteCount() throws(FileError) -> UInt64
    /// Fills `buffer` from `offset`; returns fewer bytes only at the end of the file.
    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(FileError)
        -> Int
    /// Writes all of `bytes`.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError)
    /// Asks the system to begin bringing bytes to the disk, so that a later `sync()` finds little
    /// left to do.
    ///
    /// A hint: nothing is durable by it, it is no barrier, and what goes wrong shows in `sync()`.
    func startWriteback(_ range: Range<UInt64>)
    /// Cuts the file.
    func truncate(to byteCount: UInt64) throws(FileError)
    /// Returns when all that was written is durable. `fdatasync`.
    func sync() throws(FileError)
    /// Takes the lock on the file, or says that another holder has it. The lock goes with the
    /// file's closing, so a dead process leaves none. `flock`.
    func tryLock() throws(FileError) -> Bool
    /// True if somebody else holds the lock, as far as the system tells; takes nothing, so nobody
    /// ever waits for who asks.
    func isLocked() throws(FileError) -> Bool
}
