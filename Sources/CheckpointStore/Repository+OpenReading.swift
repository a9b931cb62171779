import CheckpointFormat
import Glibc
import SystemPackage

// What a reader is given:
//
//   the index is sound and has read all that is published      the index
//   a writer lives                                             the index; the writer keeps it up
//   the repository cannot be written, the index is sound       the index, as far as it goes
//   otherwise, with the writer's lock held for moments         the index, brought up to date
//   the index is not sound and cannot be written, or has no    an index of whatever is whole, of
//   room on the disk                                           this process alone
//   the packs are damaged, and the index knows what was there  the index
//   the packs are damaged, and it does not                     an index of whatever is whole, of
//                                                              this process alone
//
// With the last two the damage is known from the beginning, and named by whoever asks for it.

extension Repository {
    static func openForReading(
        _ directory: String, _ path: FilePath, _ reader: PackReader
    ) throws -> OpenedIndex {
        // A writer may be rebuilding the index, or be about to finish: look again for ten seconds.
        for _ in 0..<500 {
            if try !IndexMark.isForeign(reader.files),
                let index = try? Index.open(directory: directory, isReadOnly: false),
                try index.isSound(repository: reader.repository)
            {
                if try isCurrent(index, reader) { return OpenedIndex(index: index) }
                // While a writer lives it keeps the index current by itself.
                guard let lock = try? reader.files.open(lockPath, .lock), try lock.tryLock()
                else { return try asFarAsItGoes(index, reader) }
                return try withExtendedLifetime(lock) { try current(directory, reader) }
            }
            if let opened = try openOnReadOnlyMedium(directory, reader) { return opened }
            let lock = try reader.files.open(lockPath, .lock)
            if try lock.tryLock() {
                try reader.files.createDirectory(indexPath)
                return try withExtendedLifetime(lock) { try current(directory, reader) }
            }
            WallClock.sleep(milliseconds: 20)
        }
        throw RepositoryError(
            .busy,
            "another process is rebuilding the index of \(path); wait until it is done and try "
                + "again")
    }

    /// With the lock held and nobody appending: the index with what it lacked; if the disk has no
    /// room for that, an index of this process alone.
    private static func current(_ directory: String, _ reader: PackReader) throws -> OpenedIndex {
        do {
            return try catchUp(directory, reader)
        } catch let error as LMDBError where error.isWrite {
            return try salvage(reader)
        } catch let error as FileError where error.isFull {
            return try salvage(reader)
        } catch let error as RepositoryError where error.code == .noSpace {
            return try salvage(reader)
        }
    }

    /// Reads into the index what it lacks.
    private static func catchUp(_ directory: String, _ reader: PackReader) throws -> OpenedIndex {
        let index = try openSound(directory, reader)
        let packs = try PackName.list(reader.files)
        do {
            var replay = try IndexReplay(reader: reader, index: index)
            let end = try replay.run(packs: packs)
            // Nothing is under way, so what was read and is not published never will be.
            if let confirmed = end.confirmedEnd {
                try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
            }
            return OpenedIndex(index: index)
        } catch let error as RepositoryError {
            guard let corruption = error.corruption else { throw error }
            let mark = try index.readMark()
            if mark.namesBytes, try reaches(mark, packs, reader) {
                return OpenedIndex(index: index, damage: [corruption])
            }
            return try salvage(reader)
        }
    }

    /// An index of all that is whole, for this process alone: nothing that is built past damage
    /// may be kept, since a pack that is restored from a copy changes the order.
    static func salvage(_ reader: PackReader) throws -> OpenedIndex {
        let index = try Index.makePrivate(repository: reader.repository)
        var replay = try IndexReplay(reader: reader, index: index, toleratesDamage: true)
        let end = try replay.run(packs: try PackName.list(reader.files))
        if let confirmed = end.confirmedEnd {
            try index.advance(to: confirmed, highestTransaction: end.highestTransaction)
        }
        return OpenedIndex(index: index, damage: replay.damage)
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

    /// True if the index has read the newest pack to its end.
    private static func isCurrent(_ index: Index, _ reader: PackReader) throws -> Bool {
        let mark = try index.readMark()
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

    /// The index of a repository that cannot be written, by the medium or the permissions; nil if
    /// it can.
    ///
    /// Without a sound one, an index of this process alone.
    private static func openOnReadOnlyMedium(
        _ directory: String, _ reader: PackReader
    ) throws -> OpenedIndex? {
        do {
            _ = try reader.files.open(lockPath, .lock)
            return nil
        } catch {
            guard error.isForbidden else { throw error }
            if try !IndexMark.isForeign(reader.files),
                let index = try? Index.open(directory: directory, isReadOnly: true),
                try index.isSound(repository: reader.repository)
            {
                return try asFarAsItGoes(index, reader)
            }
            return try salvage(reader)
        }
    }
}
