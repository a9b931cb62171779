import CheckpointFormat
public import CheckpointIndex
public import GuestModel
public import PackStore

/// What a repair will do; planning changes nothing.
///
/// The plan holds the writer's lock for as long as it exists.
public struct RepairPlan: Sendable {
    /// How a damaged place is repaired.
    public enum Remedy: String, Hashable, Sendable {
        /// The pack is rewritten without it.
        case rewritten
        /// The pack is removed: nothing in it is whole.
        case removed
        /// The file is moved to the directory `damaged`.
        case moved
        /// The file is renamed to the pack that it is.
        case renamed
        /// The missing pack is recorded as removed.
        case named
        /// It is rebuilt from undamaged data.
        case rebuilt
        /// The checkpoint is forgotten: only its own description is damaged.
        case forgotten
    }

    /// A damaged place.
    public struct Finding: Hashable, Sendable {
        /// The file, the offset, and what is wrong.
        public let corruption: Corruption
        /// Where the damage ends in the file, if it covers only part of it.
        public let end: UInt64?
        /// How it is repaired.
        public let remedy: Remedy
        /// Checkpoints that are lost because of it.
        public internal(set) var affectedCheckpoints: [CheckpointID] = []
    }

    /// A checkpoint that cannot be restored bit for bit.
    public struct Loss: Hashable, Sendable {
        /// Its ID.
        public let id: CheckpointID
        /// The checkpoint as its manifest describes it; nil if that is lost too.
        public let checkpoint: Checkpoint?
        /// The first damaged place that makes it unreadable.
        public let reason: Corruption
        /// The frames whose pages are lost; empty if its page map or state is lost.
        ///
        /// Those of a disk have its volume's number in bits 36 to 51.
        public let frames: [PageRange]

        /// The lost frames of each volume, by their numbers within it.
        ///
        /// `disk` is nil for the memory.
        public var volumes: [(disk: String?, frames: [PageRange])] {
            var found: [(volume: VolumeNumber, frames: [PageRange])] = []
            for run in frames {
                if found.last?.volume != run.volume { found.append((run.volume, [])) }
                found[found.count - 1].frames.append(run.inVolume)
            }
            return found.map { volume, frames in
                guard volume != .memory else { return (nil, frames) }
                return (checkpoint?.manifest.volume(volume)?.name ?? "?", frames)
            }
        }
    }

    /// All damage found.
    public internal(set) var findings: [Finding] = []
    /// Checkpoints that are lost, in order of publication; they are forgotten.
    public internal(set) var losses: [Loss] = []
    /// Checkpoints that are kept and can be restored bit for bit, in order of publication.
    public internal(set) var wholeCheckpoints: [Checkpoint] = []
    /// Packs that are rewritten in place.
    public internal(set) var rewrittenPacks: [UInt32] = []
    /// Packs that are removed.
    public internal(set) var removedPacks: [UInt32] = []
    /// Packs that are missing and will no longer be reported, as ascending ranges.
    public internal(set) var missingPacks: [ClosedRange<UInt32>] = []
    /// Files in the directory of packs that are moved to the directory `damaged`.
    public internal(set) var movedFiles: [String] = []
    /// Number of pages that are stored again because their places in page groups are lost.
    public var savedPageCount: Int { preparation.saved.count }
    /// Size of the directory `damaged` afterwards, if the original packs are kept.
    public internal(set) var keptByteCount = 0
    /// Number of bytes written.
    public internal(set) var copiedByteCount = 0
    package let preparation: RepairPreparation
    /// The newest pack and the end of its records, if a writer would continue there: repair does
    /// too.
    var openPack: RecordLocation?

    init(_ preparation: RepairPreparation) {
        self.preparation = preparation
    }

    /// True if nothing is damaged.
    public var isEmpty: Bool { findings.isEmpty }
}

/// The result of a repair.
public struct RepairOutcome: Sendable {
    /// The result of verifying every byte afterwards.
    public let report: VerifyReport
    /// Number of bytes moved to the directory `damaged`, or kept there.
    public let keptByteCount: Int
}
