import GuestModel
import Synchronization
import Testing
import VarveTestSupport

@testable import LinuxGuest

/// True if this kernel can track writes; otherwise prints the reason, once.
let canTrack: Bool = {
    do throws(GuestError) {
        try ProcessMemory.checkSupport()
        return true
    } catch {
        noteSkipped("skipped, tracking of writes: \(error.message)")
        return false
    }
}()

@Suite(.serialized, .enabled(if: canTrack)) struct ProcessMemoryTests {
    private static let pageCount = 600

    private func page(_ region: MemoryRegion, _ index: Int) -> UnsafeMutableRawPointer {
        region.address(of: PageFrameNumber(region.pages.first.rawValue + UInt64(index)))
    }

    private func take(_ memory: ProcessMemory, _ log: DirtyLog) throws -> Set<UInt64> {
        var bitmap = DirtyBitmap()
        #expect(try memory.takeDirty(log, into: &bitmap, isFinal: true) == .complete)
        return Set(bitmap.runs().flatMap { Array($0.frames) })
    }

    @Test(arguments: [ProcessMemory.Backing.anonymous, .shared])
    func everyWrittenPageIsTakenAndNoOther(backing: ProcessMemory.Backing) throws {
        var random = TestSeed.generator(200)
        let memory = ProcessMemory()
        let first = try memory.allocate(
            byteCount: ProcessMemoryTests.pageCount * Page.byteCount, backing: backing)
        let second = try memory.allocate(byteCount: 100 * Page.byteCount, backing: backing)
        let log = try memory.start()
        #expect(try take(memory, log).isEmpty, "the log begins empty")
        for _ in 0..<50 {
            var written: Set<UInt64> = []
            for _ in 0..<Int.random(in: 0...80, using: &random) {
                let region = Bool.random(using: &random) ? first : second
                let index = Int.random(in: 0..<region.pages.count, using: &random)
                page(region, index).storeBytes(of: UInt8.random(in: 0...255), as: UInt8.self)
                written.insert(region.pages.first.rawValue + UInt64(index))
                // Reading leaves no trace in the log.
                let other = Int.random(in: 0..<region.pages.count, using: &random)
                _ = page(region, other).load(as: UInt8.self)
            }
            #expect(try memory.peekDirtyCount(log) == written.count)
            #expect(try take(memory, log) == written)
        }
    }

    @Test func concurrentWritersLoseNothing() throws {
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: ProcessMemoryTests.pageCount * Page.byteCount)
        let log = try memory.start()
        let isStopped = Atomic(false)
        let writers = (0..<2).map { writer in
            TestThread {
                var random = SeededGenerator(seed: UInt64(writer))
                var value: UInt64 = 0
                while !isStopped.load(ordering: .relaxed) {
                    value += 1
                    let index = Int.random(in: 0..<ProcessMemoryTests.pageCount, using: &random)
                    self.page(region, index)
                        .storeBytes(of: value, toByteOffset: 8 * writer, as: UInt64.self)
                }
            }
        }
        // A shadow copy that follows only the taken bits.
        var shadow = [UInt8](repeating: 0, count: region.bytes.count)
        func follow(_ frames: Set<UInt64>) {
            for frame in frames {
                let range = Int(frame) * Page.byteCount..<Int(frame + 1) * Page.byteCount
                shadow[range].withUnsafeMutableBytes { place in
                    place.copyMemory(from: UnsafeRawBufferPointer(rebasing: region.bytes[range]))
                }
            }
        }
        for _ in 0..<200 { follow(try take(memory, log)) }
        isStopped.store(true, ordering: .relaxed)
        for writer in writers { writer.join() }
        follow(try take(memory, log))
        #expect(shadow.elementsEqual(region.bytes))
    }

    @Test func regionsThatComeLaterAreTakenWhole() throws {
        let memory = ProcessMemory()
        _ = try memory.allocate(byteCount: 10 * Page.byteCount)
        let log = try memory.start()
        let late = try memory.allocate(byteCount: 20 * Page.byteCount)
        #expect(late.pages.first == PageFrameNumber(10))
        #expect(try take(memory, log) == Set(late.pages.frames))
        #expect(try take(memory, log).isEmpty)
    }

    @Test func discardedPagesAreTaken() throws {
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: 10 * Page.byteCount)
        page(region, 4).storeBytes(of: 1, as: UInt8.self)
        let log = try memory.start()
        #expect(try take(memory, log).isEmpty)
        #expect(discard(page(region, 4), Page.byteCount))
        #expect(try take(memory, log) == [4], "the page is zero now")
    }

    @Test func writesByTheKernelAreTaken() throws {
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: 10 * Page.byteCount)
        let log = try memory.start()
        #expect(readRandom(page(region, 2), 2 * Page.byteCount))
        #expect(try take(memory, log) == [2, 3])
    }

    @Test func everyFailingCallIsAnError() throws {
        defer { KernelFault.set(nil) }
        let names = [
            "userfaultfd", "UFFDIO_API", "open", "UFFDIO_REGISTER", "PAGEMAP_SCAN",
        ]
        for name in names {
            let memory = ProcessMemory()
            _ = try memory.allocate(byteCount: 4 * Page.byteCount)
            failCalls(name, errno: 1)
            #expect(throws: GuestError.self, "\(name)") { _ = try memory.start() }
            KernelFault.set(nil)
            let log = try memory.start()
            #expect(try take(memory, log).isEmpty)
        }
        for name in ["memfd_create", "ftruncate", "mmap"] {
            failCalls(name, errno: 12)
            #expect(throws: GuestError.self, "\(name)") {
                try ProcessMemory().allocate(byteCount: Page.byteCount, backing: .shared)
            }
        }
    }

    @Test func anOldKernelGetsOneSentence() throws {
        defer { KernelFault.set(nil) }
        failCalls("PAGEMAP_SCAN", errno: 25)  // ENOTTY
        let error = #expect(throws: GuestError.self) { try ProcessMemory.checkSupport() }
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("6.7") == true)
    }

    /// Reading the log does not change it: the next take has the same pages.
    @Test func readingTheLogDoesNotClearIt() throws {
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: 64 * Page.byteCount)
        let log = try memory.start()
        let written: Set<UInt64> = [3, 4, 40]
        for index in written { page(region, Int(index)).storeBytes(of: 1, as: UInt8.self) }
        for _ in 0..<2 {
            var bitmap = DirtyBitmap()
            #expect(try memory.readDirty(log, into: &bitmap, isFinal: false) == .complete)
            #expect(Set(bitmap.runs().flatMap { Array($0.frames) }) == written)
        }
        #expect(try take(memory, log) == written)
        #expect(try take(memory, log).isEmpty)
    }

    /// The memory of frames in one region is the region's; frames in two have no contiguous memory.
    @Test func memoryIsFoundWhereItIs() throws {
        let memory = ProcessMemory(tracking: .compareAll)
        let first = try memory.allocate(byteCount: 8 * Page.byteCount)
        let second = try memory.allocate(byteCount: 8 * Page.byteCount)
        let range = { PageRange(first: PageFrameNumber($0), count: $1) }
        let found = try #require(memory.mappedMemory(of: range(9, 7)))
        #expect(found.baseAddress == page(second, 1) && found.count == 7 * Page.byteCount)
        #expect(memory.mappedMemory(of: range(0, 8))?.baseAddress == first.bytes.baseAddress)
        #expect(memory.mappedMemory(of: range(7, 2)) == nil)
        #expect(memory.mappedMemory(of: range(15, 2)) == nil)
        #expect(memory.mappedMemory(of: range(16, 1)) == nil)
    }

    @Test func badRegionsAreRefused() throws {
        let memory = ProcessMemory()
        let region = try memory.allocate(byteCount: 4 * Page.byteCount)
        #expect(throws: GuestError.self) { try memory.allocate(byteCount: 100) }
        #expect(throws: GuestError.self) { try memory.allocate(byteCount: 0) }
        #expect(throws: GuestError.self) { try memory.register(region.bytes) }
        let odd = UnsafeMutableRawBufferPointer(rebasing: region.bytes[1..<4097])
        #expect(throws: GuestError.self) { try memory.register(odd) }
        #expect(throws: GuestError.self) { try memory.adoptLayout(GuestLayout(pageCount: 5)) }
        var buffer = [UInt8](repeating: 0, count: Page.byteCount)
        #expect(throws: GuestError.self) {
            try buffer.withUnsafeMutableBytes { bytes in
                var span = bytes.mutableBytes
                let runs = [PageRange(first: PageFrameNumber(4), count: 1)]
                try memory.copyPages(runs.span, into: &span)
            }
        }
    }
}
