import CheckpointFormat
import LMDBTables

// Counts the bytes, in the open pack, of pages that left the index: prune frees nothing in a pack
// before it is sealed.

extension Index {
    private static let droppedKey = "open"

    /// Bytes of pages that left the index while their pack was open.
    package func droppedByteCount(in pack: UInt32) throws -> Int {
        try environment.read { transaction in
            let known = try dropped(transaction)
            return known?.pack == pack ? known?.byteCount ?? 0 : 0
        }
    }

    private func dropped(
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) -> (pack: UInt32, byteCount: Int)? {
        guard let bytes = try value(transaction, Index.droppedKey) else { return nil }
        guard bytes.count == 8 else { throw .damagedValue("open pack") }
        let words = [0, 4].map { start in
            bytes[start..<start + 4].reversed().reduce(0 as UInt32) { $0 << 8 | UInt32($1) }
        }
        return (words[0], Int(words[1]))
    }

    /// Counts pages that leave the index in this txn, if they are in the open pack.
    ///
    /// - Parameter openPack: the open pack, or one before it: packs with higher numbers were
    ///   created since. Only the highest pack is counted.
    func noteDropped(
        _ locations: [PageLocation], from openPack: UInt32,
        _ transaction: borrowing LMDBTxn
    ) throws(LMDBError) {
        guard let pack = locations.map(\.pack).max(), pack >= openPack else { return }
        let known = try dropped(transaction)
        if let known, known.pack > pack { return }
        let sum = locations.reduce(known?.pack == pack ? known?.byteCount ?? 0 : 0) {
            $1.pack == pack ? $0 + $1.shareByteCount : $0
        }
        var value = ByteWriter(reserving: 8)
        value.write(pack)
        value.write(UInt32(clamping: sum))
        try setValue(transaction, Index.droppedKey, value.bytes)
    }
}

extension PageLocation {
    /// The page's share of its block in bytes.
    package var shareByteCount: Int { Int(blockByteCount) / max(1, Int(blockPageCount)) }
}
