import CVarve
import CheckpointEngine
import CheckpointIndex
import GuestModel
import Varve

/// A running Xen domain of which a session takes checkpoints.
struct DomainGuest: Sendable {
    let domainID: UInt32
    let checkpointer: XenCheckpointer
    /// What completes a revert if the program dies, without the checkpoint's id; empty for nothing.
    private let finishCommand: [String]

    init(_ domainID: UInt32, _ checkpointer: XenCheckpointer, finishCommand: [String]) {
        self.domainID = domainID
        self.checkpointer = checkpointer
        self.finishCommand = finishCommand
    }

    /// Reverts the domain in place.
    func revert(to checkpoint: Checkpoint, _ control: CallControl) throws -> RevertResult {
        var options = XenRevertOptions()
        options.method = .inPlace
        if !finishCommand.isEmpty { options.finishCommand = finishCommand + ["\(checkpoint.id)"] }
        let result = try checkpointer.revert(
            to: checkpoint, options: options, cancellation: control.cancellation,
            progress: control.progress)
        guard let done = result.inPlace else {
            throw Failure(VARVE_FAILED, "domain \(domainID) was replaced by another one")
        }
        return done
    }

    /// The domain with an ID; throws if there is none.
    static func find(_ domainID: UInt32, on host: XenHost) throws -> XenHost.Domain {
        let found = try namingTheMissing { try host.domain(named: "\(domainID)") }
        // A domain's name may be another one's ID.
        guard found.domainID == domainID else {
            throw Failure(VARVE_NOT_FOUND, "there is no domain with the ID \(domainID)")
        }
        return found
    }

    /// Runs `body`; that a domain does not exist is told from other failures of a guest.
    static func namingTheMissing<T>(_ body: () throws -> T) throws -> T {
        do {
            return try body()
        } catch {
            let cause = (error as? CheckpointError)?.guestError ?? error as? GuestError
            guard let cause, cause.code == .gone else { throw error }
            throw Failure(VARVE_NOT_FOUND, cause.message)
        }
    }
}
