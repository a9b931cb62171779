package import CheckpointFormat
import LMDBTables
package import PackStore

// An index may be older than the packs: a copy of the repository, or a restore from a backup, may
// have captured the two at different times. What packs gained since is read when the index is
// brought up to date. What prune took from them is not, so such an index is stale: it refers to
// pages that are gone. It is recognized by
//
//   - a rewritten pack of another length: every rewrite makes a pack shorter, and the index stores
//     the length of each sealed pack;
//   - a pack that it has read, and that a record which it has not read says was removed.
//
// No length is stored for a pack before it is sealed, while prune rewrites it, and from its sealing
// until the next open for writing.

extension Index {
    /// The lengths of sealed packs in bytes.
    package func packSizes() throws -> [UInt32: UInt32] {
        try environment.read { transaction in
            var found: [UInt32: UInt32] = [:]
            try transaction.scan(table(.sizes), from: []) { (key, value) throws(LMDBError) in
                guard value.count == 4 else { throw .damagedValue("pack size") }
                found[try Index.pack(key)] = UInt32(
                    littleEndian: value.loadUnaligned(as: UInt32.self))
                return true
            }
            return found
        }
    }

    /// Stores the lengths of packs; nil for one that is about to be rewritten or removed.
    package func setPackSizes(_ sizes: [UInt32: UInt32?]) throws {
        guard !sizes.isEmpty else { return }
        try environment.write { transaction in
            for (pack, size) in sizes {
                try Index.withKey(pack: pack) { (key) throws(LMDBError) in
                    guard var value = size?.littleEndian else {
                        _ = try transaction.delete(table(.sizes), key)
                        return
                    }
                    let result = withUnsafeBytes(of: &value) { bytes in
                        Result { () throws(LMDBError) in
                            try transaction.put(table(.sizes), key, bytes)
                        }
                    }
                    try result.get()
                }
            }
        }
    }

    /// True if an indexed pack was rewritten since without this index being updated.
    ///
    /// Opens each pack to get its length: some microseconds per pack.
    ///
    /// - Parameter known: the lengths that this index stores.
    package func isStale(
        _ packs: [UInt32], known: [UInt32: UInt32], _ reader: PackReader
    ) throws -> Bool {
        let mark = try readMark()
        guard mark.namesBytes else { return false }
        for pack in packs where pack <= mark.pack {
            do {
                let size = try reader.files.open(PackName.path(pack), .read).byteCount()
                if let known = known[pack], UInt64(known) == size { continue }
                let file = try reader.file(pack)
                guard file.isRewritten else { continue }
                if try PackScan.scan(file, isNewest: false).isSealed { return true }
            } catch let error as RepositoryError where error.corruption != nil {
                // Damage is no reason to discard the index; reading the pack reports it.
                continue
            } catch let error as FileError where error.isMissing || error.isOdd {
                continue
            }
        }
        return false
    }

    /// True if packs that were indexed up to a mark were removed, and that was not known then.
    ///
    /// - Parameters:
    ///   - mark: how far this index had read the packs before it was brought up to date.
    ///   - known: the packs of which it knew then that they had been removed.
    package func lostPacks(upTo mark: ReadMark, known: PrunedRecord) throws -> Bool {
        guard mark.namesBytes else { return false }
        let removed = PrunedRecord(
            ranges: try pruned().ranges.compactMap { range in
                guard range.lowerBound <= mark.pack else { return nil }
                return range.lowerBound...min(range.upperBound - 1, mark.pack)
            })
        return known.union(removed) != known
    }

    /// Stores the lengths of sealed packs.
    package func measure(_ sealed: [UInt32], _ reader: PackReader) throws {
        var sizes: [UInt32: UInt32?] = [:]
        for pack in sealed {
            let size = try reader.files.open(PackName.path(pack), .read).byteCount()
            sizes[pack] = UInt32(clamping: size)
        }
        try setPackSizes(sizes)
    }
}
