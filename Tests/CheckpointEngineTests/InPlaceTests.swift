import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Foundation
import GuestModel
import LinuxGuest
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// Restores and reverts of memory that this process can access: pages are decompressed and compared
/// in place.
@Suite struct InPlaceTests {
    private let directory = TemporaryDirectory()
    private var path: FilePath { directory.path.appending("store") }

    /// A guest of three regions, so that blocks of pages span regions.
    private static func guest(_ tracking: ProcessMemory.Tracking) throws -> ProcessMemory {
        let memory = ProcessMemory(tracking: tracking)
        for count in [37, 1, 300] { _ = try memory.allocate(byteCount: count * Page.byteCount) }
        return memory
    }

    private static func contents(_ memory: ProcessMemory) -> [[UInt8]] {
        memory.allRegions.map { Array(UnsafeRawBufferPointer($0.bytes)) }
    }

    /// Writes runs of pages: noise, compressible text, zeros, or pages that exist already.
    private static func write(
        _ memory: ProcessMemory, _ random: inout SeededGenerator, runs: Int
    ) {
        for _ in 0..<runs {
            guard let region = memory.allRegions.randomElement(using: &random) else { return }
            let first = Int.random(in: 0..<region.pages.count, using: &random)
            let count = Int.random(in: 1...min(20, region.pages.count - first), using: &random)
            let kind = Int.random(in: 0..<4, using: &random)
            for page in first..<first + count {
                let bytes = UnsafeMutableRawBufferPointer(
                    rebasing: region.bytes[page * Page.byteCount..<(page + 1) * Page.byteCount])
                switch kind {
                case 0:
                    for offset in stride(from: 0, to: Page.byteCount, by: 8) {
                        bytes.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
                    }
                case 1:
                    let byte = UInt8.random(in: 1...255, using: &random)
                    bytes.initializeMemory(as: UInt8.self, repeating: byte)
                    bytes.storeBytes(of: random.next(), toByteOffset: 64, as: UInt64.self)
                case 2: bytes.initializeMemory(as: UInt8.self, repeating: 0)
                default: bytes.initializeMemory(as: UInt8.self, repeating: 7)
                }
            }
        }
    }

    /// After any writes, captures and reverts, the memory is equal to the checkpoint, and the next
    /// capture takes exactly what changed.
    @Test(
        arguments: tracksWrites
            ? [ProcessMemory.Tracking.writeProtect, .compareAll] : [.compareAll])
    func memoryIsWhatItWas(tracking: ProcessMemory.Tracking) throws {
        var random = TestSeed.generator(310)
        let memory = try InPlaceTests.guest(tracking)
        let repository = try Repository.create(at: path)
        let session = try CaptureSession(of: memory, in: repository, lineage: "own")
        var known: [(checkpoint: Checkpoint, contents: [[UInt8]])] = []
        for step in 0..<60 {
            InPlaceTests.write(memory, &random, runs: Int.random(in: 0...6, using: &random))
            if known.isEmpty || step % 2 == 0 {
                let result = try session.capture()
                known.append((result.checkpoint, InPlaceTests.contents(memory)))
            } else if let target = known.randomElement(using: &random) {
                let before = InPlaceTests.contents(memory)
                let result = try session.revert(to: target.checkpoint)
                let isEqual = InPlaceTests.contents(memory) == target.contents
                #expect(isEqual)
                let differing = InPlaceTests.differing(before, target.contents)
                #expect(result.writtenPageCount == differing, "only what differs is written")
                let next = try session.capture().checkpoint
                #expect(next.changedPageCount == 0 && next.parent == target.checkpoint.id)
                #expect(next.memory.root == target.checkpoint.memory.root)
            }
        }
        for (checkpoint, contents) in known {
            let target = try InPlaceTests.guest(.compareAll)
            InPlaceTests.write(target, &random, runs: 9)
            _ = try repository.restore(checkpoint, into: target)
            let isEqual = InPlaceTests.contents(target) == contents
            #expect(isEqual)
        }
        session.close()
        #expect(try repository.verify().isClean)
    }

    private static func differing(_ one: [[UInt8]], _ other: [[UInt8]]) -> Int {
        var count = 0
        for (mine, theirs) in zip(one, other) {
            for start in stride(from: 0, to: mine.count, by: Page.byteCount)
            where mine[start..<start + Page.byteCount] != theirs[start..<start + Page.byteCount] {
                count += 1
            }
        }
        return count
    }

    /// A restore that finds damage leaves no unchecked byte in the guest: each page is the
    /// checkpoint's, or zero, or has its earlier contents.
    @Test func nothingUnverifiedStays() throws {
        var random = TestSeed.generator(311)
        let memory = try InPlaceTests.guest(.compareAll)
        InPlaceTests.write(memory, &random, runs: 60)
        let contents = InPlaceTests.contents(memory)
        do {
            let repository = try Repository.create(at: path)
            let session = try CaptureSession(of: memory, in: repository, lineage: "own")
            _ = try session.capture()
            session.close()
            try repository.close()
        }
        let pack = URL(filePath: path.appending("packs/00000001.pack").string)
        let whole = try Data(contentsOf: pack)
        var failed = 0
        for _ in 0..<200 {
            var damaged = whole
            damaged[Int.random(in: 64..<whole.count, using: &random)] ^=
                1 << UInt8.random(in: 0..<8, using: &random)
            try damaged.write(to: pack)
            let target = try InPlaceTests.guest(.compareAll)
            for region in target.allRegions {
                region.bytes.initializeMemory(as: UInt8.self, repeating: 0xaa)
            }
            do {
                let repository = try Repository.open(at: path, .reading)
                let checkpoint = try repository.checkpoint(named: "own")
                _ = try repository.restore(checkpoint, into: target)
                let isEqual = InPlaceTests.contents(target) == contents
                #expect(isEqual)
            } catch {
                failed += 1
            }
            let isHarmless = InPlaceTests.isHarmless(InPlaceTests.contents(target), contents)
            #expect(isHarmless)
        }
        #expect(failed > 100, "damage was found: \(failed) of 200")
    }

    private static func isHarmless(_ found: [[UInt8]], _ contents: [[UInt8]]) -> Bool {
        for (mine, theirs) in zip(found, contents) {
            for start in stride(from: 0, to: mine.count, by: Page.byteCount) {
                let page = mine[start..<start + Page.byteCount]
                guard
                    page == theirs[start..<start + Page.byteCount]
                        || page.allSatisfy({ $0 == 0 }) || page.allSatisfy({ $0 == 0xaa })
                else { return false }
            }
        }
        return true
    }
}
