package import CheckpointFormat
package import GuestModel
package import PackStore

/// The page maps of a checkpoint's volumes in memory, as one map: frame numbers contain the number
/// of the volume (`VolumeNumber`).
///
/// Unchecked: it passes from owner to owner (session, draft, reader), and only the owner accesses
/// it.
package final class PageMap: @unchecked Sendable {
    /// Frame numbers within a volume are below this: 16 TiB.
    package static let frameEndMax = MapBounds.frameEndMax

    /// The map of the guest's memory.
    package let memory = VolumeMap()
    private var disks: [VolumeNumber: VolumeMap] = [:]
    /// Where memory for the maps of large disks is kept.
    package let place: ScratchMemory.Place

    package init(disksIn place: ScratchMemory.Place) { self.place = place }

    /// The map of a volume; an empty one if it has none yet.
    package subscript(volume: VolumeNumber) -> VolumeMap {
        if volume == .memory { return memory }
        if let known = disks[volume] { return known }
        let map = VolumeMap(in: place)
        disks[volume] = map
        return map
    }

    /// The volumes that have a map, ascending.
    package var volumes: [VolumeNumber] { [.memory] + disks.keys.sorted() }

    /// Drops the maps of all disks but these.
    package func keep(_ volumes: [VolumeNumber]) {
        for volume in disks.keys where !volumes.contains(volume) { disks[volume] = nil }
    }

    /// Gives memory of disks' maps that is in files back to the kernel.
    package func releasePages() { for map in disks.values { map.releasePages() } }

    /// Drops the map of a disk.
    package func remove(_ volume: VolumeNumber) { disks[volume] = nil }

    /// The content of a frame.
    package subscript(frame: PageFrameNumber) -> PageContent {
        frame.volume == .memory ? memory[frame] : disks[frame.volume]?[frame.inVolume] ?? .absent
    }

    /// Sets the content of a frame.
    ///
    /// - Returns: true if the content changed.
    @discardableResult
    package func set(_ frame: PageFrameNumber, _ content: PageContent) -> Bool {
        self[frame.volume].set(frame.inVolume, content)
    }

    /// The frames of volumes that exist.
    package func frames(of volumes: [VolumeNumber]) -> FrameSet {
        var frames = FrameSet()
        for volume in volumes {
            let firstLeaf = Int(volume.firstFrame / 64)
            self[volume].forEachLeaf { frames.insert(wordIndex: firstLeaf + $0, mask: $1) }
        }
        return frames
    }

    /// Calls `body` with each page of volumes that is not zero.
    package func forEachPage<E: Error>(
        of volumes: [VolumeNumber], _ body: (PageFrameNumber, PageDigest) throws(E) -> Void
    ) throws(E) {
        for volume in volumes {
            let map = self[volume]
            try map.forEachLeaf { (leaf, mask) throws(E) in
                var rest = mask
                while rest != 0 {
                    let number = UInt64(leaf) * 64 + UInt64(rest.trailingZeroBitCount)
                    rest &= rest - 1
                    guard case .present(let digest) = map[PageFrameNumber(number)] else { continue }
                    try body(PageFrameNumber(number, in: volume), digest)
                }
            }
        }
    }

    /// True if it is the page map that a manifest describes: each volume has the stated root.
    package func hasRoots(of manifest: Manifest) -> Bool {
        manifest.volumes.allSatisfy { self[$0.number].root() == $0.root }
    }

    /// The blocks of a disk whose content differs between two maps.
    package func differingRuns(of disk: VolumeNumber, from other: PageMap) -> [PageRange] {
        self[disk].differingRuns(from: other[disk])
    }
}
