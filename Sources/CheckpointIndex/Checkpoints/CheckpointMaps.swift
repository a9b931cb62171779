package import CheckpointFormat
package import GuestModel

extension MapPart {
    /// Calls `body` with each frame and what it holds.
    func forEachContent(_ body: (PageFrameNumber, PageContent) -> Void) {
        forEachRun { run, digests in MapPart.forEachContent(of: run, digests, body) }
    }

    /// Calls `body` with each frame of a run and what it holds.
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
    /// The checkpoint on whose page map its own builds.
    var ancestor: CheckpointID? { mapPosition == 0 ? nil : CheckpointID(mapAncestor) }
}

extension Checkpoint {
    /// The checkpoint on whose page map its own builds.
    package var mapAncestor: CheckpointID? { manifest.ancestor }

    /// Where the records lie that only it has: its page map, its state and its manifest.
    package var recordLocations: [RecordLocation] {
        manifest.mapParts + manifest.stateParts + [location]
    }
}
