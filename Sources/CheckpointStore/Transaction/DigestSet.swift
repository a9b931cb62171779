import GuestModel

/// A set of digests: a hash table with open addressing, at most half full.
///
/// A `Set` would hash again what is already uniform. The slot of a digest depends on a random
/// number per table, so that a guest cannot choose pages that collide.
struct DigestSet: Sendable {
    // A free slot contains `.none`, which is not the digest of any page.
    private var slots: [PageDigest] = []
    private let factor = UInt64.random(in: .min ... .max) | 1
    private(set) var count = 0

    /// Inserts the digest of a page.
    ///
    /// - Returns: false if it was already there.
    mutating func insert(_ digest: PageDigest) -> Bool {
        if count * 2 >= slots.count { grow() }
        let index = place(digest)
        guard slots[index] == .none else { return false }
        slots[index] = digest
        count += 1
        return true
    }

    /// Empties the table but keeps its memory.
    mutating func removeAll() {
        for index in slots.indices { slots[index] = .none }
        count = 0
    }

    /// The index at which a digest is, or would be.
    private func place(_ digest: PageDigest) -> Int {
        precondition(digest != .none, "no page has this digest")
        let mask = slots.count - 1
        // Bits of a product depend on all lower bits of the word, so on 33 or more of them here.
        var index = Int((digest.words.0 &* factor) >> 32) & mask
        while slots[index] != .none, slots[index] != digest { index = (index + 1) & mask }
        return index
    }

    private mutating func grow() {
        let old = slots
        slots = Array(repeating: .none, count: max(1024, old.count * 2))
        for digest in old where digest != .none { slots[place(digest)] = digest }
    }
}
