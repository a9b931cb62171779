import CheckpointFormat
public import GuestModel

/// Why a repository could not do what was asked of it.
public struct RepositoryError: Error, Hashable, Sendable {
    /// The kinds of failure, open for more.
    public struct Code: Hashable, Sendable {
        private enum Kind {
            case missing
            case foreign
            case version
            case exists
            case locked
            case corrupted
            case noSpace
            case callFailed
            case readOnly
            case invalidName
            case unknownName
            case ambiguousName
            case abandoned
            case busy
            case indexDamaged
            case odd
            case moved
            case lockLost
            case notOwner
            case invalidOption
            case cancelled
        }

        private let kind: Kind

        /// There is no repository at the path.
        public static let missing = Code(kind: .missing)
        /// Something else than a repository is at the path.
        public static let foreign = Code(kind: .foreign)
        /// The repository is of a version, or uses a feature, that this code does not know.
        public static let version = Code(kind: .version)
        /// Something is at the path where a repository should be made.
        public static let exists = Code(kind: .exists)
        /// Another writer has the repository open.
        public static let locked = Code(kind: .locked)
        /// Bytes of the repository are not what was written; see `corruption`.
        public static let corrupted = Code(kind: .corrupted)
        /// The disk or the quota is full.
        public static let noSpace = Code(kind: .noSpace)
        /// A system call failed; `errno` tells how.
        public static let callFailed = Code(kind: .callFailed)
        /// The repository was opened for reading.
        public static let readOnly = Code(kind: .readOnly)
        /// A lineage or label has a form that names cannot have.
        public static let invalidName = Code(kind: .invalidName)
        /// No checkpoint has the name.
        public static let unknownName = Code(kind: .unknownName)
        /// Several checkpoints have ids with the prefix.
        public static let ambiguousName = Code(kind: .ambiguousName)
        /// The transaction was given up, by its owner or because a write failed.
        public static let abandoned = Code(kind: .abandoned)
        /// Another process is rebuilding the index.
        public static let busy = Code(kind: .busy)
        /// The index is damaged, and no pack: the next opening makes it anew.
        public static let indexDamaged = Code(kind: .indexDamaged)
        /// Something odd lies where the store keeps a file or a directory; it was not touched.
        ///
        /// A symbolic link, a pipe, a socket, a device.
        public static let odd = Code(kind: .odd)
        /// The path at which the store was opened leads to something else now.
        ///
        /// The checkpoint that was being published is not stored.
        public static let moved = Code(kind: .moved)
        /// The file `lock` was removed or replaced while this process held it: another writer may
        /// have come in.
        ///
        /// Nothing was changed since that was noticed. A checkpoint that was being published may
        /// be stored: whoever opens the repository next finds it or not, whole in either case.
        public static let lockLost = Code(kind: .lockLost)
        /// The store, or its index, belongs to another user, so it can be read only.
        public static let notOwner = Code(kind: .notOwner)
        /// An option has a value that it cannot have; the message names it, and what it can have.
        public static let invalidOption = Code(kind: .invalidOption)
        /// Waiting was ended by the one who waited.
        public static let cancelled = Code(kind: .cancelled)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: what failed, and the remedy.
    public let message: String
    /// The system's error number, if a call failed.
    public let errno: Int32?
    /// What is damaged, for `corrupted`.
    public let corruption: Corruption?

    package init(_ code: Code, _ message: String, errno: Int32? = nil) {
        self.code = code
        self.message = message
        self.errno = errno
        corruption = nil
    }

    package init(_ corruption: Corruption) {
        code = .corrupted
        message = corruption.description
        errno = nil
        self.corruption = corruption
    }
}

extension RepositoryError: CustomStringConvertible {
    /// The message.
    public var description: String { message }
}

/// Bytes of a repository that are not what was written.
///
/// Never retried.
public struct Corruption: Hashable, Sendable {
    /// The file, relative to the repository: `packs/00000001.pack`.
    public let file: String
    /// Byte offset in the file of the record or block.
    public let offset: UInt64
    /// What is damaged: `page group`, `manifest`, `page`.
    public let object: String
    /// What was expected and what was found.
    public let reason: String
    /// The checkpoint in whose name it was read, if one is known.
    public var checkpoint: CheckpointID?
    /// The guest's frame that cannot be had, if it is one.
    public var frame: PageFrameNumber?

    package init(
        file: String, offset: UInt64, object: String, reason: String,
        checkpoint: CheckpointID? = nil, frame: PageFrameNumber? = nil
    ) {
        self.file = file
        self.offset = offset
        self.object = object
        self.reason = reason
        self.checkpoint = checkpoint
        self.frame = frame
    }
}

extension Corruption: CustomStringConvertible {
    /// One sentence.
    public var description: String {
        var text = "\(file) is damaged at offset \(offset) (\(object)): \(reason)"
        if let frame { text += "; guest frame \(frame) is affected" }
        if let checkpoint { text += "; found for checkpoint \(checkpoint.short)" }
        return text
    }
}

extension RepositoryError {
    /// The same error; a corruption says besides for which checkpoint it was found.
    package func attributed(
        to checkpoint: CheckpointID, frame: PageFrameNumber? = nil
    ) -> RepositoryError {
        guard var corruption else { return self }
        corruption.checkpoint = corruption.checkpoint ?? checkpoint
        corruption.frame = corruption.frame ?? frame
        return RepositoryError(corruption)
    }
}
