/// How far a call has got; passed to its progress handler.
///
/// In a file that imports Foundation as well, whose `Progress` is another type, this one is
/// `GuestModel.Progress`.
public struct Progress: Hashable, Sendable {
    /// What is counted.
    public enum Unit: String, Hashable, Sendable {
        /// Pages of 4096 bytes.
        case pages
        /// Bytes.
        case bytes
        /// Pack files.
        case packs
        /// Checkpoints.
        case checkpoints
    }

    /// What the call is doing; more phases may be added.
    public struct Phase: Hashable, Sendable {
        private enum Kind: String {
            case precopy
            case pausedCopy
            case reading
            case writing
            case rewriting
            case verifying
        }

        private let kind: Kind

        /// Copying pages while the guest runs.
        public static let precopy = Phase(kind: .precopy)
        /// Copying pages while the guest is paused, because it has no dirty log; the pause is
        /// longer by the time that the handler takes.
        public static let pausedCopy = Phase(kind: .pausedCopy)
        /// Reading: an image, a stream, packs, or pages of a checkpoint.
        public static let reading = Phase(kind: .reading)
        /// Writing pages, into a guest or a file.
        public static let writing = Phase(kind: .writing)
        /// Removing packs and writing them again without what is no longer needed or damaged.
        public static let rewriting = Phase(kind: .rewriting)
        /// Verifying what is stored.
        public static let verifying = Phase(kind: .verifying)

        /// The phase's name, for a progress line.
        public var name: String { kind.rawValue }
    }

    /// What the call is doing.
    public let phase: Phase
    /// What `done` and `total` count.
    public let unit: Unit
    /// The amount done, from 0 to `total`.
    public let done: Int
    /// The amount in all in this phase; nil if it is not known.
    public let total: Int?

    /// Values as a call reports them.
    public init(phase: Phase, unit: Unit, done: Int, total: Int?) {
        self.phase = phase
        self.unit = unit
        self.done = done
        self.total = total
    }
}

/// Takes the progress of a call.
///
/// It is called from time to time, on any thread, perhaps on several at once, and the call waits
/// for it. If it throws, the call ends as if it had been cancelled (`Cancellation`). It must not
/// use the session or the plan whose call reports.
public typealias ProgressHandler = @Sendable (Progress) throws -> Void
