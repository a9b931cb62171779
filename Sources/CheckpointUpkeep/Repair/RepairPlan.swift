import CheckpointFormat
public import CheckpointIndex
public import GuestModel
public import PackStore

/// What a repair will do; nothing is done yet.
///
/// It holds the writer's lock as long as it lives.
public struct RepairPlan: Sendable {
    /// What is done about a damaged place.
    public enum Remedy: String, Hashable, Sendable {
        /// The pack is written anew without it.
        case rewritten
        /// The pack is removed: nothing in it is whole.
        case removed
        /// The file is moved to the folder `damaged`.
        case moved
        /// The file gets the name of the pack that it is.
        case renamed
        /// The pack is named as removed: nothing of it is there.
        case named
        /// It is made anew from what is whole.
        case rebuilt
        /// The checkpoint is forgotten: nothing is damaged but what it says of itself.
        case forgotten
    }

    /// A damaged place.
    public struct Finding: Hashable, Sendable {
        /// The file, the offset, and what is wrong.
        public let corruption: Corruption
        /// Where in the file it ends, if it is a part of one.
        public let end: UInt64?
        /// What is done about it.
        public let remedy: Remedy
        /// Checkpoints that are lost by it.
        public internal(set) var affectedCheckpoints: [CheckpointID] = []
    }

    /// A checkpoint that cannot be restored bit for bit.
    public struct Loss: Hashable, Sendable {
        /// Its identity.
        public let id: CheckpointID
        /// What its manifest says; nil if that is lost too.
        public let checkpoint: Checkpoint?
        /// The first place that makes it unreadable.
        public let reason: Corruption
        /// The guest's frames whose pages are lost; empty if its page map or state is.
        public let frames: [PageRange]
    }

    /// Everything that is wrong.
    public internal(set) var findings: [Finding] = []
    /// Checkpoints that are lost, in the order of publication; they are forgotten.
    public internal(set) var losses: [Loss] = []
    /// Checkpoints that stay, and can be restored bit for bit, in the order of publication.
    public internal(set) var wholeCheckpoints: [Checkpoint] = []
    /// Packs that are written anew, in their places.
    public internal(set) var rewrittenPacks: [UInt32] = []
    /// Packs that are removed.
    public internal(set) var removedPacks: [UInt32] = []
    /// Packs that are not there and are missed no more, as ascending ranges.
    public internal(set) var missingPacks: [ClosedRange<UInt32>] = []
    /// Files in the folder of packs that are moved to the folder `damaged`.
    public internal(set) var movedFiles: [String] = []
    /// Pages that are stored anew, because their places in page groups are lost.
    public var savedPageCount: Int { preparation.saved.count }
    /// Bytes in the folder `damaged` afterwards, if originals of packs are kept.
    public internal(set) var keptByteCount = 0
    /// Bytes that are written.
    public internal(set) var copiedByteCount = 0
    package let preparation: RepairPreparation
    /// The newest pack and where its records end, if a writer would go on there: so does repair.
    var openPack: RecordLocation?

    init(_ preparation: RepairPreparation) {
        self.preparation = preparation
    }

    /// True if nothing is wrong.
    public var isEmpty: Bool { findings.isEmpty }
}

/// What a repair did.
public struct RepairOutcome: Sendable {
    /// What a verification of all bytes found afterwards.
    public let report: VerifyReport
    /// Bytes that were moved to the folder `damaged`, or kept there.
    public let keptByteCount: Int
}
