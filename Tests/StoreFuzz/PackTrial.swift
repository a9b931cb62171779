import CheckpointFormat
import CheckpointIndex
import GuestModel
import PackStore

/// A pack in memory, read like a store's pack.
enum PackTrial {
    private static let repository = RepositoryID(words: (1, 2))

    static func run(_ bytes: [UInt8], _ kind: UInt8) {
        let files = OneFile(pack(bytes, kind))
        let reader = PackReader(files: files, repository: repository)
        for isNewest in [true, false] {
            guard let scan = try? PackScan.scan(reader, pack: 1, isNewest: isNewest) else {
                continue
            }
            for entry in scan.entries { read(entry, reader) }
        }
    }

    /// Right checksums, and a right footer, around records of any kind.
    private static func pack(_ bytes: [UInt8], _ kind: UInt8) -> [UInt8] {
        let envelope = Envelope(
            kind: .pack, repository: repository, number: 1, isRewritten: kind == 12)
        var (records, index) = (RecordWriter(), 0)
        var last = UInt32(Envelope.byteCount)
        while index + 4 <= bytes.count, records.count < 1 << 20 {
            let count = min(
                Int(bytes[index + 2]) | Int(bytes[index + 3]) << 8, bytes.count - index - 4)
            last = UInt32(Envelope.byteCount + records.count)
            records.append(
                RecordType(rawValue: bytes[index]), transaction: UInt64(bytes[index + 1]),
                address: kind == 12 ? last + UInt32(bytes[index + 1]) : 0,
                payload: Array(bytes[index + 4..<index + 4 + count]))
            index += 4 + count
        }
        let footer = PackFooter(indexOffset: last, pack: 1)
        return envelope.encoded + records.bytes + (kind == 10 ? [] : footer.encoded)
    }

    private static func read(_ entry: PackIndex.Entry, _ reader: PackReader) {
        let location = RecordLocation(pack: 1, offset: entry.address)
        guard let (_, payload) = try? reader.record(at: location, entry.type) else { return }
        guard entry.type == .publish, let manifest = try? Manifest.decode(payload),
            (try? manifest.check(at: location)) != nil
        else { return }
        _ = try? MapReader.frames(reader, manifest)
        let map = PageMap(disksIn: .process)
        _ = try? MapReader.apply(reader, manifest, to: map)
        _ = map.memory.root()
    }
}

/// A folder that holds one pack, in memory.
private final class OneFile: RepositoryFiles, RepositoryFile {
    private let bytes: [UInt8]
    let bootID: [UInt8] = []

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    func open(_ path: String, _ mode: FileMode) throws(FileError) -> any RepositoryFile { self }
    func createDirectory(_ path: String) throws(FileError) {}
    func list(_ directory: String) throws(FileError) -> [String] { ["00000001.pack"] }
    func syncDirectory(_ path: String) throws(FileError) {}
    func rename(_ path: String, to newPath: String) throws(FileError) {}
    func link(_ path: String, to newPath: String) throws(FileError) {}
    func remove(_ path: String) throws(FileError) {}
    func byteCount() throws(FileError) -> UInt64 { UInt64(bytes.count) }
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(FileError) {}
    func startWriteback(_ range: Range<UInt64>) {}
    func truncate(to byteCount: UInt64) throws(FileError) {}
    func sync() throws(FileError) {}
    func tryLock() throws(FileError) -> Bool { true }
    func isLocked() throws(FileError) -> Bool { false }
    func checkPlace(writing pack: String?) throws(FileError) {}
    func foreignOwner() throws(FileError) -> UInt32? { nil }
    func openDirectory(_ path: String) throws(FileError) -> OpenDirectory {
        throw FileError(call: "open", path: path, errno: 2)
    }

    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FileError) -> Int {
        guard offset < UInt64(bytes.count) else { return 0 }
        let rest = bytes[Int(offset)...].prefix(buffer.count)
        buffer.copyBytes(from: rest)
        return rest.count
    }
}
