import CheckpointFormat
package import GuestModel
package import PackStore

/// The pages that a transaction stored, by the frame that contained them: ordinals for the page
/// map.
///
/// A page stored for one frame may by now also be the content of another frame. When the first
/// frame changes again, its page becomes an orphan that the map can still refer to; otherwise the
/// other frame would have a digest whose location is in no map.
///
/// Not copyable: a copy for each page that is looked up would count references.
package struct StoredPages: ~Copyable, Sendable {
    private let ofMemory = StoredOrdinals(in: ScratchMemory(.process))
    private var ofDisks: [VolumeNumber: StoredOrdinals] = [:]
    private let disksMemory: ScratchMemory
    private var orphans: [PageDigest: UInt32] = [:]

    /// - Parameter place: where memory for the pages of large disks is to be kept.
    package init(disksIn place: ScratchMemory.Place) { disksMemory = ScratchMemory(place) }

    /// Records that the current content of `frame` was stored with an ordinal.
    package mutating func insert(_ frame: PageFrameNumber, ordinal: UInt32) {
        let volume = frame.volume
        if volume == .memory { return ofMemory.set(frame, ordinal) }
        let disk = ofDisks[volume] ?? StoredOrdinals(in: disksMemory)
        ofDisks[volume] = disk
        disk.set(frame.inVolume, ordinal)
    }

    /// Records that `frame` no longer contains `digest`.
    package mutating func forget(_ frame: PageFrameNumber, holding digest: PageDigest) {
        let volume = frame.volume
        let ordinal =
            volume == .memory ? ofMemory.remove(frame) : ofDisks[volume]?.remove(frame.inVolume)
        if let ordinal { orphans[digest] = ordinal }
    }

    /// The ordinal of the content of `frame`, if this transaction stored it for that frame.
    package func ordinal(_ frame: PageFrameNumber) -> UInt32? {
        let volume = frame.volume
        return volume == .memory ? ofMemory[frame] : ofDisks[volume]?[frame.inVolume]
    }

    /// Assigns an orphan to a frame again: returns its ordinal, once.
    package mutating func adopt(_ digest: PageDigest) -> UInt32? {
        orphans.isEmpty ? nil : orphans.removeValue(forKey: digest)
    }
}

/// The ordinals of one volume's frames, in leaves of 64 that exist where a page was stored.
///
/// Unchecked: it belongs to one `StoredPages`, which has one user at a time.
private final class StoredOrdinals: @unchecked Sendable {
    private typealias Leaf = UnsafeMutablePointer<UInt32>

    private static let leavesPerChunk = 512

    // Memory is zero at first, and 0 is an ordinal while `UInt32.max` is none: the complement is
    // kept.
    private var chunks: [UnsafeMutablePointer<Leaf?>?] = []
    private let memory: ScratchMemory

    init(in memory: ScratchMemory) { self.memory = memory }

    subscript(frame: PageFrameNumber) -> UInt32? {
        guard let place = place(of: frame), place.pointee != 0 else { return nil }
        return ~place.pointee
    }

    /// Where the complement of a frame's ordinal is; nil if no frame of its leaf was stored.
    private func place(of frame: PageFrameNumber) -> UnsafeMutablePointer<UInt32>? {
        let leaf = Int(frame.rawValue / 64)
        let (chunk, index) = leaf.quotientAndRemainder(dividingBy: StoredOrdinals.leavesPerChunk)
        guard chunk < chunks.count, let leaf = chunks[chunk]?[index] else { return nil }
        return leaf + Int(frame.rawValue % 64)
    }

    func set(_ frame: PageFrameNumber, _ ordinal: UInt32) {
        (place(of: frame) ?? addPlace(of: frame)).pointee = ~ordinal
    }

    private func addPlace(of frame: PageFrameNumber) -> UnsafeMutablePointer<UInt32> {
        let leaf = Int(frame.rawValue / 64)
        let (chunk, index) = leaf.quotientAndRemainder(dividingBy: StoredOrdinals.leavesPerChunk)
        if chunk >= chunks.count {
            chunks.append(contentsOf: repeatElement(nil, count: chunk + 1 - chunks.count))
        }
        let leaves = chunks[chunk] ?? memory.allocate(StoredOrdinals.leavesPerChunk)
        chunks[chunk] = leaves
        let added: Leaf = memory.allocate(64)
        leaves[index] = added
        return added + Int(frame.rawValue % 64)
    }

    /// Forgets the ordinal of a frame, and returns it.
    func remove(_ frame: PageFrameNumber) -> UInt32? {
        guard let place = place(of: frame), place.pointee != 0 else { return nil }
        defer { place.pointee = 0 }
        return ~place.pointee
    }
}
