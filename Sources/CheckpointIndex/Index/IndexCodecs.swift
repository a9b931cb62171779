package import CheckpointFormat
package import GuestModel
package import LMDBTables

// How the keys and values of the index's tables become bytes.

// MARK: - Kinds of codecs

/// A key or value that is a few numbers.
package protocol FixedCoding {
    /// A number, or a tuple of numbers without padding between them, as stored.
    associatedtype Bytes
    var indexedBytes: Bytes { get }
}

extension FixedCoding {
    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try withUnsafeBytes(of: indexedBytes) { (bytes) throws(IndexError) in try body(bytes) }
    }
}

/// A value of varying length.
package protocol EncodedValue: TableValue {
    var encoded: [UInt8] { get }
}

extension EncodedValue {
    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        try encoded.withBytes { (bytes) throws(IndexError) in try body(bytes) }
    }
}

/// Decodes a value; one that is not well formed, or longer, is damaged.
///
/// - Parameter name: what the value is.
func decodeIndexed<T>(
    _ name: String, _ bytes: UnsafeRawBufferPointer,
    _ decode: (inout ByteReader) throws(FormatError) -> T
) throws(IndexError) -> T {
    do throws(FormatError) {
        var reader = ByteReader(bytes)
        let value = try decode(&reader)
        try reader.expectEnd()
        return value
    } catch {
        throw .damagedValue(name)
    }
}

/// A number as a key: in the order of the numbers.
private func bigEndian<T: FixedWidthInteger>(
    _ bytes: UnsafeRawBufferPointer, _ name: String
) throws(IndexError) -> T {
    guard bytes.count == MemoryLayout<T>.size else { throw .damagedValue(name) }
    return T(bigEndian: bytes.loadUnaligned(as: T.self))
}

// MARK: - Pages and checkpoints

extension PageDigest: TableKey, FixedCoding {
    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        guard bytes.count == PageDigest.byteCount else { throw .damagedValue("digest") }
        self.init(bytes: bytes)
    }

    package var indexedBytes: (UInt64, UInt64, UInt64, UInt64) { words }
}

extension CheckpointID: TableKey, TableValue, FixedCoding {
    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        self.init(try PageDigest(indexed: bytes))
    }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        try self.init(indexed: bytes)
    }

    package var indexedBytes: (UInt64, UInt64, UInt64, UInt64) { digest.words }
}

/// Two checkpoints of which one follows from the other.
package struct CheckpointPair: TableKey, FixedCoding {
    package let first: CheckpointID
    package let second: CheckpointID

    package init(_ first: CheckpointID, _ second: CheckpointID) {
        self.first = first
        self.second = second
    }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        guard bytes.count == 2 * PageDigest.byteCount else { throw .damagedValue("pair") }
        first = CheckpointID(PageDigest(bytes: bytes))
        second = CheckpointID(PageDigest(bytes: bytes.dropFirst(PageDigest.byteCount)))
    }

    package var indexedBytes: (CheckpointID, CheckpointID) { (first, second) }
}

extension PageLocation: TableValue, FixedCoding {
    init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        guard bytes.count == PageLocation.byteCount else { throw .damagedValue("location") }
        self.init(
            pack: UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)),
            blockOffset: UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self)),
            blockByteCount: UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self)),
            blockPageCount: bytes[12], slot: bytes[13])
        guard pack > 0, slot < blockPageCount, blockPageCount <= PageGroupTable.pageLimit,
            blockByteCount <= Int(blockPageCount) * Page.byteCount
        else { throw .damagedValue("location") }
    }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        try self.init(indexed: bytes)
    }

    package var indexedBytes: (UInt32, UInt32, UInt32, UInt8, UInt8) {
        (
            pack.littleEndian, blockOffset.littleEndian, blockByteCount.littleEndian,
            blockPageCount, slot
        )
    }
}

