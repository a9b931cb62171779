package import GuestModel

/// Which pages a transaction stored, by the frame that held them: ordinals for the page map.
///
/// A page that was stored for one frame may be named by another frame meanwhile. When the first
/// frame changes again its page becomes an orphan that the map can still name; without that the
/// other frame would have a digest that no map says the place of.
package struct StoredPages: Sendable {
    private static let none = UInt32.max

    // 64 ordinals a leaf, allocated as needed.
    private var leaves: [[UInt32]] = []
    private var orphans: [PageDigest: UInt32] = [:]

    package init() {}

    /// Notes that the content that `frame` has now was stored with an ordinal.
    package mutating func insert(_ frame: PageFrameNumber, ordinal: UInt32) {
        let leaf = Int(frame.rawValue / 64)
        if leaf >= leaves.count {
            leaves.append(contentsOf: repeatElement([], count: leaf + 1 - leaves.count))
        }
        if leaves[leaf].isEmpty {
            leaves[leaf] = [UInt32](repeating: StoredPages.none, count: 64)
        }
        leaves[leaf][Int(frame.rawValue % 64)] = ordinal
    }

    /// Notes that `frame` no longer holds `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        guard let ordinal = ordinal(frame) else { return }
        orphans[digest] = ordinal
        leaves[Int(frame.rawValue / 64)][Int(frame.rawValue % 64)] = StoredPages.none
    }

    /// The ordinal of the page that `frame` holds, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        let leaf = Int(frame.rawValue / 64)
        guard leaf < leaves.count, !leaves[leaf].isEmpty else { return nil }
        let ordinal = leaves[leaf][Int(frame.rawValue % 64)]
        return ordinal == StoredPages.none ? nil : ordinal
    }

    /// Gives an orphan a frame again: its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.removeValue(forKey: digest)
    }
}
