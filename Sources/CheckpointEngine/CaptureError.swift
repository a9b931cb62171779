import CheckpointStore
public import GuestModel
public import PackStore

/// Why a capture, restore or revert failed.
///
/// The guest runs, unless the message says otherwise, and its dirty pages are kept for the next
/// capture.
public struct CaptureError: Error, Sendable {
    /// The kinds of failure; more may be added.
    public struct Code: Hashable, Sendable {
        private enum Kind {
            case guest
            case repository
            case cancelled
            case poolTooSmall
            case predecessorFailed
            case sizeMismatch
            case sourceFailed
            case closed
            case auditMissed
            case invalidOption
        }

        private let kind: Kind

        /// The guest failed; see `guestError`.
        public static let guest = Code(kind: .guest)
        /// The repository failed; see `repositoryError`.
        public static let repository = Code(kind: .repository)
        /// It was cancelled.
        public static let cancelled = Code(kind: .cancelled)
        /// The guest writes more pages between two rounds than the staging pool holds.
        public static let poolTooSmall = Code(kind: .poolTooSmall)
        /// A capture that was begun before this one failed, so this one lacks its pages.
        public static let predecessorFailed = Code(kind: .predecessorFailed)
        /// An image differs in size from its lineage, or is not a whole number of pages.
        public static let sizeMismatch = Code(kind: .sizeMismatch)
        /// Reading an image failed.
        public static let sourceFailed = Code(kind: .sourceFailed)
        /// The session is closed.
        public static let closed = Code(kind: .closed)
        /// The dirty log missed a page that an audit checked.
        ///
        /// See `audit`. Nothing was published, and the next capture compares every page.
        public static let auditMissed = Code(kind: .auditMissed)
        /// An option has an invalid value; the message names it and the valid values.
        public static let invalidOption = Code(kind: .invalidOption)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: what failed, and the remedy.
    public let message: String
    /// The guest's error.
    public let guestError: GuestError?
    /// The repository's error.
    public let repositoryError: RepositoryError?
    /// The result of the audit.
    public let audit: CaptureAudit?

    init(_ audit: CaptureAudit) {
        code = .auditMissed
        message =
            "the dirty log missed \(audit.missedPageCount) of "
            + "\(counted(audit.sampledPageCount, "page")) that it called clean; nothing was "
            + "published and the next capture compares every page; checkpoints "
            + "since the last one that did may lack pages"
        guestError = nil
        repositoryError = nil
        self.audit = audit
    }

    init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
        guestError = nil
        repositoryError = nil
        audit = nil
    }

    init(_ error: GuestError) {
        code = .guest
        message = error.message
        guestError = error
        repositoryError = nil
        audit = nil
    }

    init(_ error: RepositoryError) {
        code = error.code == .invalidOption ? .invalidOption : .repository
        message = error.message
        guestError = nil
        repositoryError = error
        audit = nil
    }

    /// Wraps any error thrown below.
    init(wrapping error: any Error) {
        switch error {
        case let error as CaptureError: self = error
        case let error as RepositoryError: self.init(error)
        case let error as GuestError: self.init(error)
        default: self.init(.sourceFailed, "\(error)")
        }
    }
}

extension CaptureError: CustomStringConvertible {
    /// The message.
    public var description: String { message }
}