/// References to a page beyond the first.
package struct ReferenceCount: TableValue, FixedCoding {
    let count: UInt32

    init(_ count: UInt32) { self.count = count }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        guard bytes.count == 4 else { throw .damagedValue("reference count") }
        count = UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self))
    }

    package var indexedBytes: UInt32 { count.littleEndian }
}

// MARK: - Numbers

/// The number of a run.
package struct RunNumber: TableKey, FixedCoding {
    let number: UInt64

    init(_ number: UInt64) { self.number = number }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        number = try bigEndian(bytes, "run's number")
        guard number <= Index.numberMax else { throw .damagedValue("run's number") }
    }

    package var indexedBytes: UInt64 { number.bigEndian }
}

/// The position of a checkpoint in the order of publication.
package struct CatalogOrder: TableKey, FixedCoding {
    let order: UInt64

    init(_ order: UInt64) { self.order = order }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        order = try bigEndian(bytes, "order")
        guard order < Index.numberMax else { throw .damagedValue("order") }
    }

    package var indexedBytes: UInt64 { order.bigEndian }
}

/// The number of a checkpoint's transaction.
package struct TransactionNumber: TableKey, FixedCoding {
    let number: UInt64

    init(_ number: UInt64) { self.number = number }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        number = try bigEndian(bytes, "transaction")
    }

    package var indexedBytes: UInt64 { number.bigEndian }
}

/// The number of a pack.
package struct PackNumber: TableKey, FixedCoding {
    let pack: UInt32

    init(_ pack: UInt32) { self.pack = pack }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        pack = try bigEndian(bytes, "pack number")
    }

    package var indexedBytes: UInt32 { pack.bigEndian }
}

/// The highest transaction number seen.
struct HighestTransaction: TableValue, FixedCoding {
    let number: UInt64

    init(_ number: UInt64) { self.number = number }

    init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        number = try decodeIndexed("highest transaction", bytes) { (reader) throws(FormatError) in
            try reader.read(UInt64.self)
        }
        // No record has such a number (`TransactionNumbers`).
        guard TransactionNumbers.hasRoom(after: number) else {
            throw .damagedValue("highest transaction")
        }
    }

    var indexedBytes: UInt64 { number.littleEndian }
}

/// A state of the index (`LMDBTxn.moment`).
package struct IndexMoment: TableValue, FixedCoding {
    let moment: UInt64

    init(_ moment: UInt64) { self.moment = moment }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        moment = try bigEndian(bytes, "candidate")
    }

    package var indexedBytes: UInt64 { moment.bigEndian }
}

/// The bytes of a sealed pack.
package struct PackSize: TableValue, FixedCoding {
    let byteCount: UInt32

    init(_ byteCount: UInt32) { self.byteCount = byteCount }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        guard bytes.count == 4 else { throw .damagedValue("pack size") }
        byteCount = UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self))
    }

    package var indexedBytes: UInt32 { byteCount.littleEndian }
}

extension PackUse: TableValue, FixedCoding {
    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        let (byteCount, unused) = try decodeIndexed("pack", bytes) {
            (reader) throws(FormatError) in
            (try reader.read(UInt32.self), try reader.read(UInt32.self))
        }
        guard unused <= byteCount else { throw .damagedValue("pack") }
        self.init(byteCount: Int(byteCount), unusedByteCount: Int(unused))
    }

    package var indexedBytes: (UInt32, UInt32) {
        (UInt32(byteCount).littleEndian, UInt32(unusedByteCount).littleEndian)
    }
}

// MARK: - Positions in the packs

extension RecordLocation: TableValue, FixedCoding {
    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        self = try decodeIndexed("read mark", bytes) { (reader) throws(FormatError) in
            let pack = try reader.read(UInt32.self)
            return RecordLocation(pack: pack, offset: try reader.read(UInt32.self))
        }
    }

    package var indexedBytes: (UInt32, UInt32) { (pack.littleEndian, offset.littleEndian) }
}

extension PrunedRecord: EncodedValue {
    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        do throws(FormatError) {
            self = try PrunedRecord.decode(Array(bytes))
        } catch {
            throw .damagedValue("pruned packs")
        }
    }
}
