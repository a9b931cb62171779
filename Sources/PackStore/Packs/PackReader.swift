package import CheckpointFormat
package import GuestModel
import Synchronization

/// Reads records and blocks of packs, and verifies each before returning it.
///
/// Thread-safe. It keeps up to `openLimit` packs open.
package final class PackReader: Sendable {
    private struct State {
        var packs: [UInt32: PackFile] = [:]
        var order: [UInt32] = []
    }

    private static let openLimit = 128

    package let files: any RepositoryFiles
    package let repository: RepositoryID
    private let state = Mutex(State())

    package init(files: any RepositoryFiles, repository: RepositoryID) {
        self.files = files
        self.repository = repository
    }

    /// Returns an open pack, opening it if necessary; its envelope has been verified.
    package func file(_ pack: UInt32) throws(RepositoryError) -> PackFile {
        if let open = state.withLock({ $0.packs[pack] }) { return open }
        let file = try PackFile(files, pack: pack, repository: repository)
        return state.withLock { state in
            if let other = state.packs[pack] { return other }
            if state.order.count >= PackReader.openLimit {
                state.packs[state.order.removeFirst()] = nil
            }
            state.packs[pack] = file
            state.order.append(pack)
            return file
        }
    }

    /// Closes an open pack whose file was truncated, replaced or removed.
    ///
    /// Holders of it continue to read the old version.
    package func drop(_ pack: UInt32) {
        state.withLock { state in
            state.packs[pack] = nil
            state.order.removeAll { $0 == pack }
        }
    }

    /// True if prune removed a record: its pack was removed, or rewritten without it.
    ///
    /// - Parameter pruned: the packs that were removed.
    package func isPruned(
        _ location: RecordLocation, _ pruned: PrunedRecord
    ) throws(RepositoryError) -> Bool {
        if pruned.contains(location.pack) { return true }
        return try file(location.pack).offset(ofRecord: location.offset) == nil
    }

    /// Fails unless `bytes` is the envelope of this pack of this repository.
    @discardableResult
    package static func checkEnvelope(
        _ bytes: [UInt8], pack: UInt32, repository: RepositoryID
    ) throws(RepositoryError) -> Envelope {
        func corrupted(_ reason: String) -> RepositoryError {
            RepositoryError(
                Corruption(
                    file: PackName.path(pack), offset: 0, object: "envelope", reason: reason,
                    isOfWholePack: true))
        }
        let envelope: Envelope
        do {
            envelope = try Envelope.decode(bytes, kind: .pack)
        } catch {
            switch error {
            case .foreign:
                throw corrupted("it does not begin like a pack; move it away if it is not one")
            case .version(let version): throw corrupted("its format version is \(version)")
            case .features(let bits): throw corrupted("it claims unknown features \(bits)")
            case .damaged(let error): throw corrupted(error.reason)
            }
        }
        guard envelope.repository == repository else {
            throw corrupted("it belongs to repository \(envelope.repository)")
        }
        guard envelope.number == UInt64(pack) else {
            throw corrupted("it says that it is pack \(envelope.number)")
        }
        return envelope
    }

    /// Reads a whole record, and checks its type and checksum.
    package func record(
        at location: RecordLocation, _ type: RecordType
    ) throws(RepositoryError) -> (header: RecordHeader, payload: [UInt8]) {
        let file = try file(location.pack)
        guard let offset = file.offset(ofRecord: location.offset) else {
            throw corrupted(location, type, FormatError(offset: 0, reason: "prune removed it"))
        }
        let found: Result<(header: RecordHeader, bytes: PageBytes), FormatError>
        do throws(FileError) {
            found = try PackReader.readRecord(file.file, at: UInt32(offset))
        } catch {
            throw RepositoryError(error)
        }
        do throws(FormatError) {
            let (header, bytes) = try found.get()
            guard header.type == type else {
                throw FormatError(offset: 4, reason: "expected a \(type), found a \(header.type)")
            }
            guard header.address == (file.isRewritten ? location.offset : 0) else {
                throw FormatError(offset: 24, reason: "its address is \(header.address)")
            }
            return (
                header,
                Array(
                    bytes[
                        RecordHeader.byteCount..<RecordHeader.byteCount + header.payloadCount])
            )
        } catch {
            throw corrupted(location, type, error)
        }
    }

    /// The error for a damaged record.
    package func corrupted(
        _ location: RecordLocation, _ type: RecordType, _ error: FormatError
    ) -> RepositoryError {
        RepositoryError(
            Corruption(
                file: PackName.path(location.pack), offset: UInt64(location.offset),
                object: type.description, reason: error.reason))
    }

    /// Reads a record and checks its checksum.
    ///
    /// - Returns: what is wrong with it, if the file can be read and holds no such record.
    package static func readRecord(
        _ file: any RepositoryFile, at offset: UInt32
    ) throws(FileError) -> Result<(header: RecordHeader, bytes: PageBytes), FormatError> {
        let head = try file.readBytes(RecordHeader.byteCount, at: UInt64(offset))
        let header: RecordHeader
        do throws(FormatError) {
            guard head.count == RecordHeader.byteCount else { throw PackReader.cutOff }
            header = try head.withUnsafeBufferPointer { (bytes) throws(FormatError) in
                try RecordHeader(UnsafeRawBufferPointer(bytes))
            }
        } catch {
            return .failure(error)
        }
        let bytes = try file.readPages(
            header.recordByteCount, at: UInt64(offset), isHidden: header.type == .pageGroup)
        do throws(FormatError) {
            guard bytes.count == header.recordByteCount else { throw PackReader.cutOff }
            try bytes.withUnsafeBytes { (bytes) throws(FormatError) in
                try RecordHeader.check(bytes)
            }
        } catch {
            return .failure(error)
        }
        return .success((header, bytes))
    }

    private static let cutOff = FormatError(offset: 0, reason: "the pack ends within it")
}

extension RepositoryFile {
    /// Reads up to `count` bytes; fewer only at the end of the file.
    package func readBytes(_ count: Int, at offset: UInt64) throws(FileError) -> [UInt8] {
        var failure: FileError?
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initializedCount in
            do throws(FileError) {
                initializedCount = try read(into: UnsafeMutableRawBufferPointer(buffer), at: offset)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return bytes
    }

    /// The same for data that may contain pages, raw or compressed.
    ///
    /// - Parameter isHidden: false if it contains none.
    package func readPages(
        _ count: Int, at offset: UInt64, isHidden: Bool = true
    ) throws(FileError) -> PageBytes {
        try PageBytes(byteCount: count, isHidden: isHidden) { (room) throws(FileError) in
            try read(into: room, at: offset)
        }
    }

    /// Writes all bytes of a buffer.
    package func write(_ bytes: PageBytes, at offset: UInt64) throws(FileError) {
        try bytes.withUnsafeBytes { (buffer) throws(FileError) in try write(buffer, at: offset) }
    }

    /// Writes all bytes of an array.
    package func write(_ bytes: [UInt8], at offset: UInt64) throws(FileError) {
        try bytes.withUnsafeBufferPointer { (buffer) throws(FileError) in
            try write(UnsafeRawBufferPointer(buffer), at: offset)
        }
    }
}
