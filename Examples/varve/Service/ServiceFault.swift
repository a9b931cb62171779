import Varve

/// What a failure means for a service.
enum ServiceFault {
    /// The domain has ended; another one of its name may come.
    case domainEnded
    /// It may be over later.
    ///
    /// - reason: the label of `varve_failures_total`.
    /// - keepsCheckpointer: the checkpointer can go on, and has its dirty log. Otherwise another
    ///   one is needed.
    case mendable(reason: String, keepsCheckpointer: Bool)
    /// No further attempt helps: the service ends with this error's exit code.
    case unmendable(ToolError)

    init(_ error: any Error) {
        switch error {
        case let error as CheckpointError:
            if let guest = error.guestError {
                self.init(guest)
            } else if let repository = error.repositoryError {
                self.init(repository)
            } else {
                self.init(error)
            }
        case let error as GuestError: self.init(error)
        case let error as RepositoryError: self.init(error)
        default: self = .unmendable(ToolError(error))
        }
    }

    private init(_ error: CheckpointError) {
        switch error.code {
        case .invalidOption: self = .unmendable(ToolError(error.message, .usage))
        case .closed, .callerFailed: self = .unmendable(ToolError(error))
        case .poolTooSmall, .predecessorFailed, .auditMissed:
            self = .mendable(reason: "\(error.code)", keepsCheckpointer: true)
        default: self = .mendable(reason: "\(error.code)", keepsCheckpointer: false)
        }
    }

    private init(_ error: GuestError) {
        switch error.code {
        case .gone, .crashed, .shutDown: self = .domainEnded
        case .unsupported, .invalidOption, .anotherGuest:
            self = .unmendable(ToolError(error.message, .usage))
        case .timedOut, .pauseFailed:
            self = .mendable(reason: "\(error.code)", keepsCheckpointer: true)
        default: self = .mendable(reason: "\(error.code)", keepsCheckpointer: false)
        }
    }

    private init(_ error: RepositoryError) {
        switch error.code {
        case .corrupted: self = .unmendable(ToolError(error))
        case .missing, .foreign, .version, .notOwner, .odd, .readOnly, .invalidName,
            .invalidOption:
            self = .unmendable(ToolError(error.message, .usage))
        // Another process has it, or it is elsewhere: it has to be opened again, which the service
        // manager does by starting the service.
        case .moved, .lockLost: self = .unmendable(ToolError(error))
        default: self = .mendable(reason: "\(error.code)", keepsCheckpointer: true)
        }
    }
}

/// The pauses between attempts: each is twice as long as the one before it, up to a limit.
struct RetryPauses {
    let first: Duration
    let longest: Duration
    private var last: Duration?

    init(first: Duration = .seconds(1), longest: Duration = .seconds(60)) {
        self.first = first
        self.longest = longest
    }

    /// The pause after another failure.
    mutating func next() -> Duration {
        let pause = last.map { min($0 * 2, longest) } ?? min(first, longest)
        last = pause
        return pause
    }

    /// An attempt was successful.
    mutating func reset() { last = nil }
}
