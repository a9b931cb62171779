import CheckpointFormat
import CheckpointIndex
import Glibc
package import LMDBTables
package import PackStore
import SystemPackage

// A reader takes no lock that a writer would wait for, does not wait for other processes, and
// writes only its leases and its entry in LMDB's reader table; in a store of another user, or where
// it may not write, not even those. It gets:
//
//   the index is sound and has read all that is published      the index
//   a writer is running                                        the index; the writer updates it
//   the index is sound but lags                                a copy of it, brought up to date
//   it is unsound, missing, or another user's                  one built from the packs
//   the packs are damaged, and the index knows what was there  the index, or its copy
//   the packs are damaged, and it does not                     one of everything undamaged
//
// Copies and indexes built from packs are unlinked files in $TMPDIR, private to the process. In the
// last two cases the damage is known from the start, and reported to callers that ask for it.

/// Why a reader has a temporary index of its own.
public struct TemporaryIndex: Hashable, Sendable {
    /// Why it does not use the repository's index: a clause.
    public let reason: String
    /// True if a file of the index is of the wrong kind, such as a link or a pipe.
    public let isOdd: Bool
    /// True if it was built from the packs alone, and not from the repository's index.
    public internal(set) var isFromPacks: Bool
}

extension Repository {
    static func openForReading(
        _ path: FilePath, _ reader: PackReader
    ) throws(IndexError) -> OpenedIndex {
        if let owner = try IndexError.ofFiles(reader.files.foreignOwner()) {
            let reason = "it belongs to another user (UID \(owner))"
            return try salvage(
                reader, TemporaryIndex(reason: reason, isOdd: false, isFromPacks: true))
        }
        let (found, problem) = try sharedIndex(reader)
        guard let index = found else { return try salvage(reader, problem) }
        if try isCurrent(index, reader) { return OpenedIndex(index: index) }
        // A running writer keeps the index up to date.
        if try IndexError.ofFiles(isBeingWritten(reader)) {
            return try asFarAsItGoes(index, reader)
        }
        // The writer may have ended just now.
        if try isCurrent(index, reader) { return OpenedIndex(index: index) }
        do throws(IndexError) {
            return try current(index, reader)
        } catch {
            // No space for a copy, or a writer started in the meantime.
            let goesOn =
                switch error {
                case .call: !error.isDamage
                case .file(let error): error.isFull || error.isForbidden
                case .repository(let error): error.code == .noSpace
                case .damagedValue, .contradiction: false
                }
            guard goesOn else { throw error }
            return try asFarAsItGoes(index, reader)
        }
    }

    /// The same repository, read with an index built from the packs alone, in case its own index is
    /// damaged.
    package func withoutIndex() throws(IndexError) -> Repository {
        let opened = try Repository.salvage(
            reader, TemporaryIndex(reason: "it may be damaged", isOdd: false, isFromPacks: true))
        return Repository(
            path: path, id: id, files: files, reader: reader, opened: opened, lock: nil)
    }

    /// The repository's own index if it may be used, or why it may not.
    private static func sharedIndex(
        _ reader: PackReader
    ) throws(IndexError) -> (Index?, TemporaryIndex?) {
        func refused(_ reason: String, isOdd: Bool = false) -> (Index?, TemporaryIndex?) {
            (nil, TemporaryIndex(reason: reason, isOdd: isOdd, isFromPacks: true))
        }
        do throws(IndexError) {
            guard try !IndexError.ofFiles(IndexMark.isForeign(reader.files)) else {
                return refused("it may be damaged, or incomplete after a power failure")
            }
            let index = try openShared(reader)
            guard try index.isSound(repository: reader.repository) else {
                return refused("it is being created, or is not this repository's")
            }
            return (index, nil)
        } catch {
            if case .file(let error) = error {
                if error.isMissing { return refused("there is none") }
                guard error.finding != nil || error.isForbidden else { throw .file(error) }
                return refused(RepositoryError(error).message, isOdd: error.isOdd)
            }
            if error.isMissing { return refused("there is none") }
            guard error.isDamage || error.isBusy || error.isForbidden else { throw error }
            return refused(error.isDamage ? "it is damaged" : "\(error)")
        }
    }

