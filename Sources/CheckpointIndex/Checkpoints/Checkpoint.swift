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
    /// The memory and the disks, all of one instant; the memory is the first.
    public var volumes: [Volume] { manifest.volumes.map(Volume.init) }
    /// The guest's memory.
    public var memory: Volume { Volume(manifest.memory) }
    /// The guest's disks, in the order in which they first were in a checkpoint.
    public var disks: [Volume] { manifest.volumes.dropFirst().map(Volume.init) }
    /// True if the guest had disks that are not in the checkpoint, because only its memory was
    /// requested (`CaptureOptions.omitsDisks`).
    public var omitsDisks: Bool { manifest.omitsDisks }
    /// Identifies the contents of all volumes: a digest of their names, sizes and roots.
    public var root: PageDigest { manifest.root }
    /// Number of pages that exist in all volumes, including zero pages of the memory.
    ///
    /// Of a disk, only blocks that are not zero exist.
    public var pageCount: Int { Int(manifest.pageCount) }
    /// Number of pages of the memory whose bytes are all zero.
    public var zeroPageCount: Int { Int(manifest.zeroPageCount) }
    /// Number of pages in all volumes whose content differs from the parent's; all pages if there
    /// is no parent.
    public var changedPageCount: Int { Int(manifest.changedPageCount) }
    /// Number of pages whose content was new to the repository.
    public var storedPageCount: Int { Int(manifest.storedPageCount) }
    /// Bytes that this checkpoint added to the packs.
    public var addedByteCount: Int { Int(manifest.addedByteCount) + manifestByteCount }
    /// How many of those are not page contents.
    public var metadataByteCount: Int { Int(manifest.metadataByteCount) + manifestByteCount }
    /// Downtime of the guest; zero if it was not running.
    public var pause: Duration { .nanoseconds(Int64(clamping: manifest.pauseNanoseconds)) }
    /// The name of the cut from which the disks were read, by which its provider may find it
    /// (`DiskGroup.standingCut`); nil if there is none.
    public var cutName: String? { manifest.cutName.isEmpty ? nil : manifest.cutName }
    /// How much of `pause` was spent waiting for requests to the disks.
    public var drainTime: Duration { .nanoseconds(Int64(clamping: manifest.drainNanoseconds)) }
    /// How much of `pause` was spent cutting the disks, without `drainTime`.
    public var cutTime: Duration { .nanoseconds(Int64(clamping: manifest.cutNanoseconds)) }
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
