package import CheckpointFormat
package import GuestModel
package import LMDBTables

/// The tables of the index, with the types of their keys and values.
package struct IndexTables: Sendable {
    package let pages: LMDBTable<PageDigest, PageLocation>
    package let recent: LMDBTable<RunNumber, SortedRun>
    package let checkpoints: LMDBTable<CheckpointID, CatalogEntry>
    package let order: LMDBTable<CatalogOrder, CheckpointID>
    package let lineages: LMDBTable<NameKey, CheckpointID>
    package let labels: LMDBTable<NameKey, CheckpointID>
    package let state: IndexState
    package let ownedFrames: LMDBTable<CheckpointID, OwnedFrames>
    package let successors: LMDBTable<CheckpointPair, NoValue>
    package let references: LMDBTable<PageDigest, ReferenceCount>
    package let unreferenced: LMDBTable<PageDigest, NoValue>
    package let builders: LMDBTable<CheckpointPair, NoValue>
    package let transactions: LMDBTable<TransactionNumber, CheckpointID>
    package let pending: LMDBTable<CheckpointID, PendingPrune>
    package let packs: LMDBTable<PackNumber, PackUse>
    package let candidates: LMDBTable<PackNumber, IndexMoment>
    package let sizes: LMDBTable<PackNumber, PackSize>

    init(_ ids: [LMDBTableID]) {
        func id(_ table: Index.Table) -> LMDBTableID { ids[table.rawValue] }
        pages = LMDBTable(id(.pages))
        recent = LMDBTable(id(.recent))
        checkpoints = LMDBTable(id(.checkpoints))
        order = LMDBTable(id(.order))
        lineages = LMDBTable(id(.lineages))
        labels = LMDBTable(id(.labels))
        state = IndexState(id(.state))
        ownedFrames = LMDBTable(id(.ownedFrames))
        successors = LMDBTable(id(.successors))
        references = LMDBTable(id(.references))
        unreferenced = LMDBTable(id(.unreferenced))
        builders = LMDBTable(id(.builders))
        transactions = LMDBTable(id(.transactions))
        pending = LMDBTable(id(.pending))
        packs = LMDBTable(id(.packs))
        candidates = LMDBTable(id(.candidates))
        sizes = LMDBTable(id(.sizes))
    }
}

/// The values of the table `state`.
package struct IndexState: Sendable {
    /// The keys, as stored.
    package enum Key: String, TableKey {
        case version
        case repository
        case read
        case transaction
        case pruned
        case adding
        case drain
        case open

        package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
            guard let key = Key(rawValue: String(decoding: bytes, as: UTF8.self)) else {
                throw .damagedValue("state")
            }
            self = key
        }

        package func withBytes<T>(
            _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
        ) throws(IndexError) -> T {
            try Array(rawValue.utf8).withBytes(body)
        }
    }

    /// As stored, because an index of another version or repository is not damaged.
    let version: LMDBCell<Key, [UInt8]>
    let repository: LMDBCell<Key, [UInt8]>
    let readMark: LMDBCell<Key, ReadMark>
    let highestTransaction: LMDBCell<Key, HighestTransaction>
    let pruned: LMDBCell<Key, PrunedRecord>
    let adding: LMDBCell<Key, AdditionProgress>
    let drain: LMDBCell<Key, Drain>
    let dropped: LMDBCell<Key, DroppedBytes>

    init(_ id: LMDBTableID) {
        version = LMDBCell(id, .version)
        repository = LMDBCell(id, .repository)
        readMark = LMDBCell(id, .read)
        highestTransaction = LMDBCell(id, .transaction)
        pruned = LMDBCell(id, .pruned)
        adding = LMDBCell(id, .adding)
        drain = LMDBCell(id, .drain)
        dropped = LMDBCell(id, .open)
    }
}