    /// Opens the shared index; without locks if its reader table cannot be written.
    private static func openShared(_ reader: PackReader) throws(IndexError) -> Index {
        do throws(IndexError) {
            return try Index.open(reader.files, .reading)
        } catch {
            let isForbidden =
                if case .file(let error) = error {
                    error.finding == nil && error.isForbidden
                } else {
                    error.isForbidden
                }
            guard isForbidden else { throw error }
            return try Index.open(reader.files, .readingWithoutLocks)
        }
    }

    /// True if a writer is running.
    private static func isBeingWritten(_ reader: PackReader) throws(FileError) -> Bool {
        do throws(FileError) {
            return try reader.files.open(lockPath, .read).isLocked()
        } catch {
            guard error.isMissing || error.isForbidden else { throw error }
            return false
        }
    }

    /// A copy of a sound index, brought up to date.
    private static func current(
        _ original: Index, _ reader: PackReader
    ) throws(IndexError) -> OpenedIndex {
        let index = try original.makePrivateCopy()
        let temporary = TemporaryIndex(
            reason: "it lacks the most recent writes", isOdd: false, isFromPacks: false)
        do throws(IndexError) {
            var replay = try IndexReplay(reader: reader, index: index)
            let packs = try IndexError.ofPacks(PackName.list(reader.files))
            let end = try replay.run(packs: packs)
            if let confirmed = end.confirmedEnd {
                try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
            }
            return OpenedIndex(index: index, temporary: temporary)
        } catch {
            guard let corruption = error.corruption else { throw error }
            let mark = try index.readMark()
            let packs = try IndexError.ofPacks(PackName.list(reader.files))
            if mark.namesBytes, try reaches(mark, packs, reader) {
                return OpenedIndex(index: index, damage: [corruption], temporary: temporary)
            }
            return try salvage(
                reader, TemporaryIndex(reason: "\(corruption)", isOdd: false, isFromPacks: true))
        }
    }

    /// An index of all undamaged data, private to this process: an index built past damage must not
    /// be kept, since restoring a pack from a copy changes the order.
    package static func salvage(
        _ reader: PackReader, _ temporary: TemporaryIndex? = nil
    ) throws(IndexError) -> OpenedIndex {
        let index = try Index.makePrivate(repository: reader.repository)
        var replay = try IndexReplay(reader: reader, index: index, toleratesDamage: true)
        let end = try replay.run(
            packs: try IndexError.ofPacks(PackName.list(reader.files)))
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        return OpenedIndex(index: index, damage: replay.damage, temporary: temporary)
    }

    /// True if no pack extends beyond a read mark.
    private static func reaches(
        _ mark: ReadMark, _ packs: [UInt32], _ reader: PackReader
    ) throws(IndexError) -> Bool {
        guard let newest = packs.last, newest >= mark.pack else { return true }
        guard newest == mark.pack else { return false }
        return try byteCount(of: newest, reader) <= UInt64(mark.offset)
    }

    /// True if the index has read the newest pack to its end, and no later pack is missing.
    private static func isCurrent(
        _ index: Index, _ reader: PackReader
    ) throws(IndexError) -> Bool {
        let mark = try index.readMark()
        let head = try IndexError.ofFiles(StoreHead(reader.files, reader.repository))
        if let end = head.confirmed, end > mark { return false }
        guard let newest = try IndexError.ofPacks(PackName.list(reader.files)).last else {
            return !mark.namesBytes
        }
        guard newest == mark.pack else { return false }
        return try byteCount(of: newest, reader) == UInt64(mark.offset)
    }

    private static func byteCount(
        of pack: UInt32, _ reader: PackReader
    ) throws(IndexError) -> UInt64 {
        try IndexError.ofFiles(reader.files.open(PackName.path(pack), .read).byteCount())
    }

    /// A sound index that cannot be brought up to date now: it lists no checkpoints later than its
    /// read mark.
    ///
    /// If the packs end before that mark, they are damaged.
    private static func asFarAsItGoes(
        _ index: Index, _ reader: PackReader
    ) throws(IndexError) -> OpenedIndex {
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
                FormatError(offset: 0, reason: "the pack ends before indexed data"))
        } catch {
            guard let corruption = error.corruption else { throw .repository(error) }
            // Prune may just have removed it.
            if try index.pruned().contains(mark.pack) { return OpenedIndex(index: index) }
            return OpenedIndex(index: index, damage: [corruption])
        }
    }
}
