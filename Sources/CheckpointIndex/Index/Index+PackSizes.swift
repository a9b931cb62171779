import CheckpointFormat
import LMDBTables
package import PackStore

// An index may be older than the packs: a copy of the repository, or a restore from a backup, took
// both at different times. What packs were given since is read when the index is brought up to
// date. What prune took is in no record; but every rewriting makes a pack shorter. So the index
// knows how long each sealed pack is, and one with a rewritten pack of another length is stale: it
// names pages that are gone.
//
// A pack has no length here before it is sealed, while prune rewrites it, and until the next
// opening for writing after it was sealed.

extension Index {
    /// The lengths in bytes of sealed packs.
    func packSizes() throws -> [UInt32: UInt32] {
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

    /// Notes the lengths of packs; nil for one that is about to be rewritten or removed.
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

    /// True if a pack that was read was rewritten since, and this index knows nothing of it.
    ///
    /// Opens each pack for its length: some microseconds a pack.
    package func isStale(_ packs: [UInt32], _ reader: PackReader) throws -> Bool {
        let mark = try readMark()
        guard mark.namesBytes else { return false }
        let known = try packSizes()
        for pack in packs where pack <= mark.pack {
            do {
                let size = try reader.files.open(PackName.path(pack), .read).byteCount()
                if let known = known[pack], UInt64(known) == size { continue }
                let file = try reader.file(pack)
                guard file.isRewritten else { continue }
                if try PackScan.scan(file, isNewest: false).isSealed { return true }
            } catch let error as RepositoryError where error.corruption != nil {
                // Damage is no reason to forget what the index knows; reading the pack names it.
                continue
            } catch let error as FileError where error.isMissing || error.isOdd {
                continue
            }
        }
        return false
    }

    /// Notes the lengths of sealed packs that have none yet.
    package func notePackSizes(_ sealed: [UInt32], _ reader: PackReader) throws {
        let known = try packSizes()
        var sizes: [UInt32: UInt32?] = [:]
        for pack in sealed where known[pack] == nil {
            let size = try reader.files.open(PackName.path(pack), .read).byteCount()
            sizes[pack] = UInt32(clamping: size)
        }
        try setPackSizes(sizes)
    }
}
