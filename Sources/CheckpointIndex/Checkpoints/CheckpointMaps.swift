package import CheckpointFormat
package import GuestModel

extension MapPart {
    /// Calls `body` with each frame and its content.
    func forEachContent(_ body: (PageFrameNumber, PageContent) -> Void) {
        forEachRun { run, digests in MapPart.forEachContent(of: run, digests, body) }
    }

    /// Calls `body` with each frame of a run and its content.
    static func forEachContent(
        of run: MapRun, _ digests: ArraySlice<PageDigest>,
        _ body: (PageFrameNumber, PageContent) -> Void
    ) {
        var next = digests.startIndex
        for frame in run.range.frames {
            switch run.content {
            case .absent: body(PageFrameNumber(frame), .absent)
            case .zero: body(PageFrameNumber(frame), .zero)
            case .storedHere, .storedBefore:
                body(PageFrameNumber(frame), .present(digests[next]))
                next += 1
            }
        }
    }
}

extension Manifest {
    /// The checkpoint on whose page map this one's is based.
    var ancestor: CheckpointID? { mapPosition == 0 ? nil : CheckpointID(mapAncestor) }

    /// Of some frames, those of volumes that it has.
    package func framesOfItsVolumes(among frames: FrameSet) -> FrameSet {
        var frames = frames
        var next: UInt64 = 0
        for first in volumes.map(\.number.firstFrame) + [PageRange.frameLimit] {
            if first > next {
                frames.remove(PageRange(first: PageFrameNumber(next), count: Int(first - next)))
            }
            next = first + VolumeNumber(1).firstFrame
        }
        return frames
    }

    /// All frames of the volumes that another one does not have.
    package func framesOfVolumes(notIn other: Manifest) -> FrameSet {
        var frames = FrameSet()
        for volume in volumes where other.volume(volume.number) == nil && volume.frameEnd > 0 {
            let range = PageRange(first: PageFrameNumber(0), count: Int(volume.frameEnd))
            frames.insert(range.of(volume.number))
        }
        return frames
    }
}

extension Checkpoint {
    /// The checkpoint on whose page map this one's is based.
    package var mapAncestor: CheckpointID? { manifest.ancestor }

    /// The locations of the records that belong to it alone: page map, state and manifest.
    package var recordLocations: [RecordLocation] {
        manifest.mapParts + manifest.stateParts + [location]
    }
}
