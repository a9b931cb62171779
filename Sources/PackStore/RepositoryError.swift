import CheckpointFormat
public import GuestModel

/// Why a repository operation failed.
public struct RepositoryError: Error, Hashable, Sendable {
    /// The kinds of failure; more may be added.
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
            case planStale
            case limitExceeded
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
        /// The path holds something other than a repository.
        public static let foreign = Code(kind: .foreign)
        /// The repository has a format version, or uses a feature, that this version does not
        /// support.
        public static let version = Code(kind: .version)
        /// The path at which a repository should be created already exists.
        public static let exists = Code(kind: .exists)
        /// Another writer has the repository open.
        public static let locked = Code(kind: .locked)
        /// Data in the repository is damaged; see `corruption`.
        public static let corrupted = Code(kind: .corrupted)
        /// The disk or the quota is full.
        public static let noSpace = Code(kind: .noSpace)
        /// A system call failed; see `errno`.
        public static let callFailed = Code(kind: .callFailed)
        /// The repository was opened for reading.
        public static let readOnly = Code(kind: .readOnly)
        /// A lineage or label name is malformed.
        public static let invalidName = Code(kind: .invalidName)
        /// No checkpoint has the name.
        public static let unknownName = Code(kind: .unknownName)
        /// Several checkpoints have IDs with the prefix.
        public static let ambiguousName = Code(kind: .ambiguousName)
        /// The transaction was abandoned, by its owner or because a write failed.
        public static let abandoned = Code(kind: .abandoned)
        /// Others change what is read or written just now; nothing was done, so try again later.
        public static let busy = Code(kind: .busy)
        /// The repository changed since the prune or repair was planned, or the plan was executed
        /// already; nothing was done, so plan it again.
        public static let planStale = Code(kind: .planStale)
        /// One call asks for more than the format can hold; the message gives the limit.
        public static let limitExceeded = Code(kind: .limitExceeded)
        /// The index is damaged, but no pack is: the next open rebuilds it.
        public static let indexDamaged = Code(kind: .indexDamaged)
        /// An unexpected object is in the place of one of the store's files or directories; it was
        /// not touched.
        ///
        /// For example a symbolic link, a pipe, a socket or a device.
        public static let odd = Code(kind: .odd)
        /// The path at which the store was opened now leads elsewhere.
        ///
        /// The checkpoint that was being published is not stored.
        public static let moved = Code(kind: .moved)
        /// The file `lock` was removed or replaced while this process held it: another writer may
        /// have opened the repository.
        ///
        /// Nothing was changed after that was detected. A checkpoint that was being published may
        /// be stored: the next open either finds it, complete, or does not.
        public static let lockLost = Code(kind: .lockLost)
        /// The store, or its index, belongs to another user, so it is read-only.
        public static let notOwner = Code(kind: .notOwner)
        /// An option has an invalid value; the message names the option and the values allowed.
        public static let invalidOption = Code(kind: .invalidOption)
        /// The call was cancelled; its documentation says what it left.
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

/// Data in a repository that differs from what was written.
///
/// Never retried.
public struct Corruption: Hashable, Sendable {
    /// The file, relative to the repository: `packs/00000001.pack`.
    public let file: String
    /// Byte offset of the record or block in the file.
    public let offset: UInt64
    /// What is damaged: `page group`, `manifest`, `page`.
    public let object: String
    /// What was expected and what was found.
    public let reason: String
    /// The checkpoint on whose behalf it was read, if known.
    public var checkpoint: CheckpointID?
    /// The frame that cannot be read, if it is one; of a disk, its volume's number is in bits 36 to
    /// 51, and its block of 4 KiB below.
    public var frame: PageFrameNumber?
    /// The name of the disk to which the frame belongs, if it is known.
    public var disk: String?
    /// True if nothing in the pack can be read: it is missing, or its envelope is damaged.
    package let isOfWholePack: Bool

    package init(
        file: String, offset: UInt64, object: String, reason: String,
        checkpoint: CheckpointID? = nil, frame: PageFrameNumber? = nil,
        isOfWholePack: Bool = false
    ) {
        self.isOfWholePack = isOfWholePack
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
        if let frame, frame.volume == .memory {
            text += "; guest frame \(frame) is affected"
        } else if let frame {
            let name = disk.map { "disk \(PrintableText.escape($0))" } ?? "a disk"
            text += "; block \(frame.inVolume.rawValue) of \(name) is affected"
        }
        if let checkpoint { text += "; found for checkpoint \(checkpoint.short)" }
        return text
    }
}

extension RepositoryError {
    /// The same error; a corruption also names the checkpoint for which it was found.
    package func attributed(
        to checkpoint: CheckpointID, frame: PageFrameNumber? = nil, disk: String? = nil
    ) -> RepositoryError {
        guard var corruption else { return self }
        corruption.checkpoint = corruption.checkpoint ?? checkpoint
        // With the number of its volume, which the reader of a page does not know.
        corruption.frame = frame ?? corruption.frame
        corruption.disk = corruption.disk ?? disk
        return RepositoryError(corruption)
    }
}

extension RepositoryError.Code: CustomStringConvertible {
    /// The code's name, for logs.
    public var description: String { "\(kind)" }
}
