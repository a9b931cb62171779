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

    /// The ordinals of a kind of volumes: 64 per leaf, adjacent in order of creation; nothing is
    /// allocated per leaf.
    private struct Ordinals: Sendable {
        private static let leavesPerBlock = 512

        private nonisolated(unsafe) var blocks: [UnsafeMutablePointer<UInt32>] = []
        private(set) var leafCount: UInt32 = 0
        private let memory: ScratchMemory

        init(in place: ScratchMemory.Place) { memory = ScratchMemory(place) }

        subscript(index: Int) -> UInt32 {
            // As in memory, where it is 0 at first.
            get { ~blocks[index / Ordinals.blockCount][index % Ordinals.blockCount] }
            nonmutating set {
                blocks[index / Ordinals.blockCount][index % Ordinals.blockCount] = ~newValue
            }
        }

        private static let blockCount = leavesPerBlock * 64

        mutating func addLeaf() -> UInt32 {
            if Int(leafCount) == blocks.count * Ordinals.leavesPerBlock {
                blocks.append(memory.allocate(Ordinals.blockCount))
            }
            defer { leafCount += 1 }
            return leafCount
        }
    }

    // Leaves are found by volume, chunk and place; chunks without any are empty.
    private var leaves: [[[UInt32]]] = []
    private var ofMemory = Ordinals(in: .process)
    private var ofDisks: Ordinals
    private var orphans: [PageDigest: UInt32] = [:]

    /// - Parameter place: where memory for the pages of large disks is to be kept.
    package init(disksIn place: ScratchMemory.Place) { ofDisks = Ordinals(in: place) }

    /// Records that the current content of `frame` was stored with an ordinal.
    package mutating func insert(_ frame: PageFrameNumber, ordinal: UInt32) {
        let (volume, chunk, leaf) = StoredPages.place(of: frame)
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
        if leaves[volume][chunk][leaf] == StoredPages.none {
            leaves[volume][chunk][leaf] = volume == 0 ? ofMemory.addLeaf() : ofDisks.addLeaf()
        }
        set(frame, at: Int(leaves[volume][chunk][leaf]) * 64 + Int(frame.rawValue % 64), ordinal)
    }

    private static func place(of frame: PageFrameNumber) -> (volume: Int, chunk: Int, leaf: Int) {
        let leaf = frame.inVolume.rawValue / 64
        return (
            Int(frame.volume.rawValue), Int(leaf / leavesPerChunk), Int(leaf % leavesPerChunk)
        )
    }

    /// The index of a frame's ordinal; nil if no frame of its leaf was stored.
    private func index(of frame: PageFrameNumber) -> Int? {
        let (volume, chunk, leaf) = StoredPages.place(of: frame)
        guard volume < leaves.count, chunk < leaves[volume].count, !leaves[volume][chunk].isEmpty
        else { return nil }
        let number = leaves[volume][chunk][leaf]
        return number == StoredPages.none
            ? nil : Int(number) * 64 + Int(frame.rawValue % 64)
    }

    private func set(_ frame: PageFrameNumber, at index: Int, _ ordinal: UInt32) {
        if frame.volume == .memory { ofMemory[index] = ordinal } else { ofDisks[index] = ordinal }
    }

    /// Records that `frame` no longer contains `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        guard let index = index(of: frame), let ordinal = ordinal(frame) else { return }
        orphans[digest] = ordinal
        set(frame, at: index, StoredPages.none)
    }

    /// The ordinal of the content of `frame`, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        guard let index = index(of: frame) else { return nil }
        let ordinal = frame.volume == .memory ? ofMemory[index] : ofDisks[index]
        return ordinal == StoredPages.none ? nil : ordinal
    }

    /// Assigns an orphan to a frame again: returns its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.removeValue(forKey: digest)
    }
}
