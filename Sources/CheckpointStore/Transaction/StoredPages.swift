import CheckpointFormat
package import GuestModel
package import PackStore

/// The pages that a transaction stored, by the frame that contained them: ordinals for the page
/// map.
///
/// A page stored for one frame may by now also be the content of another frame. When the first
/// frame changes again, its page becomes an orphan that the map can still refer to; otherwise the
/// other frame would have a digest whose location is in no map.
package struct StoredPages: Sendable {
    private static let none = UInt32.max

    private static let leavesPerChunk: UInt64 = 512

    /// Ordinals: 64 per leaf, adjacent in order of creation; nothing is allocated per leaf.
    ///
    /// Unchecked: it belongs to one `StoredPages`, which has one user at a time.
    private final class Ordinals: @unchecked Sendable {
        private static let leavesPerBlock = 512

        // Memory is zero at first, and `none` is all ones: the complement is kept.
        private var blocks: [UnsafeMutablePointer<UInt32>] = []
        private var leafCount: UInt32 = 0
        private let memory: ScratchMemory

        init(in place: ScratchMemory.Place) { memory = ScratchMemory(place) }

        subscript(leaf: UInt32, index: Int) -> UInt32 {
            get { ~place(leaf)[index] }
            set { place(leaf)[index] = ~newValue }
        }

        private func place(_ leaf: UInt32) -> UnsafeMutablePointer<UInt32> {
            let (block, place) = Int(leaf).quotientAndRemainder(
                dividingBy: Ordinals.leavesPerBlock)
            return blocks[block] + place * 64
        }

        func addLeaf() -> UInt32 {
            if Int(leafCount) == blocks.count * Ordinals.leavesPerBlock {
                blocks.append(memory.allocate(Ordinals.leavesPerBlock * 64))
            }
            defer { leafCount += 1 }
            return leafCount
        }
    }

    // Leaves are found by volume, chunk and place; chunks without any are empty.
    private var leaves: [[[UInt32]]] = []
    private let ofMemory = Ordinals(in: .process)
    private let ofDisks: Ordinals
    private var orphans: [PageDigest: UInt32] = [:]

    /// - Parameter place: where memory for the pages of large disks is to be kept.
    package init(disksIn place: ScratchMemory.Place) { ofDisks = Ordinals(in: place) }

    /// Records that the current content of `frame` was stored with an ordinal.
    package mutating func insert(_ frame: PageFrameNumber, ordinal: UInt32) {
        let (volume, chunk, place) = StoredPages.place(of: frame)
        if volume >= leaves.count {
            leaves.append(contentsOf: repeatElement([], count: volume + 1 - leaves.count))
        }
        if chunk >= leaves[volume].count {
            leaves[volume].append(
                contentsOf: repeatElement([], count: chunk + 1 - leaves[volume].count))
        }
        if leaves[volume][chunk].isEmpty {
            leaves[volume][chunk] = Array(
                repeating: StoredPages.none, count: Int(StoredPages.leavesPerChunk))
        }
        let ordinals = ordinals(of: frame)
        if leaves[volume][chunk][place] == StoredPages.none {
            leaves[volume][chunk][place] = ordinals.addLeaf()
        }
        ordinals[leaves[volume][chunk][place], Int(frame.rawValue % 64)] = ordinal
    }

    private func ordinals(of frame: PageFrameNumber) -> Ordinals {
        frame.volume == .memory ? ofMemory : ofDisks
    }

    private static func place(of frame: PageFrameNumber) -> (volume: Int, chunk: Int, place: Int) {
        let leaf = frame.inVolume.rawValue / 64
        return (
            Int(frame.volume.rawValue), Int(leaf / leavesPerChunk), Int(leaf % leavesPerChunk)
        )
    }

    /// The leaf of a frame; nil if no frame of it was stored.
    private func leaf(of frame: PageFrameNumber) -> UInt32? {
        let (volume, chunk, place) = StoredPages.place(of: frame)
        guard volume < leaves.count, chunk < leaves[volume].count, !leaves[volume][chunk].isEmpty
        else { return nil }
        let leaf = leaves[volume][chunk][place]
        return leaf == StoredPages.none ? nil : leaf
    }

    /// Records that `frame` no longer contains `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        guard let leaf = leaf(of: frame), let ordinal = ordinal(frame) else { return }
        orphans[digest] = ordinal
        ordinals(of: frame)[leaf, Int(frame.rawValue % 64)] = StoredPages.none
    }

    /// The ordinal of the content of `frame`, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        guard let leaf = leaf(of: frame) else { return nil }
        let ordinal = ordinals(of: frame)[leaf, Int(frame.rawValue % 64)]
        return ordinal == StoredPages.none ? nil : ordinal
    }

    /// Assigns an orphan to a frame again: returns its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.removeValue(forKey: digest)
    }
}
