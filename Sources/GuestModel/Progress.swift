/// How far a call has got, as it is passed to the call's progress handler.
///
/// Foundation has another type of this name: in a file that imports Foundation too, write
/// `GuestModel.Progress`.
public struct Progress: Hashable, Sendable {
    /// The unit that is counted.
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
        /// Copying pages while the guest is paused, because it has no dirty log.
        ///
        /// The time that the handler takes is added to the pause.
        public static let pausedCopy = Phase(kind: .pausedCopy)
        /// Reading an image, a stream, packs, or pages of a checkpoint.
        public static let reading = Phase(kind: .reading)
        /// Writing pages, into a guest or a file.
        public static let writing = Phase(kind: .writing)
        /// Removing packs, and rewriting packs without what is unused or damaged.
        public static let rewriting = Phase(kind: .rewriting)
        /// Verifying what is stored.
        public static let verifying = Phase(kind: .verifying)

        /// The phase's name, for a progress line.
        public var name: String { kind.rawValue }
    }

    /// The phase.
    public let phase: Phase
    /// The unit of `done` and `total`.
    public let unit: Unit
    /// The amount done in this phase, from 0 to `total`.
    public let done: Int
    /// The amount to do in this phase; nil if it is not known.
    public let total: Int?

    /// Creates a value as a call reports it.
    public init(phase: Phase, unit: Unit, done: Int, total: Int?) {
        self.phase = phase
        self.unit = unit
        self.done = done
        self.total = total
    }
}

/// A closure that receives the progress of a call.
///
/// It is called from time to time, on any thread, perhaps on several threads at once, and the call
/// waits until it returns. If it throws, the call ends as if it had been cancelled
/// (`Cancellation`), with the code `cancelled`, and the message contains what it threw. It must not
/// call the session or the plan whose progress it receives.
public typealias ProgressHandler = @Sendable (Progress) throws -> Void

extension Progress.Phase: CustomStringConvertible {
    /// The phase's name.
    public var description: String { name }
}
