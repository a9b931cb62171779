package import CheckpointFormat
public import GuestModel

/// A published, restorable state of one guest.
public struct Checkpoint: Hashable, Sendable {
    /// Its ID.
    public let id: CheckpointID
    package let manifest: Manifest
    package let location: RecordLocation
    /// Its label, or nil: the one it was published with, or one set later (`setLabel`).
    ///
    /// The value is the one at the time of the lookup.
    public private(set) var label: Label?

    package init(id: CheckpointID, manifest: Manifest, location: RecordLocation) {
        self.id = id
        self.manifest = manifest
        self.location = location
        label = manifest.label.isEmpty ? nil : Label(stored: manifest.label)
    }

    /// The same checkpoint with its current label; an empty one means none.
    package func labelled(_ label: String) -> Checkpoint {
        var checkpoint = self
        checkpoint.label = label.isEmpty ? nil : Label(stored: label)
        return checkpoint
    }

    /// The checkpoint that this one follows; nil for the first of a guest.
    public var parent: CheckpointID? {
        manifest.parent == .none ? nil : CheckpointID(manifest.parent)
    }

    /// The lineage to which it belongs.
    public var lineage: LineageName { LineageName(stored: manifest.lineage) }
    /// When the guest was paused, in nanoseconds since 1970.
    public var timeNanoseconds: Int64 { manifest.timeNanoseconds }
    /// The Merkle root of the page map: identifies the contents of the memory.
    public var root: PageDigest { manifest.root }
    /// Number of pages that exist, including zero pages.
    public var pageCount: Int { Int(manifest.pageCount) }
    /// Number of pages whose bytes are all zero.
    public var zeroPageCount: Int { Int(manifest.zeroPageCount) }
    /// Number of frames whose content differs from the parent's; all pages if there is no parent.
    public var changedPageCount: Int { Int(manifest.changedPageCount) }
    /// Number of pages whose content was new to the repository.
    public var storedPageCount: Int { Int(manifest.storedPageCount) }
    /// Bytes that this checkpoint added to the packs.
    public var addedByteCount: Int { Int(manifest.addedByteCount) + manifestByteCount }
    /// How many of those are not page contents.
    public var metadataByteCount: Int { Int(manifest.metadataByteCount) + manifestByteCount }
    /// Downtime of the guest; zero if it was not running.
    public var pause: Duration { .nanoseconds(Int64(clamping: manifest.pauseNanoseconds)) }
    /// Number of precopy rounds before the pause.
    public var precopyRounds: Int { Int(manifest.precopyRounds) }
    /// True if every page was compared, because there was no dirty log or its contents were
    /// unknown.
    public var comparedAll: Bool { manifest.comparedAll }
    /// True if its page map is stored in full rather than as a delta.
    public var hasBaseMap: Bool { manifest.mapPosition == 0 }

    /// Size of the manifest's own record in bytes.
    package var manifestByteCount: Int {
        RecordHeader.recordByteCount(payload: manifest.encoded.count)
    }

    /// The pack that has its manifest.
    package var pack: UInt32 { location.pack }

    /// The end of that record.
    package var end: RecordLocation {
        RecordLocation(pack: location.pack, offset: location.offset + UInt32(manifestByteCount))
    }
}
