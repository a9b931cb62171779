import CheckpointFormat
import CheckpointIndex
import Glibc
import LMDBTables
package import PackStore
import SystemPackage

// A reader takes no lock that a writer would wait for, waits for no other process, and writes
// nothing but its leases and its place in LMDB's table of readers; in a store of another user, and
// where it may not write, not even those. What it is given:
//
//   the index is sound and has read all that is published      the index
//   a writer lives                                             the index; the writer keeps it up
//   the index is sound and behind                              a copy of it, brought up to date
//   it is not sound, not there, or another user's              one made from the packs
//   the packs are damaged, and the index knows what was there  the index, or its copy
//   the packs are damaged, and it does not                     one of whatever is whole
//
// Copies and what is made from packs are files without names in $TMPDIR, of this process alone.
// With the last two the damage is known from the beginning, and named by whoever asks for it.

/// Why a reader has an index of its own, which goes with it.
public struct TemporaryIndex: Hashable, Sendable {
    /// Why it does not use the repository's: half a sentence.
    public let reason: String
    /// True if something odd is in the way: a file of the index that is a link, or a pipe.
    public let isOdd: Bool
    /// True if it was made from the packs alone, and not from the repository's index.
    public internal(set) var isFromPacks: Bool
}

extension Repository {
    static func openForReading(_ path: FilePath, _ reader: PackReader) throws -> OpenedIndex {
        if let owner = try reader.files.foreignOwner() {
            let reason = "it belongs to another user (number \(owner))"
            return try salvage(
                reader, TemporaryIndex(reason: reason, isOdd: false, isFromPacks: true))
        }
        let (found, problem) = try sharedIndex(reader)
        guard let index = found else { return try salvage(reader, problem) }
        if try isCurrent(index, reader) { return OpenedIndex(index: index) }
        // While a writer lives it keeps the index current by itself.
        if try isBeingWritten(reader) { return try asFarAsItGoes(index, reader) }
        // It may have ended just now.
        if try isCurrent(index, reader) { return OpenedIndex(index: index) }
        do {
            return try current(index, reader)
        } catch let error as LMDBError where !error.isDamage {
            // No room for a copy, or a writer that came meanwhile.
            return try asFarAsItGoes(index, reader)
        } catch let error as FileError where error.isFull || error.isForbidden {
            return try asFarAsItGoes(index, reader)
        } catch let error as RepositoryError where error.code == .noSpace {
            return try asFarAsItGoes(index, reader)
        }
    }

