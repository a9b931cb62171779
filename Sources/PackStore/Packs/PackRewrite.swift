package import CheckpointFormat
import GuestModel

/// What prune keeps of a sealed pack when it rewrites it.
///
/// Blocks keep their addresses: each run of blocks that are kept becomes a page group whose address
/// is chosen so that its first block keeps its own.
package struct PackRewrite: Sendable {
    /// A record of the new pack.
    struct Piece: Sendable {
        /// Its entry in the index of the new pack.
        let entry: PackIndex.Entry
        /// The record that it is copied from.
        let source: PackIndex.Entry
        /// For a page group, the blocks that are copied.
        let blocks: Range<Int>
    }

    /// Maximum number of dead bytes between two kept blocks of one page group: with more, starting
    /// a new page group is shorter.
    static let bridgeByteCountMax = RecordHeader.byteCount + 32

    private(set) var pieces: [Piece] = []
    private var end = UInt32(Envelope.byteCount)

    /// Decides what to keep.
    ///
    /// - Parameters:
    ///   - entries: the pack's records.
    ///   - bridgeByteCountMax: maximum number of dead bytes kept between two blocks.
    ///   - keepsBlock: whether to keep the block with an address.
    ///   - keepsRecord: whether to keep a record other than a page group.
    package init<E: Error>(
        _ entries: [PackIndex.Entry], bridgeByteCountMax: Int = PackRewrite.bridgeByteCountMax,
        keepsBlock: (PackIndex.Entry, UInt32) -> Bool,
        keepsRecord: (PackIndex.Entry) throws(E) -> Bool
    ) throws(E) {
        for entry in entries {
            guard let frame = entry.frame else {
                if try keepsRecord(entry) { append(entry, blocks: 0..<0, address: entry.address) }
                continue
            }
            var address = UInt32(entry.addresses.lowerBound)
            var run: (blocks: Range<Int>, address: UInt32)?
            var deadByteCount = 0
            for (index, block) in frame.blocks.enumerated() {
                if keepsBlock(entry, address) {
                    if let open = run, deadByteCount <= bridgeByteCountMax {
                        run = (open.blocks.lowerBound..<index + 1, open.address)
                    } else {
                        if let run { append(entry, blocks: run.blocks, address: run.address) }
                        run = (index..<index + 1, address)
                    }
                    deadByteCount = 0
                } else {
                    deadByteCount += Int(block.byteCount)
                }
                address += block.byteCount
            }
            if let run { append(entry, blocks: run.blocks, address: run.address) }
        }
    }

    /// - Parameter address: that of the record, or of the first block of a page group.
    private mutating func append(
        _ source: PackIndex.Entry, blocks: Range<Int>, address: UInt32
    ) {
        var (table, payloadCount, start) = (source.frame, source.payloadCount, address)
        if let frame = source.frame {
            let before = frame.blocks[..<blocks.lowerBound].reduce(0) { $0 + UInt32($1.pageCount) }
            let cut = PageGroupTable(
                firstOrdinal: frame.firstOrdinal + before, blocks: Array(frame.blocks[blocks]))
            start = address - UInt32(RecordHeader.byteCount + cut.headByteCount)
            (table, payloadCount) = (cut, cut.payloadCount)
        }
        let entry = PackIndex.Entry(
            type: source.type, offset: end, payloadCount: payloadCount,
            transaction: source.transaction, address: start, frame: table)
        end = entry.end
        pieces.append(Piece(entry: entry, source: source, blocks: blocks))
    }

    /// The index of the new pack.
    package var index: PackIndex { PackIndex(entries: pieces.map(\.entry), isRewritten: true) }

    /// Size of the new pack in bytes; 0 if nothing is kept.
    package var byteCount: Int {
        guard !pieces.isEmpty else { return 0 }
        return Int(end) + RecordHeader.recordByteCount(payload: index.encoded.count)
            + PackFooter.byteCount
    }
}

extension PackRewrite {
    private static let bufferByteCount = 4 << 20

    /// Writes the new pack and replaces the old one.
    package func write(
        pack: UInt32, from source: any RepositoryFile, _ files: any RepositoryFiles,
        repository: RepositoryID
    ) throws(RepositoryError) {
        try writeNew(pack: pack, from: source, files, repository: repository)
        try PackRewrite.putInPlace(pack, files)
    }

    /// Replaces the old pack by the new one; if that fails, the new one is removed.
    ///
    /// The rename becomes durable when the caller syncs the directory; until then a crash may
    /// restore the old pack, which is equally valid.
    package static func putInPlace(
        _ pack: UInt32, _ files: any RepositoryFiles
    ) throws(RepositoryError) {
        do {
            try files.rename(PackName.newPath(pack), to: PackName.path(pack))
        } catch {
            discardNew(pack, files)
            throw RepositoryError(error)
        }
    }

