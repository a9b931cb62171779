import Glibc
package import PackStore

// The file `index/open`: the index may hold what is not on the disk yet.
//
// LMDB does not sync the index while it is open, so a power cut leaves any version of each of its
// pages. A lost page reads as an earlier one, and an earlier one says that all is well: nothing
// inside LMDB's file can tell. So the mark lies beside it. It holds the boot id, and
//
//  - is made and synced before anything is written to the index,
//  - is removed after the index was synced, by a writer that closes.
//
// An index with the mark of another boot is deleted before LMDB looks at it. Whoever meets damage
// in the index writes a mark of no boot at all, so the next one that may write makes it anew.

/// The mark beside an open index.
package enum IndexMark {
    private static let name = "open"
    private static let path = "\(StoreDirectory.index)/\(name)"
    private static let byteCountMax = 64

    /// True if the machine lost power, or was reset, while the index was open, or if somebody met
    /// damage in it.
    package static func isForeign(_ files: any RepositoryFiles) throws(FileError) -> Bool {
        guard let bytes = try read(files) else { return false }
        return bytes != files.bootID
    }

    private static func read(_ files: any RepositoryFiles) throws(FileError) -> [UInt8]? {
        do throws(FileError) {
            return try files.open(path, .read).readBytes(byteCountMax, at: 0)
        } catch {
            if error.isMissing { return nil }
            throw error
        }
    }

    /// Sets the mark; when this returns the index may be written.
    ///
    /// A mark that cannot be written is taken away again, with no harm done: nobody has written to
    /// the index, or it was deleted before. Half of one would make every reader make the index
    /// anew, for which a full disk has no room.
    package static func set(_ files: any RepositoryFiles) throws(FileError) {
        // One of this boot is there if a writer died; it may not have synced it.
        let isThere = try read(files) == files.bootID
        let file = try files.open(path, isThere ? .update : .create)
        do throws(FileError) {
            if !isThere { try file.write(files.bootID, at: 0) }
            try file.sync()
            try files.syncDirectory(StoreDirectory.index)
        } catch {
            if !isThere { try? files.remove(path) }
            throw error
        }
    }

    /// Makes the next opening make the index anew.
    package static func condemn(_ files: any RepositoryFiles) throws(FileError) {
        let file = try files.open(path, .create)
        try file.write(Array("damaged".utf8), at: 0)
        try file.sync()
        try files.syncDirectory(StoreDirectory.index)
    }

    /// Takes the mark away, if it is of this boot; the index was synced before.
    ///
    /// Where somebody has removed the index with its mark, the next opening makes both.
    package static func remove(_ files: any RepositoryFiles) throws(FileError) {
        if try isForeign(files) { return }
        do throws(FileError) {
            try files.remove(path)
        } catch {
            if !error.isMissing { throw error }
        }
        do throws(FileError) {
            try files.syncDirectory(StoreDirectory.index)
        } catch {
            if !error.isMissing { throw error }
        }
    }

    /// Deletes the index, but for the mark.
    package static func deleteIndex(_ files: any RepositoryFiles) throws(FileError) {
        for file in try files.list(StoreDirectory.index) where file != name {
            try files.remove("\(StoreDirectory.index)/\(file)")
        }
    }
}
