import CheckpointStore
public import GuestModel
public import PackStore

/// Why a capture, restore, revert, import or export failed.
///
/// After a capture or a revert the guest runs, unless the message says otherwise, and its dirty
/// pages are kept for the next capture.
public struct CheckpointError: Error, Sendable {
    /// The kinds of failure; more may be added.
    public struct Code: Hashable, Sendable {
        private enum Kind {
            case guest
            case repository
            case cancelled
            case poolTooSmall
            case predecessorFailed
            case sizeMismatch
            case callerFailed
            case invalidStream
            case closed
            case auditMissed
            case invalidOption
        }

        private let kind: Kind

        /// The guest failed; see `guestError`.
        public static let guest = Code(kind: .guest)
        /// The repository failed; see `repositoryError`.
        public static let repository = Code(kind: .repository)
        /// The call was cancelled; its documentation says what it left.
        public static let cancelled = Code(kind: .cancelled)
        /// More pages were dirty in the pause than the staging pool holds, after the last precopy
        /// round.
        public static let poolTooSmall = Code(kind: .poolTooSmall)
        /// A capture that was begun before this one failed, so this one lacks its pages.
        public static let predecessorFailed = Code(kind: .predecessorFailed)
        /// An image differs in size from its lineage, or is not a whole number of pages.
        public static let sizeMismatch = Code(kind: .sizeMismatch)
        /// A closure or object that the caller passed threw, such as the source of an import or the
        /// sink of an export; `cause` is what it threw.
        public static let callerFailed = Code(kind: .callerFailed)
        /// A stream of Xen is damaged or cut short, or a checkpoint lacks what the format of a
        /// stream requires; `cause` is a `XenStreamError`.
        public static let invalidStream = Code(kind: .invalidStream)
        /// The session is closed.
        public static let closed = Code(kind: .closed)
        /// The dirty log did not name a page that was written, as an audit found.
        ///
        /// `audit` has the counts. Nothing was published, and the next capture compares every page.
        public static let auditMissed = Code(kind: .auditMissed)
        /// An option has an invalid value; the message names it and the valid values.
        public static let invalidOption = Code(kind: .invalidOption)
    }

    /// The kind of failure.
    public let code: Code
    /// One sentence: what failed, and the remedy.
    public let message: String
    /// The error that caused this one: a `GuestError`, a `RepositoryError`, a `XenStreamError`, or
    /// what a closure of the caller threw; nil if there is none.
    public let cause: (any Error)?
    /// `cause`, if it is a guest's error.
    public var guestError: GuestError? { cause as? GuestError }
    /// `cause`, if it is a repository's error.
    public var repositoryError: RepositoryError? { cause as? RepositoryError }
    /// The result of the audit, for `auditMissed`; otherwise nil.
    public let audit: CaptureAudit?

    init(_ audit: CaptureAudit) {
        code = .auditMissed
        message =
            "the dirty log missed \(audit.missedPageCount) of "
            + "\(counted(audit.sampledPageCount, "page")) that it called clean; nothing was "
            + "published and the next capture compares every page; checkpoints "
            + "since the last one that did may lack pages"
        cause = nil
        self.audit = audit
    }

    package init(_ code: Code, _ message: String, cause: (any Error)? = nil) {
        self.code = code
        self.message = message
        self.cause = cause
        audit = nil
    }

    init(_ error: GuestError) {
        self.init(.guest, error.message, cause: error)
    }

    init(_ error: RepositoryError) {
        let code: Code =
            switch error.code {
            case .invalidOption: .invalidOption
            case .cancelled: .cancelled
            default: .repository
            }
        self.init(code, error.message, cause: error)
    }

    /// The error of a call on a session or checkpointer that is closed.
    package static let closed = CheckpointError(.closed, "the session is closed; begin another one")

    /// Wraps an error of a guest or repository, or one that a closure of the caller threw.
    package init(wrapping error: any Error) {
        switch error {
        case let error as CheckpointError: self = error
        case let error as RepositoryError: self.init(error)
        case let error as GuestError: self.init(error)
        default: self.init(.callerFailed, "\(error)", cause: error)
        }
    }
}

extension CheckpointError: CustomStringConvertible {
    /// The message.
    public var description: String { message }
}

extension CheckpointError.Code: CustomStringConvertible {
    /// The code's name, for logs.
    public var description: String { "\(kind)" }
}