    /// Removes a new pack that does not replace the old one.
    ///
    /// It may have taken the last free space of the disk. If the removal fails, the next writer
    /// removes the file.
    package static func discardNew(_ pack: UInt32, _ files: any RepositoryFiles) {
        try? files.remove(PackName.newPath(pack))
    }

    /// Writes the new pack beside the old one, and syncs it; if that fails, it is removed.
    ///
    /// The checksum of every record that is kept is verified.
    ///
    /// - Parameters:
    ///   - pack: the pack number.
    ///   - source: the old pack.
    ///   - payloads: replacements for payloads of map parts, by their offsets in the old pack.
    package func writeNew(
        pack: UInt32, from source: any RepositoryFile, _ files: any RepositoryFiles,
        repository: RepositoryID, payloads: [UInt32: [UInt8]] = [:]
    ) throws(RepositoryError) {
        let damage: Corruption?
        do throws(FileError) {
            damage = try write(pack: pack, from: source, files, repository, payloads)
        } catch {
            PackRewrite.discardNew(pack, files)
            throw RepositoryError(error)
        }
        if let damage {
            PackRewrite.discardNew(pack, files)
            throw RepositoryError(damage)
        }
    }

    /// - Returns: the damaged record that ended it; nil if the new pack is whole and synced.
    private func write(
        pack: UInt32, from source: any RepositoryFile, _ files: any RepositoryFiles,
        _ repository: RepositoryID, _ payloads: [UInt32: [UInt8]]
    ) throws(FileError) -> Corruption? {
        let file = try files.open(PackName.newPath(pack), .create)
        let envelope = Envelope(
            kind: .pack, repository: repository, number: UInt64(pack), isRewritten: true)
        try file.write(envelope.encoded, at: 0)
        var offset = UInt64(Envelope.byteCount)
        var records = RecordWriter()
        for piece in pieces {
            if let payload = payloads[piece.source.offset] {
                records.append(
                    piece.entry.type, transaction: piece.entry.transaction,
                    address: piece.entry.address, payload: payload)
            } else if let damage = try append(piece, of: pack, from: source, to: &records) {
                return damage
            }
            guard records.count >= PackRewrite.bufferByteCount else { continue }
            try records.withUnsafeBytes { (bytes) throws(FileError) in
                try file.write(bytes, at: offset)
            }
            offset += UInt64(records.count)
            records.removeAll()
        }
        precondition(offset + UInt64(records.count) == UInt64(end), "sizes were exact")
        records.append(.packIndex, transaction: 0, payload: index.encoded)
        let footer = PackFooter(indexOffset: end, pack: UInt64(pack))
        try records.withUnsafeBytes { (bytes) throws(FileError) in
            try file.write(bytes, at: offset)
        }
        try file.write(footer.encoded, at: offset + UInt64(records.count))
        try file.sync()
        return nil
    }

    /// - Returns: the damage of the old record; nil if it was appended.
    private func append(
        _ piece: Piece, of pack: UInt32, from source: any RepositoryFile,
        to records: inout RecordWriter
    ) throws(FileError) -> Corruption? {
        func damage(_ error: FormatError) -> Corruption {
            Corruption(
                file: PackName.path(pack), offset: UInt64(piece.source.offset),
                object: piece.source.type.description, reason: error.reason)
        }
        let (header, record): (RecordHeader, PageBytes)
        switch try PackReader.readRecord(source, at: piece.source.offset) {
        case .success(let found): (header, record) = (found.header, found.bytes)
        case .failure(let error): return damage(error)
        }
        guard header.type == piece.source.type, header.payloadCount == piece.source.payloadCount
        else { return damage(FormatError(offset: 4, reason: "it differs from the pack index")) }
        let payload = record[
            RecordHeader.byteCount..<RecordHeader.byteCount + header.payloadCount]
        guard let table = piece.entry.frame, let frame = piece.source.frame else {
            records.append(
                header.type, transaction: header.transaction, address: piece.entry.address,
                payload: Array(payload))
            return nil
        }
        let skipped = frame.blocks[..<piece.blocks.lowerBound].reduce(0) { $0 + Int($1.byteCount) }
        let start = payload.startIndex + frame.headByteCount + skipped
        let count = table.payloadCount - table.headByteCount
        let head = table.encodedHead
        records.append(
            .pageGroup, transaction: header.transaction, address: piece.entry.address,
            limit: head.count + count
        ) { room in
            room.copyBytes(from: head)
            payload[start..<start + count].withUnsafeBytes {
                UnsafeMutableRawBufferPointer(rebasing: room[head.count...]).copyMemory(from: $0)
            }
            return head.count + count
        }
        return nil
    }
}
