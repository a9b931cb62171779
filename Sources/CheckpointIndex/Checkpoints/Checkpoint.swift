package import CheckpointFormat
public import GuestModel

/// A published, restorable state of one guest.
public struct Checkpoint: Hashable, Sendable {
    /// Its identity.
    public let id: CheckpointID
    package let manifest: Manifest
    package let location: RecordLocation
    /// Its label, or nil: the one that it was published with, or was given since (`setLabel`).
    ///
    /// The value is of the moment in which the checkpoint was looked up.
    public private(set) var label: String?

    package init(id: CheckpointID, manifest: Manifest, location: RecordLocation) {
        self.id = id
        self.manifest = manifest
        self.location = location
        label = manifest.label.isEmpty ? nil : manifest.label
    }

    /// The same with the label that it has now; an empty one is none.
    package func labelled(_ label: String) -> Checkpoint {
        var checkpoint = self
        checkpoint.label = label.isEmpty ? nil : label
        return checkpoint
    }

    /// The checkpoint that this one follows; nil for the first of a guest.
    public var parent: CheckpointID? {
        manifest.parent == .none ? nil : CheckpointID(manifest.parent)
    }

    /// The guest's history that it belongs to.
    public var lineage: String { manifest.lineage }
    /// When the guest was held still, in nanoseconds since 1970.
    public var timeNanoseconds: Int64 { manifest.timeNanoseconds }
    /// The page map's Merkle root: the identity of the memory.
    public var root: PageDigest { manifest.root }
    /// Pages that exist, zero pages among them.
    public var pageCount: Int { Int(manifest.pageCount) }
    /// Pages whose bytes are all zero.
    public var zeroPageCount: Int { Int(manifest.zeroPageCount) }
    /// Frames whose content differs from the parent's; all pages if there is no parent.
    public var changedPageCount: Int { Int(manifest.changedPageCount) }
    /// Pages whose content was new to the repository.
    public var storedPageCount: Int { Int(manifest.storedPageCount) }
    /// Bytes that taking it added to the packs.
    public var addedByteCount: Int { Int(manifest.addedByteCount) + manifestByteCount }
    /// Of those, bytes that are not page contents.
    public var metadataByteCount: Int { Int(manifest.metadataByteCount) + manifestByteCount }
    /// How long the guest was held still; zero where nothing ran.
    public var pause: Duration { .nanoseconds(Int64(clamping: manifest.pauseNanoseconds)) }
    /// Precopy rounds before the pause.
    public var precopyRounds: Int { Int(manifest.precopyRounds) }
    /// True if every page was compared, because there was no dirty log or its set was unknown.
    public var comparedAll: Bool { manifest.comparedAll }
    /// True if its page map is stored whole and not as a delta.
    public var hasBaseMap: Bool { manifest.mapPosition == 0 }

    /// Bytes of the manifest's own record.
    package var manifestByteCount: Int {
        RecordHeader.recordByteCount(payload: manifest.encoded.count)
    }

    /// The place behind that record.
    package var end: RecordLocation {
        RecordLocation(pack: location.pack, offset: location.offset + UInt32(manifestByteCount))
    }
}
