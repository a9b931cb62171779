import CLinux
import Glibc
import GuestModel

/// Memory of a domain that can be mapped page by page, in any order and more than once: like a
/// foreign mapping, a mapping is the memory itself.
final class FakeMemory: Sendable {
    static let slotCount = 1 << 15

    private let descriptor: Int32
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer

    init() {
        descriptor = clinux_memfd("domain")
        let byteCount = FakeMemory.slotCount * Page.byteCount
        precondition(ftruncate(descriptor, byteCount) == 0, "memory for a domain")
        let address = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let address, address != MAP_FAILED else {
            preconditionFailure("a domain's memory cannot be mapped")
        }
        base = address
    }

    deinit {
        munmap(base, FakeMemory.slotCount * Page.byteCount)
        close(descriptor)
    }

    /// One page, as the domain itself sees it.
    func page(_ slot: Int) -> UnsafeMutableRawBufferPointer {
        precondition(slot < FakeMemory.slotCount, "the domain ballooned more than a test needs")
        return UnsafeMutableRawBufferPointer(
            start: base + slot * Page.byteCount, count: Page.byteCount)
    }

    /// Maps pages contiguously; accessing one without a slot is a fault.
    func map(_ slots: [Int?], isWritable: Bool) -> UnsafeMutableRawPointer {
        let byteCount = slots.count * Page.byteCount
        let none = mmap(nil, byteCount, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let none, none != MAP_FAILED else { preconditionFailure("no room for a mapping") }
        let protection = isWritable ? PROT_READ | PROT_WRITE : PROT_READ
        var position = 0
        while position < slots.count {
            guard let first = slots[position] else {
                position += 1
                continue
            }
            var count = 1
            while position + count < slots.count, slots[position + count] == first + count {
                count += 1
            }
            let address = mmap(
                none + position * Page.byteCount, count * Page.byteCount, protection,
                MAP_SHARED | MAP_FIXED, descriptor, off_t(first * Page.byteCount))
            precondition(address != MAP_FAILED, "a page cannot be mapped")
            position += count
        }
        return none
    }

    static func unmap(_ address: UnsafeMutableRawPointer, pageCount: Int) {
        munmap(address, pageCount * Page.byteCount)
    }
}
