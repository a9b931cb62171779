package import CheckpointFormat
import GuestModel

/// Reads the records of a pack in sequence, 1 MiB at a time.
///
/// Reading records one by one costs two calls and an allocation each.
package struct RecordScanner: ~Copyable {
    private static let pieceByteCount = 1 << 20

    private let file: any RepositoryFile
    private let size: UInt64
    /// Its size is that of a chunk, or of the largest record so far.
    private var buffer: UnsafeMutableRawBufferPointer
    /// The range of the file that is in the buffer.
    private var held: Range<UInt64> = 0..<0

    /// Fails if there is no memory.
    ///
    /// - Parameter size: size of the file; later appends are not read.
    package init(_ file: any RepositoryFile, size: UInt64) throws(FileError) {
        self.file = file
        self.size = size
        buffer = try PageMemory.reserve(
            byteCount: Int(min(size, UInt64(RecordScanner.pieceByteCount))),
            for: StoreDirectory.packs)
    }

    deinit { PageMemory.deallocate(buffer) }

    /// Calls `body` with the record at an offset, verified; it is valid only during the call.
    ///
    /// - Returns: what `body` returns or throws, or what is wrong with the record, as
    ///   `PackReader.readRecord` does.
    package mutating func withRecord<T>(
        at offset: UInt32,
        _ body: (RecordHeader, UnsafeRawBufferPointer) throws(FormatError) -> T
    ) throws(FileError) -> Result<T, FormatError> {
        guard let head = try bytes(RecordHeader.byteCount, at: UInt64(offset)) else {
            return .failure(RecordScanner.cutOff)
        }
        let header: RecordHeader
        do throws(FormatError) {
            header = try RecordHeader(head)
        } catch {
            return .failure(error)
        }
        guard let record = try bytes(header.recordByteCount, at: UInt64(offset)) else {
            return .failure(RecordScanner.cutOff)
        }
        return Result { () throws(FormatError) -> T in
            try RecordHeader.check(record)
            return try body(header, record)
        }
    }

    /// Bytes of the file; nil if it ends before them.
    private mutating func bytes(
        _ count: Int, at offset: UInt64
    ) throws(FileError) -> UnsafeRawBufferPointer? {
        guard offset + UInt64(count) <= size else { return nil }
        if offset < held.lowerBound || offset + UInt64(count) > held.upperBound {
            if count > buffer.count {
                let larger = try PageMemory.reserve(byteCount: count, for: StoreDirectory.packs)
                PageMemory.deallocate(buffer)
                buffer = larger
            }
            let wanted = Int(min(UInt64(buffer.count), size - offset))
            held = 0..<0
            let read = try file.read(
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<wanted]), at: offset)
            held = offset..<offset + UInt64(read)
            guard read >= count else { return nil }
        }
        let start = Int(offset - held.lowerBound)
        return UnsafeRawBufferPointer(rebasing: buffer[start..<start + count])
    }

    private static let cutOff = FormatError(offset: 0, reason: "the pack ends within it")
}
