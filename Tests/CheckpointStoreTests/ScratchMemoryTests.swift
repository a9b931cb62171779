import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointIndex
@testable import CheckpointStore
@testable import PackStore

@Suite struct ScratchMemoryTests {
    /// A place in a directory, which gets an index directory as a store has it.
    static func place(
        _ directory: TemporaryDirectory, ownByteCountMax: Int
    ) throws -> ScratchMemory.Place {
        let files = PosixFiles(root: directory.path)
        try files.createDirectory(StoreDirectory.index)
        return ScratchMemory.Place(files: files, ownByteCountMax: ownByteCountMax)
    }

    /// Writes to each allocation, and reads all of them after the memory was given back.
    private static func use(_ memory: ScratchMemory, byteCount: Int) {
        let count = 1 << 17
        var arrays: [UnsafeMutablePointer<UInt64>] = []
        for number in 0..<byteCount / (8 * count) {
            let array = memory.allocate(count, of: UInt64.self)
            let isZero = (0..<count).allSatisfy { array[$0] == 0 }
            #expect(isZero, "it is zero at first")
            for index in 0..<count { array[index] = UInt64(number * count + index) }
            arrays.append(array)
        }
        memory.releasePages()
        for (number, array) in arrays.enumerated() {
            let isHeld = (0..<count).allSatisfy { array[$0] == UInt64(number * count + $0) }
            #expect(isHeld, "array \(number)")
        }
    }

    /// True if the process has a page of memory mapped now: bit 63 of /proc/self/pagemap.
    private static func isPresent(_ memory: UnsafeRawPointer) throws -> Bool {
        let file = open("/proc/self/pagemap", O_RDONLY)
        try #require(file >= 0)
        defer { close(file) }
        var entry: UInt64 = 0
        let offset = Int(bitPattern: memory) / Page.byteCount * 8
        try #require(pread(file, &entry, 8, offset) == 8)
        return entry >> 63 == 1
    }

    @Test func whatIsInTheFileIsGivenBack() throws {
        let directory = TemporaryDirectory()
        let memory = ScratchMemory(try ScratchMemoryTests.place(directory, ownByteCountMax: 0))
        let count = (8 << 20) / 8
        let first = memory.allocate(count, of: UInt64.self)
        first[0] = 7
        #expect(try ScratchMemoryTests.isPresent(first))
        // Its owner fills another extent.
        let second = memory.allocate(count, of: UInt64.self)
        second[0] = 8
        #expect(try !ScratchMemoryTests.isPresent(first))
        #expect(try ScratchMemoryTests.isPresent(second))
        memory.releasePages()
        #expect(try !ScratchMemoryTests.isPresent(second))
        #expect(first[0] == 7 && second[0] == 8)
    }

    @Test func smallArraysFillWhatLargeOnesLeave() throws {
        let memory = ScratchMemory(.process)
        for _ in 0..<8 {
            _ = memory.allocate(100, of: UInt64.self)
            _ = memory.allocate(1 << 20, of: UInt8.self)
        }
        #expect(memory.byteCounts == (9 << 20, 0))
    }

    @Test func aLittleIsTheProcesssOwn() throws {
        let directory = TemporaryDirectory()
        let memory = ScratchMemory(
            try ScratchMemoryTests.place(directory, ownByteCountMax: 4 << 20))
        ScratchMemoryTests.use(memory, byteCount: 4 << 20)
        #expect(memory.byteCounts == (4 << 20, 0))
    }

    @Test func theRestIsInAFileWithoutAName() throws {
        let directory = TemporaryDirectory()
        let place = try ScratchMemoryTests.place(directory, ownByteCountMax: 4 << 20)
        let memory = ScratchMemory(place)
        ScratchMemoryTests.use(memory, byteCount: 30 << 20)
        #expect(memory.byteCounts == (4 << 20, 32 << 20))
        #expect(try place.files?.list(StoreDirectory.index) == [])
    }

    @Test func itIsTheProcesssOwnWhereThereCanBeNoFile() throws {
        let directory = TemporaryDirectory()
        // There is no index directory.
        let place = ScratchMemory.Place(
            files: PosixFiles(root: directory.path), ownByteCountMax: 0)
        let memory = ScratchMemory(place)
        ScratchMemoryTests.use(memory, byteCount: 10 << 20)
        #expect(memory.byteCounts == (10 << 20, 0))
    }

    @Test(.enabled(if: geteuid() == 0)) func itIsTheProcesssOwnOnceTheFileSystemIsFull() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.string
        guard mount("tmpfs", path, "tmpfs", 0, "size=12m") == 0 else {
            noteSkipped("skipped, page maps on a full disk: tmpfs cannot be mounted here")
            return
        }
        defer { umount2(path, Int32(MNT_DETACH)) }
        let place = try ScratchMemoryTests.place(directory, ownByteCountMax: 0)
        let memory = ScratchMemory(place)
        ScratchMemoryTests.use(memory, byteCount: 20 << 20)
        #expect(memory.byteCounts == (12 << 20, 8 << 20))
    }
}
