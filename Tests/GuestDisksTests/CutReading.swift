import GuestModel
import Testing

@testable import GuestDisks

/// All bytes of a disk of a cut, through `read`, in pieces of an odd number of blocks.
func contents(of cut: any DiskCut, _ index: Int = 0) throws -> [UInt8] {
    let disk = cut.disks[index]
    let room = UnsafeMutableRawBufferPointer.allocate(
        byteCount: 37 * Page.byteCount, alignment: Page.byteCount)
    defer { room.deallocate() }
    var bytes: [UInt8] = []
    var block: UInt64 = 0
    while block < disk.blockCount {
        let end = min(block + 37, disk.blockCount)
        let piece = UnsafeMutableRawBufferPointer(
            rebasing: room[..<(Int(end - block) * Page.byteCount)])
        piece.initializeMemory(as: UInt8.self, repeating: 0xee)
        try cut.read(block..<end, ofDisk: index, into: piece)
        bytes += piece
        block = end
    }
    let padding = bytes[Int(disk.byteCount)...]
    #expect(padding.allSatisfy { $0 == 0 }, "bytes past the end are zero")
    return Array(bytes.prefix(Int(disk.byteCount)))
}

/// Expects ranges to be ascending, separated and within a disk, and to contain every block in which
/// two states differ.
///
/// - Returns: how many blocks the ranges have.
@discardableResult
func expectCovered(
    _ ranges: [BlockRange], from old: [UInt8], to new: [UInt8],
    _ comment: Comment? = nil, sourceLocation: SourceLocation = #_sourceLocation
) -> Int {
    let count = (new.count + Page.byteCount - 1) / Page.byteCount
    var end: UInt64?
    var covered = [Bool](repeating: false, count: count)
    for range in ranges {
        #expect(!range.isEmpty && range.upperBound <= UInt64(count), sourceLocation: sourceLocation)
        #expect(end.map { $0 < range.lowerBound } ?? true, sourceLocation: sourceLocation)
        end = range.upperBound
        for block in range { covered[Int(block)] = true }
    }
    func block(_ bytes: [UInt8], _ index: Int) -> ArraySlice<UInt8> {
        let start = min(bytes.count, index * Page.byteCount)
        return bytes[start..<min(bytes.count, start + Page.byteCount)]
    }
    func isEqual(_ index: Int) -> Bool {
        let (one, other) = (block(old, index), block(new, index))
        let shared = min(one.count, other.count)
        return one.prefix(shared).elementsEqual(other.prefix(shared))
            && one.dropFirst(shared).allSatisfy { $0 == 0 }
            && other.dropFirst(shared).allSatisfy { $0 == 0 }
    }
    let missed = (0..<count).filter { !covered[$0] && !isEqual($0) }
    #expect(missed.isEmpty, comment, sourceLocation: sourceLocation)
    return covered.count { $0 }
}

/// Fails the kernel's call of a number, counted from 0, on this thread; counts all.
final class FailingCalls: @unchecked Sendable {
    // Unchecked: used on one thread.
    private(set) var count = 0
    private(set) var failed: String?
    private let number: Int
    private let code: Int32

    init(failing number: Int, errno code: Int32 = 5) {
        self.number = number
        self.code = code
        KernelFault.set { [self] name in
            defer { count += 1 }
            guard count == number else { return nil }
            failed = name
            return self.code
        }
    }

    func end() { KernelFault.set(nil) }
}