    /// The same repository, read with an index made from the packs alone: for one whose own index
    /// may be damaged.
    package func withoutIndex() throws -> Repository {
        let opened = try Repository.salvage(
            reader, TemporaryIndex(reason: "it may be damaged", isOdd: false, isFromPacks: true))
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: opened, lock: nil)
    }

    /// The repository's own index if it may be used, or why not.
    private static func sharedIndex(_ reader: PackReader) throws -> (Index?, TemporaryIndex?) {
        func refused(_ reason: String, isOdd: Bool = false) -> (Index?, TemporaryIndex?) {
            (nil, TemporaryIndex(reason: reason, isOdd: isOdd, isFromPacks: true))
        }
        do {
            guard try !IndexMark.isForeign(reader.files) else {
                return refused("it may not be whole since the machine or a command was cut short")
            }
            let index = try openShared(reader)
            guard try index.isSound(repository: reader.repository) else {
                return refused("it is being made, or is not this repository's")
            }
            return (index, nil)
        } catch let error as FileError {
            if error.isMissing { return refused("there is none") }
            guard error.finding != nil || error.isForbidden else { throw error }
            return refused(RepositoryError(error).message, isOdd: error.isOdd)
        } catch let error as LMDBError {
            if error.isMissing { return refused("there is none") }
            guard error.isDamage || error.isBusy || error.isForbidden else { throw error }
            return refused(error.isDamage ? "it is damaged" : "\(error.call): \(error.reason)")
        }
    }

    /// Opens the index as far as it may be: where its table of readers cannot be written, without.
    private static func openShared(_ reader: PackReader) throws -> Index {
        do {
            return try Index.open(reader.files, .reading)
        } catch let error as FileError where error.finding == nil && error.isForbidden {
            return try Index.open(reader.files, .readingWithoutLocks)
        } catch let error as LMDBError where error.isForbidden {
            return try Index.open(reader.files, .readingWithoutLocks)
        }
    }

    /// True if a writer lives.
    private static func isBeingWritten(_ reader: PackReader) throws(FileError) -> Bool {
        do throws(FileError) {
            return try reader.files.open(lockPath, .read).isLocked()
        } catch {
            guard error.isMissing || error.isForbidden else { throw error }
            return false
        }
    }

    /// A copy of a sound index, with what it lacks.
    private static func current(_ original: Index, _ reader: PackReader) throws -> OpenedIndex {
        let index = try original.makePrivateCopy()
        let temporary = TemporaryIndex(
            reason: "it lacks what was written last", isOdd: false, isFromPacks: false)
        do {
            var replay = try IndexReplay(reader: reader, index: index)
            let packs = try PackName.list(reader.files)
            let end = try replay.run(packs: packs)
            if let confirmed = end.confirmedEnd {
                try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
            }
            return OpenedIndex(index: index, temporary: temporary)
        } catch let error as RepositoryError {
            guard let corruption = error.corruption else { throw error }
            let mark = try index.readMark()
            let packs = try PackName.list(reader.files)
            if mark.namesBytes, try reaches(mark, packs, reader) {
                return OpenedIndex(index: index, damage: [corruption], temporary: temporary)
            }
            return try salvage(
                reader, TemporaryIndex(reason: "\(corruption)", isOdd: false, isFromPacks: true))
        }
    }

    /// An index of all that is whole, for this process alone: nothing that is built past damage
    /// may be kept, since a pack that is restored from a copy changes the order.
    package static func salvage(
        _ reader: PackReader, _ temporary: TemporaryIndex? = nil
    ) throws -> OpenedIndex {
        let index = try Index.makePrivate(repository: reader.repository)
        var replay = try IndexReplay(reader: reader, index: index, toleratesDamage: true)
        let end = try replay.run(packs: try PackName.list(reader.files))
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        return OpenedIndex(index: index, damage: replay.damage, temporary: temporary)
    }

    /// True if no pack has bytes behind a read mark.
    private static func reaches(
        _ mark: ReadMark, _ packs: [UInt32], _ reader: PackReader
    ) throws -> Bool {
        guard let newest = packs.last, newest >= mark.pack else { return true }
        guard newest == mark.pack else { return false }
        return try reader.files.open(PackName.path(newest), .read).byteCount()
            <= UInt64(mark.offset)
    }

    /// True if the index has read the newest pack to its end, and none is missing after that.
    private static func isCurrent(_ index: Index, _ reader: PackReader) throws -> Bool {
        let mark = try index.readMark()
        if let end = try StoreHead(reader.files, reader.repository).confirmed, end > mark {
            return false
        }
        guard let newest = try PackName.list(reader.files).last else { return !mark.namesBytes }
        guard newest == mark.pack else { return false }
        return try reader.files.open(PackName.path(newest), .read).byteCount()
            == UInt64(mark.offset)
    }

    /// A sound index that cannot be brought up to date now: it shows no checkpoints later than its
    /// own.
    ///
    /// If the packs end before what it has read, that is damage.
    private static func asFarAsItGoes(_ index: Index, _ reader: PackReader) throws -> OpenedIndex {
        let mark = try index.readMark()
        guard mark.namesBytes, try !index.pruned().contains(mark.pack) else {
            return OpenedIndex(index: index)
        }
        do throws(RepositoryError) {
            let file = try reader.file(mark.pack)
            // The mark is an address, and a rewritten pack may be shorter.
            let isShort = try file.ends(before: mark.offset)
            guard isShort else { return OpenedIndex(index: index) }
            throw reader.corrupted(
                mark, .publish,
                FormatError(offset: 0, reason: "the pack ends before what was read of it"))
        } catch {
            guard let corruption = error.corruption else { throw error }
            // Prune may have removed it just now.
            if try index.pruned().contains(mark.pack) { return OpenedIndex(index: index) }
            return OpenedIndex(index: index, damage: [corruption])
        }
    }
}
