package import CheckpointFormat
package import LMDBTables
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
    package func packSizes() throws(IndexError) -> [UInt32: UInt32] {
        try environment.read { (txn) throws(IndexError) in
            var found: [UInt32: UInt32] = [:]
            var entries = try tables.sizes.entries(in: txn)
            while let (key, size) = try entries.next() { found[key.pack] = size.byteCount }
            return found
        }
    }

    /// Stores the lengths of packs; nil for one that is about to be rewritten or removed.
    package func setPackSizes(_ sizes: [UInt32: UInt32?]) throws(IndexError) {
        guard !sizes.isEmpty else { return }
        try environment.write { (txn) throws(IndexError) in
            for (pack, size) in sizes {
                if let size {
                    try tables.sizes.put(PackSize(size), for: PackNumber(pack), in: txn)
                } else {
                    try tables.sizes.remove(PackNumber(pack), in: txn)
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
    ) throws(IndexError) -> Bool {
        let mark = try readMark()
        guard mark.namesBytes else { return false }
        for pack in packs where pack <= mark.pack {
            do throws(IndexError) {
                let size = try Index.byteCount(of: pack, reader)
                if let known = known[pack], UInt64(known) == size { continue }
                let file = try IndexError.ofPacks(reader.file(pack))
                guard file.isRewritten else { continue }
                if try IndexError.ofPacks(PackScan.scan(file, isNewest: false)).isSealed {
                    return true
                }
            } catch {
                // Damage is no reason to discard the index; reading the pack reports it.
                if error.corruption != nil { continue }
                if case .file(let error) = error, error.isMissing || error.isOdd { continue }
                throw error
            }
        }
        return false
    }

    /// True if packs that were indexed up to a mark were removed, and that was not known then.
    ///
    /// - Parameters:
    ///   - mark: how far this index had read the packs before it was brought up to date.
    ///   - known: the packs of which it knew then that they had been removed.
    package func lostPacks(upTo mark: ReadMark, known: PrunedRecord) throws(IndexError) -> Bool {
        guard mark.namesBytes else { return false }
        let removed = PrunedRecord(
            ranges: try pruned().ranges.compactMap { range in
                guard range.lowerBound <= mark.pack else { return nil }
                return range.lowerBound...min(range.upperBound - 1, mark.pack)
            })
        return known.union(removed) != known
    }

    /// Stores the lengths of sealed packs.
    package func measure(_ sealed: [UInt32], _ reader: PackReader) throws(IndexError) {
        var sizes: [UInt32: UInt32?] = [:]
        for pack in sealed {
            sizes[pack] = UInt32(clamping: try Index.byteCount(of: pack, reader))
        }
        try setPackSizes(sizes)
    }

    private static func byteCount(
        of pack: UInt32, _ reader: PackReader
    ) throws(IndexError) -> UInt64 {
        try IndexError.ofFiles(reader.files.open(PackName.path(pack), .read).byteCount())
    }
}
