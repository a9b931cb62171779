import Glibc
package import PackStore

// The file `index/open`: the index may contain data that is not on the disk yet.
//
// LMDB does not sync the index while it is open, so a power failure leaves an arbitrary version of
// each of its pages. A lost page reads as an earlier version, which is valid by itself: nothing
// inside LMDB's file can show the loss. So a mark is kept beside it. It contains the boot ID, and
//
//  - is created and synced before anything is written to the index,
//  - is removed by a writer that closes, after the index was synced.
//
// An index with the mark of another boot is deleted before LMDB opens it. When damage is found in
// the index, a mark with no boot ID is written, so that the next process that may write rebuilds
// it.

/// The mark beside an open index.
package enum IndexMark {
    private static let name = "open"
    private static let path = "\(StoreDirectory.index)/\(name)"
    private static let byteCountMax = 64

    /// True if the machine lost power or was reset while the index was open, or if damage was found
    /// in the index.
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

    /// Sets the mark; the index may be written once this returns.
    ///
    /// A mark that cannot be written is removed again, which is safe: the index was not written to,
    /// or it was deleted before. A partial mark would make every reader rebuild the index, for
    /// which a full disk has no space.
    package static func set(_ files: any RepositoryFiles) throws(FileError) {
        // A mark of this boot exists if a writer died; it may not have synced the mark.
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

    /// Makes the next open rebuild the index.
    package static func condemn(_ files: any RepositoryFiles) throws(FileError) {
        let file = try files.open(path, .create)
        try file.write(Array("damaged".utf8), at: 0)
        try file.sync()
        try files.syncDirectory(StoreDirectory.index)
    }

    /// Removes the mark if it is of this boot; the index must be synced before.
    ///
    /// If the index was removed together with its mark, the next open creates both.
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

    /// Deletes the index, except for the mark.
    package static func deleteIndex(_ files: any RepositoryFiles) throws(FileError) {
        for file in try files.list(StoreDirectory.index) where file != name {
            try files.remove("\(StoreDirectory.index)/\(file)")
        }
    }
}
