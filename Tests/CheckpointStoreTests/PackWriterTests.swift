import CheckpointFormat
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import PackStore

/// Concurrent writers of one pack, on a failing disk.
@Suite struct PackWriterTests {
    private let directory = TemporaryDirectory(inMemory: true)

    /// A lone record that cannot be synced is truncated; a transaction that begins at that moment
    /// keeps the records that it appends.
    @Test func aRecordThatFailsTakesNothingWithIt() throws {
        let files = FaultyFiles(PosixFiles(root: directory.path))
        try files.createDirectory(StoreDirectory.packs)
        let repository = RepositoryID.random()
        let writer = try PackWriter(
            files: files, repository: repository, pack: 1, scan: nil, packByteCountMax: 60_000)
        let isDone = Atomic<Bool>(false)
        let published = Mutex<[(RecordLocation, [UInt8])]>([])
        let capturing = try Threads.Thread {
            var number: UInt64 = 0
            while !isDone.load(ordering: .acquiring) {
                number += 1
                guard let epoch = try? writer.begin() else { continue }
                let payload = [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: 500)
                var records = RecordWriter()
                let range = records.append(.mapPart, transaction: number, payload: payload)
                let record = PendingRecord(range: range, type: .mapPart, transaction: number)
                do throws(RepositoryError) {
                    let places = try records.withUnsafeBytes {
                        (bytes) throws(RepositoryError) -> [RecordLocation] in
                        try writer.append([record], of: bytes, epoch: epoch)
                    }
                    _ = try writer.publish([1, 2, 3], transaction: number, epoch: epoch)
                    published.withLock { $0.append((places[0], payload)) }
                    writer.end(wasPublished: true)
                } catch {
                    writer.end(wasPublished: false)
                }
            }
        }
        var failureCount = 0
        for _ in 0..<(TestSeed.isLong ? 30_000 : 3_000) {
            files.failCall(1, errno: 5)
            do {
                _ = try writer.appendAlone(.forget, payload: [4, 5, 6])
            } catch {
                failureCount += 1
            }
        }
        files.failCall(nil, errno: 5)
        isDone.store(true, ordering: .releasing)
        capturing.join()
        let reader = PackReader(files: files, repository: repository)
        let records = published.withLock { $0 }
        var lost = 0
        for (location, payload) in records {
            let record = try? reader.record(at: location, .mapPart)
            if record.map({ Array($0.payload) }) != payload { lost += 1 }
        }
        #expect(lost == 0, "of \(records.count)")
        #expect(failureCount > 100 && records.count > 100, "\(failureCount), \(records.count)")
    }

    /// A pack is sealed before its records take much memory, however small they are.
    @Test func aPackHasALimitedNumberOfRecords() throws {
        let files = PosixFiles(root: directory.path)
        try files.createDirectory(StoreDirectory.packs)
        let writer = try PackWriter(
            files: files, repository: RepositoryID.random(), pack: 1, scan: nil,
            packByteCountMax: 1 << 30)
        let epoch = try writer.begin()
        var records = RecordWriter()
        let batch = (0..<4096).map { _ in
            PendingRecord(
                range: records.append(.guestState, transaction: 1, payload: [1]),
                type: .guestState, transaction: 1)
        }
        func append() throws(RepositoryError) -> Set<UInt32> {
            let places = try records.withUnsafeBytes {
                (bytes) throws(RepositoryError) -> [RecordLocation] in
                try writer.append(batch, of: bytes, epoch: epoch)
            }
            return Set(places.map(\.pack))
        }
        for _ in 0..<32 { #expect(try append() == [1]) }
        #expect(try append() == [2])
        writer.end(wasPublished: false)
    }
}
