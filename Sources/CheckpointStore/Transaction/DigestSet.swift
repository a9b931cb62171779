import GuestModel

/// Digests, each once: a table with open addressing, at most half of it taken.
///
/// A `Set` hashes once more what is uniform already. Where a digest goes depends on a number drawn
/// for each table, so that a guest cannot choose pages that collide.
struct DigestSet: Sendable {
    // A free slot holds `.none`, which no page has.
    private var slots: [PageDigest] = []
    private let factor = UInt64.random(in: .min ... .max) | 1
    private(set) var count = 0

    /// Inserts a digest of a page.
    ///
    /// - Returns: false if it was there.
    mutating func insert(_ digest: PageDigest) -> Bool {
        if count * 2 >= slots.count { grow() }
        let index = place(digest)
        guard slots[index] == .none else { return false }
        slots[index] = digest
        count += 1
        return true
    }

    /// Empties the table, and keeps its memory.
    mutating func removeAll() {
        for index in slots.indices { slots[index] = .none }
        count = 0
    }

    /// Where a digest is, or would be.
    private func place(_ digest: PageDigest) -> Int {
        precondition(digest != .none, "no page has this digest")
        let mask = slots.count - 1
        // Each bit of a product depends on the word's bits up to it, and so on 33 or more here.
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
