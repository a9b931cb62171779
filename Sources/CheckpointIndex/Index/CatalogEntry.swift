package import CheckpointFormat
package import GuestModel
package import LMDBTables

/// What the index stores of one manifest: all that lists, names and statistics need.
package struct CatalogEntry: Hashable, Sendable, EncodedValue {
    package let id: CheckpointID
    package let location: RecordLocation
    package let order: UInt64
    /// True if the checkpoint was forgotten while its manifest is still in the packs.
    package private(set) var isForgotten: Bool
    /// The pack of the forget record; 0 if it was not forgotten.
    private(set) var forgetPack: UInt32
    // Copied from the manifest.
    let timeNanoseconds: Int64
    package let pageCount: UInt64
    package let zeroPageCount: UInt64
    package let changedPageCount: UInt64
    let lineage: String
    /// The current label; empty: none.
    package private(set) var label: String
    /// The pack of the labels record that set the label; 0 if the manifest did.
    package private(set) var labelPack: UInt32

    init(
        id: CheckpointID, _ manifest: Manifest, at location: RecordLocation, order: UInt64,
        isForgotten: Bool, forgetPack: UInt32
    ) {
        self.id = id
        self.location = location
        self.order = order
        self.isForgotten = isForgotten
        self.forgetPack = forgetPack
        timeNanoseconds = manifest.timeNanoseconds
        pageCount = manifest.pageCount
        zeroPageCount = manifest.zeroPageCount
        changedPageCount = manifest.changedPageCount
        lineage = manifest.lineage
        label = manifest.label
        labelPack = 0
    }

    /// The entry of the checkpoint after it is forgotten.
    ///
    /// - Parameter pack: the pack of the forget record.
    func forgotten(in pack: UInt32) -> CatalogEntry {
        var entry = self
        (entry.isForgotten, entry.forgetPack) = (true, pack)
        return entry
    }

    /// The entry after a record in `pack` changes the label; an empty label means none.
    func labelled(_ label: String, in pack: UInt32) -> CatalogEntry {
        var entry = self
        (entry.label, entry.labelPack) = (label, pack)
        return entry
    }

    package init(
        indexed bytes: UnsafeRawBufferPointer, of key: UnsafeRawBufferPointer
    ) throws(IndexError) {
        id = try CheckpointID(indexed: key)
        do throws(FormatError) {
            var reader = ByteReader(bytes)
            let pack = try reader.read(UInt32.self)
            location = RecordLocation(pack: pack, offset: try reader.read(UInt32.self))
            order = try reader.read(UInt64.self)
            isForgotten = try reader.read(UInt8.self) != 0
            forgetPack = try reader.read(UInt32.self)
            labelPack = try reader.read(UInt32.self)
            timeNanoseconds = try reader.read(Int64.self)
            pageCount = try reader.read(UInt64.self)
            zeroPageCount = try reader.read(UInt64.self)
            changedPageCount = try reader.read(UInt64.self)
            lineage = try reader.readText()
            label = try reader.readText()
            try reader.expectEnd()
        } catch {
            throw .damagedValue("catalog entry")
        }
        guard order < Index.numberMax else { throw .damagedValue("catalog entry") }
    }

    package var encoded: [UInt8] {
        var value = ByteWriter(reserving: 61 + lineage.utf8.count + label.utf8.count)
        value.write(location.pack)
        value.write(location.offset)
        value.write(order)
        value.write(UInt8(isForgotten ? 1 : 0))
        value.write(forgetPack)
        value.write(labelPack)
        value.write(timeNanoseconds)
        value.write(pageCount)
        value.write(zeroPageCount)
        value.write(changedPageCount)
        value.write(text: lineage)
        value.write(text: label)
        return value.bytes
    }

    /// True if it matches a manifest.
    package func agrees(with manifest: Manifest) -> Bool {
        timeNanoseconds == manifest.timeNanoseconds && pageCount == manifest.pageCount
            && zeroPageCount == manifest.zeroPageCount
            && changedPageCount == manifest.changedPageCount
            && NameForm.areSame(lineage, manifest.lineage)
            && (labelPack != 0 || NameForm.areSame(label, manifest.label))
    }
}

/// A key of a name table: checkpoints with the same name are adjacent, in publication order.
package struct NameKey: TableKey {
    let name: String
    let order: UInt64

    /// The key of one checkpoint; nil for a name longer than any writer allows: no table has it.
    init?(_ name: String, _ order: UInt64) {
        guard name.utf8.count <= NameForm.byteCountMax else { return nil }
        self.name = name
        self.order = order
    }

    /// A key that follows all keys of a name.
    static func end(of name: String) -> NameKey? { NameKey(name, .max) }

    package init(indexed bytes: UnsafeRawBufferPointer) throws(IndexError) {
        guard let count = bytes.first, bytes.count == Int(count) + 9,
            let name = String(validating: bytes[1..<1 + Int(count)], as: UTF8.self)
        else { throw .damagedValue("name") }
        self.name = name
        order = try CatalogOrder(
            indexed: UnsafeRawBufferPointer(rebasing: bytes.suffix(8))
        ).order
    }

    package func withBytes<T>(
        _ body: (UnsafeRawBufferPointer) throws(IndexError) -> T
    ) throws(IndexError) -> T {
        let count = name.utf8.count
        return try withUnsafeTemporaryAllocation(byteCount: count + 9, alignment: 8) {
            (bytes) throws(IndexError) in
            bytes[0] = UInt8(count)
            for (position, byte) in name.utf8.enumerated() { bytes[1 + position] = byte }
            bytes.storeBytes(of: order.bigEndian, toByteOffset: 1 + count, as: UInt64.self)
            return try body(UnsafeRawBufferPointer(bytes))
        }
    }

    /// True if it is a key of this name.
    func isKey(of name: String) -> Bool { NameForm.areSame(self.name, name) }
}
