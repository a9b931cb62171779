package import GuestModel

/// The pages that a transaction stored, by the frame that contained them: ordinals for the page
/// map.
///
/// A page stored for one frame may by now also be the content of another frame. When the first
/// frame changes again, its page becomes an orphan that the map can still refer to; otherwise the
/// other frame would have a digest whose location is in no map.
package struct StoredPages: Sendable {
    private static let none = UInt32.max

    // 64 ordinals per leaf, adjacent in order of creation; nothing is allocated per leaf.
    private var leaves: [UInt32] = []
    private var ordinals: [UInt32] = []
    private var orphans: [PageDigest: UInt32] = [:]

    package init() {}

    /// Records that the current content of `frame` was stored with an ordinal.
    package mutating func insert(_ frame: PageFrameNumber, ordinal: UInt32) {
        let leaf = Int(frame.rawValue / 64)
        if leaf >= leaves.count {
            leaves.append(
                contentsOf: repeatElement(StoredPages.none, count: leaf + 1 - leaves.count))
        }
        if leaves[leaf] == StoredPages.none {
            leaves[leaf] = UInt32(ordinals.count / 64)
            ordinals.append(contentsOf: repeatElement(StoredPages.none, count: 64))
        }
        ordinals[place(leaf, frame)] = ordinal
    }

    private func place(_ leaf: Int, _ frame: PageFrameNumber) -> Int {
        Int(leaves[leaf]) * 64 + Int(frame.rawValue % 64)
    }

    /// Records that `frame` no longer contains `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        guard let ordinal = ordinal(frame) else { return }
        orphans[digest] = ordinal
        ordinals[place(Int(frame.rawValue / 64), frame)] = StoredPages.none
    }

    /// The ordinal of the content of `frame`, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        let leaf = Int(frame.rawValue / 64)
        guard leaf < leaves.count, leaves[leaf] != StoredPages.none else { return nil }
        let ordinal = ordinals[place(leaf, frame)]
        return ordinal == StoredPages.none ? nil : ordinal
    }

    /// Assigns an orphan to a frame again: returns its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.removeValue(forKey: digest)
    }
}
