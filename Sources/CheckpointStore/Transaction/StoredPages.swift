package import GuestModel

/// Which pages a transaction stored, by the frame that held them: ordinals for the page map.
///
/// A page that was stored for one frame may be named by another frame meanwhile. When the first
/// frame changes again its page becomes an orphan that the map can still name; without that the
/// other frame would have a digest that no map says the place of.
package struct StoredPages: Sendable {
    private static let none = UInt32.max

    // 64 ordinals a leaf, side by side in the order in which leaves came; nothing is allocated for
    // each.
    private var leaves: [UInt32] = []
    private var ordinals: [UInt32] = []
    private var orphans: [PageDigest: UInt32] = [:]

    package init() {}

    /// Notes that the content that `frame` has now was stored with an ordinal.
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

    /// Notes that `frame` no longer holds `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        guard let ordinal = ordinal(frame) else { return }
        orphans[digest] = ordinal
        ordinals[place(Int(frame.rawValue / 64), frame)] = StoredPages.none
    }

    /// The ordinal of the page that `frame` holds, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        let leaf = Int(frame.rawValue / 64)
        guard leaf < leaves.count, leaves[leaf] != StoredPages.none else { return nil }
        let ordinal = ordinals[place(leaf, frame)]
        return ordinal == StoredPages.none ? nil : ordinal
    }

    /// Gives an orphan a frame again: its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.removeValue(forKey: digest)
    }
}
