package import CheckpointFormat
import GuestModel

// What forgetting and pruning change in the index.

extension Index {
    /// Makes checkpoints cease to exist: they are in no list and have no name.
    ///
    /// The newest of a lineage, or of those that share a label, gives its place to the one before.
    /// Ids that are unknown or forgotten already are passed over.
    ///
    /// - Parameter pack: where the record lies that forgets them.
    func forget(_ ids: [CheckpointID], in pack: UInt32, reader: PackReader) throws {
        try environment.write { transaction in
            for id in ids {
                guard let entry = try entry(id, transaction), !entry.isForgotten else { continue }
                try Index.withKey(order: entry.order) { (key) throws(LMDBError) in
                    _ = try transaction.delete(table(.order), key)
                }
                let hidden = CatalogEntry(
                    id: id, location: entry.location, order: entry.order, isForgotten: true,
                    forgetPack: pack)
                try put(hidden, transaction)
                try setPending(.hasStakes, id, transaction)
            }
            let forgotten = Set(ids)
            var lineages = try takeNames(of: forgotten, in: .lineages, transaction)
            var labels = try takeNames(of: forgotten, in: .labels, transaction)
            guard !lineages.isEmpty || !labels.isEmpty else { return }
            for id in try order(transaction).reversed() {
                guard let entry = try entry(id, transaction) else { continue }
                // One that is damaged keeps its id, and loses its names.
                guard let (_, manifest) = try? ManifestReader.read(reader, at: entry.location)
                else { continue }
                try Index.withKey(id) { (digest) throws(LMDBError) in
                    if lineages.remove(manifest.lineage) != nil {
                        try setName(manifest.lineage, in: .lineages, digest, transaction)
                    }
                    if labels.remove(manifest.label) != nil {
                        try setName(manifest.label, in: .labels, digest, transaction)
                    }
                }
                if lineages.isEmpty && labels.isEmpty { return }
            }
        }
    }

    /// Removes the names that mean one of some checkpoints, and returns them.
    private func takeNames(
        of ids: Set<CheckpointID>, in names: Table, _ transaction: borrowing LMDBTransaction
    ) throws(LMDBError) -> Set<String> {
        var found: Set<String> = []
        try transaction.scan(table(names), from: []) {
            (key, value) throws(LMDBError) in
            if ids.contains(try CheckpointID(indexed: value)) {
                found.insert(String(decoding: key, as: UTF8.self))
            }
            return true
        }
        for name in found {
            try Index.withKey(name) { (key) throws(LMDBError) in
                _ = try transaction.delete(table(names), key)
            }
        }
        return found
    }

    /// The packs that were removed.
    package func pruned() throws -> PrunedRecord {
        try environment.read { transaction in
            guard let bytes = try value(transaction, "pruned") else { return PrunedRecord() }
            return try PrunedRecord.decode(bytes)
        }
    }

    /// Notes that packs were removed.
    func setPruned(_ record: PrunedRecord) throws {
        try environment.write { try setValue($0, "pruned", record.encoded) }
    }
}
