// A checkpoint has volumes: the guest's memory, and any number of disks. Their page maps are one
// map: a frame's number has the number of its volume in bits 36 to 51, and its number within the
// volume below. So references, differences and prune know nothing of volumes.

/// The number of a volume within a lineage; 0 is the memory.
///
/// A number belongs to one disk for as long as checkpoints follow one another, and is not given to
/// another one after the disk was removed.
package struct VolumeNumber: Hashable, Comparable, Sendable {
    package let rawValue: UInt16

    package init(_ rawValue: UInt16) { self.rawValue = rawValue }

    /// The memory.
    package static let memory = VolumeNumber(0)

    package static func < (left: VolumeNumber, right: VolumeNumber) -> Bool {
        left.rawValue < right.rawValue
    }

    /// The number of its first frame.
    package var firstFrame: UInt64 { UInt64(rawValue) << UInt64(PageFrameNumber.volumeShift) }
}

extension PageFrameNumber {
    /// Each volume has 2^36 frame numbers: a node of level 5 of the Merkle tree.
    package static let volumeShift = 36
    private static let inVolumeMask: UInt64 = 1 << UInt64(volumeShift) - 1

    /// A frame of a volume.
    package init(_ number: UInt64, in volume: VolumeNumber) {
        self.init(volume.firstFrame + number)
    }

    /// The volume to which it belongs.
    package var volume: VolumeNumber {
        VolumeNumber(UInt16(truncatingIfNeeded: rawValue >> UInt64(PageFrameNumber.volumeShift)))
    }

    /// Its number within the volume.
    package var inVolume: PageFrameNumber {
        PageFrameNumber(rawValue & PageFrameNumber.inVolumeMask)
    }
}

extension PageRange {
    /// The volume to which its first frame belongs.
    package var volume: VolumeNumber { first.volume }

    /// Its frames by their numbers within the volume.
    package var inVolume: PageRange { PageRange(first: first.inVolume, count: count) }

    /// The same frames of a volume; the run has numbers within a volume.
    package func of(_ volume: VolumeNumber) -> PageRange {
        PageRange(first: PageFrameNumber(first.rawValue, in: volume), count: count)
    }
}

extension FrameSet {
    /// Number of frames of a volume in the set.
    package func count(of volume: VolumeNumber) -> Int {
        let first = volume.firstFrame
        return count(in: first..<first + 1 << UInt64(PageFrameNumber.volumeShift))
    }
}
