import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import LinuxGuest
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// An image in memory, read by any thread in any order.
private final class MemoryImage: ImageSource {
    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    let bytes: [UInt8]
    /// The read that fails; nil: none.
    let failingRead: Int?
    let changes: Bool
    private let reads = Atomic(0)
    let checkCount = Atomic(0)

    init(_ bytes: [UInt8], failingRead: Int? = nil, changes: Bool = false) {
        self.bytes = bytes
        self.failingRead = failingRead
        self.changes = changes
    }

    var byteCount: Int { bytes.count }
    var readCount: Int { reads.load(ordering: .sequentiallyConsistent) }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        let number = reads.add(1, ordering: .sequentiallyConsistent).oldValue
        if number == failingRead { throw Failure(description: "read \(number) failed") }
        buffer.copyBytes(from: bytes[offset..<offset + buffer.count])
    }

    func checkUnchanged() throws {
        checkCount.add(1, ordering: .sequentiallyConsistent)
        if changes { throw Failure(description: "somebody wrote to it") }
    }
}

@Suite struct ImageSourceTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private func repository(_ name: String) throws -> Repository {
        try Repository.create(at: directory.path.appending(name))
    }

    private func image(pageCount: Int, _ random: inout SeededGenerator) -> [UInt8] {
        var bytes: [UInt8] = []
        for _ in 0..<pageCount {
            let kind = Int.random(in: 0..<4, using: &random)
            let value = UInt8.random(in: 0...255, using: &random)
            bytes += (0..<Page.byteCount).map {
                kind == 0 ? 0 : kind == 1 ? value : UInt8(truncatingIfNeeded: $0 &* Int(value))
            }
        }
        return bytes
    }

    /// An import that reads from front to back is the oracle.
    @Test(arguments: [1, 63, 64, 65, 255, 256, 257, 1000, 4099])
    func isWhatIsReadFromFrontToBack(pageCount: Int) throws {
        var random = TestSeed.generator(UInt64(700 + pageCount))
        let (one, other) = (try repository("one"), try repository("other"))
        var bytes = image(pageCount: pageCount, &random)
        for _ in 0..<3 {
            var rest = bytes[...]
            let expected = try one.importImage(lineage: "a") { buffer in
                let count = min(buffer.count, rest.count)
                buffer.copyBytes(from: rest.prefix(count))
                rest = rest.dropFirst(count)
                return count
            }
            let source = MemoryImage(bytes)
            let seen = Mutex<[Progress]>([])
            let checkpoint = try other.importImage(
                source, lineage: "a",
                progress: { progress in seen.withLock { $0.append(progress) } })
            #expect(checkpoint.memory.root == expected.memory.root)
            #expect(checkpoint.changedPageCount == expected.changedPageCount)
            #expect(checkpoint.pageCount == pageCount)
            #expect(seen.withLock { $0.map(\.done) } == seen.withLock { $0.map(\.done).sorted() })
            #expect(source.checkCount.load(ordering: .sequentiallyConsistent) == 1)
            let target = ProcessMemory(tracking: .compareAll)
            let region = try target.allocate(byteCount: bytes.count)
            _ = try other.restore(checkpoint, into: target)
            #expect(region.bytes.elementsEqual(bytes))
            for _ in 0..<5 {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                bytes[place] &+= 1
            }
        }
    }

    /// After any failure nothing is published, and the next import is correct.
    @Test func aFailureLeavesNothing() throws {
        var random = TestSeed.generator(790)
        let repository = try repository("store")
        let bytes = image(pageCount: 2000, &random)
        let whole = MemoryImage(bytes)
        func fails(
            _ image: MemoryImage, _ code: CheckpointError.Code, _ reason: String,
            progress: ProgressHandler? = nil
        ) throws {
            let error = #expect(throws: CheckpointError.self) {
                try repository.importImage(image, lineage: "a", progress: progress)
            }
            #expect(error?.code == code && error?.message.contains(reason) == true)
            #expect(try repository.checkpoints().isEmpty)
        }
        for read in [0, 1, 17, 31] {
            try fails(
                MemoryImage(bytes, failingRead: read), .callerFailed, "read \(read) failed")
        }
        try fails(MemoryImage(bytes, changes: true), .callerFailed, "somebody wrote to it")
        try fails(whole, .cancelled, "that is enough") { progress in
            if progress.done > 1 << 20 { throw MemoryImage.Failure(description: "that is enough") }
        }
        try fails(MemoryImage([]), .sizeMismatch, "empty")
        try fails(MemoryImage([1, 2, 3]), .sizeMismatch, "not a multiple of 4096")
        let first = try repository.importImage(whole, lineage: "a")
        #expect(first.pageCount == 2000)
        let error = #expect(throws: CheckpointError.self) {
            try repository.importImage(
                MemoryImage([UInt8](bytes.dropLast(Page.byteCount))), lineage: "a")
        }
        #expect(error?.code == .sizeMismatch && error?.message.contains("smaller") == true)
        #expect(try repository.verify().isClean)
    }
}
