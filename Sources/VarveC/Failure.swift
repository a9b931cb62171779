import CVarve
import CheckpointEngine
import GuestModel
import PackStore

/// Why a call of the C interface failed: what the functions `varve_error_*` return for its thread.
struct Failure: Error, CustomStringConvertible {
    let code: varve_code
    /// One sentence.
    let message: String
    /// The errno of a system call, or what a callback returned.
    var number: Int32 = 0
    var corruption: Corruption?

    init(_ code: varve_code, _ message: String, number: Int32 = 0) {
        self.code = code
        self.message = message
        self.number = number
    }

    /// The code of the interface for an error of the library.
    init(_ error: any Error) {
        switch error {
        case let error as Failure: self = error
        case let error as RepositoryError: self.init(error)
        case let error as GuestError: self.init(error)
        case let error as CheckpointError: self.init(error)
        default: self.init(VARVE_FAILED, "\(error)")
        }
    }

    var description: String { message }

    /// Makes it this thread's last failure.
    ///
    /// - Returns: the code.
    func note() -> Int32 {
        let code = Int32(self.code.rawValue)
        cvarve_set_error(code, number, message)
        guard let corruption else { return code }
        corruption.withStructure { structure in
            var structure = structure
            cvarve_set_corruption(&structure)
        }
        return code
    }
}

extension Failure {
    private init(_ error: RepositoryError) {
        self.init(Failure.code(of: error.code), error.message, number: error.errno ?? 0)
        corruption = error.corruption
    }

    private init(_ error: GuestError) {
        self.init(Failure.code(of: error.code), error.message, number: error.errno ?? 0)
    }

    private init(_ error: CheckpointError) {
        // What a sink of this module threw is passed through.
        if let cause = error.cause as? Failure {
            self = cause
            return
        }
        if let cause = error.repositoryError {
            self.init(cause)
            return
        }
        if let cause = error.guestError {
            self.init(cause)
            return
        }
        self.init(Failure.code(of: error.code), error.message)
    }

    private static func code(of code: RepositoryError.Code) -> varve_code {
        switch code {
        case .missing, .unknownName: VARVE_NOT_FOUND
        case .foreign, .odd: VARVE_FOREIGN
        case .version: VARVE_VERSION_MISMATCH
        case .exists: VARVE_EXISTS
        case .locked: VARVE_LOCKED
        case .corrupted: VARVE_CORRUPTED
        case .noSpace: VARVE_NO_SPACE
        case .callFailed: VARVE_CALL_FAILED
        case .readOnly, .notOwner: VARVE_READ_ONLY
        case .invalidName: VARVE_INVALID_NAME
        case .ambiguousName: VARVE_AMBIGUOUS_NAME
        case .busy: VARVE_BUSY
        case .planStale: VARVE_PLAN_STALE
        case .limitExceeded: VARVE_LIMIT_EXCEEDED
        case .indexDamaged: VARVE_INDEX_DAMAGED
        case .moved, .lockLost: VARVE_MOVED
        case .invalidOption: VARVE_INVALID_ARGUMENT
        case .cancelled: VARVE_CANCELLED
        default: VARVE_FAILED
        }
    }

    private static func code(of code: GuestError.Code) -> varve_code {
        switch code {
        case .unsupported: VARVE_UNSUPPORTED
        case .callFailed: VARVE_CALL_FAILED
        case .sizeMismatch: VARVE_SIZE_MISMATCH
        case .stateRejected: VARVE_STATE_REJECTED
        case .busy: VARVE_BUSY
        case .anotherGuest: VARVE_ANOTHER_GUEST
        case .invalidOption: VARVE_INVALID_ARGUMENT
        default: VARVE_GUEST_FAILED
        }
    }

    private static func code(of code: CheckpointError.Code) -> varve_code {
        switch code {
        case .guest: VARVE_GUEST_FAILED
        case .cancelled: VARVE_CANCELLED
        case .poolTooSmall: VARVE_POOL_TOO_SMALL
        case .predecessorFailed: VARVE_PREDECESSOR_FAILED
        case .sizeMismatch: VARVE_SIZE_MISMATCH
        case .invalidStream: VARVE_INVALID_STREAM
        case .closed: VARVE_CLOSED
        case .auditMissed: VARVE_AUDIT_MISSED
        case .invalidOption: VARVE_INVALID_ARGUMENT
        default: VARVE_FAILED
        }
    }
}

extension Corruption {
    /// Calls `body` with the place as a structure, whose strings are valid during the call.
    func withStructure(_ body: (varve_corruption) -> Void) {
        file.withCString { file in
            object.withCString { object in
                reason.withCString { reason in
                    var structure = varve_corruption()
                    structure.size = MemoryLayout<varve_corruption>.stride
                    structure.file = file
                    structure.offset = offset
                    structure.object = object
                    structure.reason = reason
                    if let checkpoint {
                        structure.checkpoint = varve_id(checkpoint)
                        structure.has_checkpoint = 1
                    }
                    if let frame {
                        structure.frame = frame.inVolume.rawValue
                        structure.has_frame = 1
                    }
                    guard let disk else { return body(structure) }
                    disk.withCString { disk in
                        structure.disk = disk
                        body(structure)
                    }
                }
            }
        }
    }
}

/// Runs a function of the interface; its failure becomes this thread's last one.
///
/// Refuses calls from callbacks: most would wait for the call from which the callback was called.
func boundary(_ body: () throws -> Void) -> Int32 {
    guard cvarve_is_in_callback() == 0 else {
        return Failure(
            VARVE_IN_CALLBACK,
            "the function was called from a callback; return from that first, or use another "
                + "thread after that"
        ).note()
    }
    return boundaryInCallbacks(body)
}

/// The same for functions that callbacks may call.
func boundaryInCallbacks(_ body: () throws -> Void) -> Int32 {
    do {
        try body()
        return Int32(VARVE_OK.rawValue)
    } catch {
        return Failure(error).note()
    }
}
