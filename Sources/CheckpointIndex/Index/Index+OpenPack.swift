import CheckpointFormat
package import LMDBTables

// Counts the bytes, in the open pack, of pages that left the index: prune frees nothing in a pack
// before it is sealed.

extension Index {
    /// Bytes of pages that left the index while their pack was open.
    package func droppedByteCount(in pack: UInt32) throws(IndexError) -> Int {
        try environment.read { (txn) throws(IndexError) in
            let known = try tables.state.dropped.value(in: txn)
            return known?.pack == pack ? known?.byteCount ?? 0 : 0
        }
    }

    /// Counts pages that leave the index in this txn, if they are in the open pack.
    ///
    /// - Parameter openPack: the open pack, or one before it: packs with higher numbers were
    ///   created since. Only the highest pack is counted.
    func noteDropped(
        _ locations: [PageLocation], from openPack: UInt32,
        _ txn: borrowing LMDBTxn
    ) throws(IndexError) {
        guard let pack = locations.map(\.pack).max(), pack >= openPack else { return }
        let known = try tables.state.dropped.value(in: txn)
        if let known, known.pack > pack { return }
        let sum = locations.reduce(known?.pack == pack ? known?.byteCount ?? 0 : 0) {
            $1.pack == pack ? $0 + $1.shareByteCount : $0
        }
        try tables.state.dropped.set(DroppedBytes(pack: pack, byteCount: sum), in: txn)
    }
}

extension PageLocation {
    /// The page's share of its block in bytes.
    package var shareByteCount: Int { Int(blockByteCount) / max(1, Int(blockPageCount)) }
}

/// The size of the pages that left the index while their pack was open.
struct DroppedBytes: TableValue, FixedCoding {
    let pack: UInt32
    let byteCount: Int

    init(pack: UInt32, byteCount: Int) {
        self.pack = pack
        self.byteCount = byteCount
    }

    init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        (pack, byteCount) = try decodeIndexed("open pack", bytes) { (reader) throws(FormatError) in
            (try reader.read(UInt32.self), Int(try reader.read(UInt32.self)))
        }
    }

    var indexedBytes: (UInt32, UInt32) {
        (pack.littleEndian, UInt32(clamping: byteCount).littleEndian)
    }
}
