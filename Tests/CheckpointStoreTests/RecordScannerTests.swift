import CheckpointFormat
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import PackStore

/// Reading records in large pieces gives the same records and errors as reading them one by one.
@Suite struct RecordScannerTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private func write(_ bytes: [UInt8]) throws -> any RepositoryFile {
        let path = directory.path.appending("records")
        try Data(bytes).write(to: URL(fileURLWithPath: path.string))
        return try PosixFiles(root: directory.path).open("records", .read)
    }

    /// What a reader of single records finds: offsets, types and payloads, and the error.
    private func readOneByOne(
        _ file: any RepositoryFile, size: UInt64
    ) throws -> (records: [[UInt8]], reason: String?) {
        var records: [[UInt8]] = []
        var offset: UInt64 = 0
        while offset < size {
            do {
                let (header, bytes) = try PackReader.readRecord(file, at: UInt32(offset)).get()
                records.append(bytes.withUnsafeBytes { Array($0) })
                offset += UInt64(header.recordByteCount)
            } catch let error as FormatError {
                return (records, error.reason)
            }
        }
        return (records, nil)
    }

    private func scan(
        _ file: any RepositoryFile, size: UInt64
    ) throws -> (records: [[UInt8]], reason: String?) {
        var scanner = try RecordScanner(file, size: size)
        var records: [[UInt8]] = []
        var offset: UInt64 = 0
        while offset < size {
            do {
                try scanner.withRecord(at: UInt32(offset)) { header, bytes in
                    records.append(Array(bytes))
                    offset += UInt64(header.recordByteCount)
                }.get()
            } catch let error as FormatError {
                return (records, error.reason)
            }
        }
        return (records, nil)
    }

    /// More memory than there are addresses: an error that says what to do, and no trap.
    @Test func missingMemoryIsAnError() throws {
        let error = #expect(throws: RepositoryError.self) {
            _ = try PageMemory.reserve(byteCount: 1 << 50)
        }
        #expect(error?.code == .callFailed && error?.errno == ENOMEM)
        #expect(
            error?.description.contains("free some memory") == true, "\(String(describing: error))")
        #expect(throws: FileError(call: "mmap", path: "packs/00000001.pack", errno: ENOMEM)) {
            _ = try PageMemory.reserve(byteCount: 1 << 50, for: "packs/00000001.pack")
        }
    }

    @Test(arguments: 0..<8 as Range<UInt64>)
    func findsWhatIsReadOneByOne(round: UInt64) throws {
        var random = TestSeed.generator(9_100 + round)
        var writer = RecordWriter()
        for _ in 0..<12 {
            // Below, about and above the 1 MiB that are read at once.
            let sizes = [0, 1, 500, 70_000, (1 << 20) - 40, 1 << 20, 2_500_000]
            let count =
                (sizes.randomElement(using: &random) ?? 0)
                + Int.random(in: 0..<64, using: &random)
            _ = writer.append(
                .guestState, transaction: 7,
                payload: (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) })
        }
        var bytes = writer.bytes
        if round % 2 == 1 {
            // Whole, truncated at some place, or damaged at some place.
            let place = Int.random(in: 0..<bytes.count, using: &random)
            if round % 4 == 1 { bytes.removeLast(place) } else { bytes[place] ^= 0x10 }
        }
        let file = try write(bytes)
        let size = UInt64(bytes.count)
        let (expected, found) = (try readOneByOne(file, size: size), try scan(file, size: size))
        #expect(found.records == expected.records)
        #expect(found.reason == expected.reason)
    }
}
