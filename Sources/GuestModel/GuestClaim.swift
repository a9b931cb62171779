import Synchronization

// A guest has one owner. Two owners of the same guest would share one dirty log: what one takes
// from it the other never sees, and its checkpoints silently lack pages.
//
//   free -> claimed -> released         `release`, or the last reference is dropped
// claimed -> refused                  for all other callers: `busy`
//
// The claims of this process are in one list, compared by what they cover: an object, and ranges of
// memory. It has one entry per session, so a linear search is enough.

/// The right of one owner to capture a guest, until it is released.
///
/// Returned by `Guest.claim`. It keeps the guest alive. Thread-safe; nothing here blocks.
public final class GuestClaim: Sendable {
    private struct Entry: Sendable {
        let number: UInt64
        // Referenced, so that no other object gets its identity meanwhile.
        let guest: any Guest
        var memory: [Range<UInt>]
    }

    private struct List: Sendable {
        var entries: [Entry] = []
        var lastNumber: UInt64 = 0

        /// Throws if the memory belongs to another claim.
        func check(_ memory: [Range<UInt>], besides number: UInt64?) throws(GuestError) {
            for entry in entries where entry.number != number {
                let taken = entry.memory.first { one in memory.contains { $0.overlaps(one) } }
                guard let taken else { continue }
                throw GuestError(
                    code: .busy,
                    message: "memory at 0x\(String(taken.lowerBound, radix: 16)) belongs to a "
                        + "guest that a capture session of this process owns; "
                        + GuestClaim.remedy)
            }
        }
    }

    private static let list = Mutex(List())
    private static let remedy =
        "close that session first, or take the checkpoints by it: a guest has one dirty log"

    private let number: UInt64

    /// Claims a guest, and memory of this process that other objects may represent too.
    ///
    /// - Parameters:
    ///   - guest: compared by identity.
    ///   - memory: what no other claim may include; empty if the object alone identifies the guest.
    /// - Throws: `busy` if this object, or a byte of the memory, is claimed already.
    public init(
        of guest: any Guest, memory: [UnsafeRawBufferPointer] = []
    ) throws(GuestError) {
        let ranges = memory.map { GuestClaim.range($0) }
        number = try GuestClaim.list.withLock { (list) throws(GuestError) -> UInt64 in
            guard !list.entries.contains(where: { $0.guest === guest }) else {
                throw GuestError(
                    code: .busy,
                    message: "a capture session of this process owns this guest already; "
                        + GuestClaim.remedy)
            }
            try list.check(ranges, besides: nil)
            list.lastNumber += 1
            list.entries.append(Entry(number: list.lastNumber, guest: guest, memory: ranges))
            return list.lastNumber
        }
    }

    deinit { release() }

    /// Frees the guest for another owner.
    ///
    /// Harmless when called again: it never ends another owner's claim.
    public func release() {
        // Released outside the lock: what the guest's deinit does is not known here.
        let released = GuestClaim.list.withLock { list -> Entry? in
            guard let index = list.entries.firstIndex(where: { $0.number == number }) else {
                return nil
            }
            return list.entries.remove(at: index)
        }
        withExtendedLifetime(released) {}
    }

    /// Adds memory that a guest acquired to its claim; does nothing if it has none.
    ///
    /// - Throws: `busy` if a byte of it is claimed by another guest's owner.
    package static func extend(
        of guest: any Guest, to memory: UnsafeRawBufferPointer
    ) throws(GuestError) {
        try list.withLock { (list) throws(GuestError) in
            guard let index = list.entries.firstIndex(where: { $0.guest === guest }) else { return }
            try list.check([range(memory)], besides: list.entries[index].number)
            list.entries[index].memory.append(range(memory))
        }
    }

    /// Removes memory from a guest's claim; does nothing if it has none.
    package static func withdraw(_ memory: UnsafeRawBufferPointer, of guest: any Guest) {
        list.withLock { list in
            guard let index = list.entries.firstIndex(where: { $0.guest === guest }) else { return }
            list.entries[index].memory.removeAll { $0 == range(memory) }
        }
    }

    private static func range(_ memory: UnsafeRawBufferPointer) -> Range<UInt> {
        let start = UInt(bitPattern: memory.baseAddress)
        return start..<start + UInt(memory.count)
    }
}
