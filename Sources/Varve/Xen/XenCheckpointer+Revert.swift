public import CheckpointEngine
public import CheckpointIndex
import CheckpointStore
public import GuestModel
import VarveCore
import XenGuest
import XenStream

/// How a domain goes back to a checkpoint.
public struct XenRevertOptions: Sendable {
    /// The ways.
    public enum Method: Sendable {
        /// In place; by a replacement if that cannot be, or failed when there was no way back.
        case automatic
        /// In place only: a domain that cannot go on stays as it is, and the error says so.
        case inPlace
        /// The domain is destroyed, and started from the checkpoint.
        case replace
    }

    /// How it goes back.
    public var method = Method.automatic
    /// A program that completes the revert, and its arguments.
    ///
    /// The guard runs it if this process dies when there is no way back. It reverts the same domain
    /// to the same checkpoint, with `XenDomain.Options.finishesRevert`. Empty: the domain stands
    /// still in that case.
    public var finishCommand: [String] = []
    /// The program `xl`, which is looked up in PATH; used for a replacement.
    public var xl = "xl"

    /// Creates options with the defaults.
    public init() {}
}

/// What became of a domain that went back.
public struct XenRevertResult: Sendable {
    /// The domain; another one after a replacement.
    public let domainID: UInt32
    /// What was done in place; nil if the domain was replaced.
    public let inPlace: RevertResult?
    /// Why the domain was replaced; nil if it was not, or if that was asked for.
    public let replacedBecause: String?
}

extension XenCheckpointer {
    /// True if a revert has failed and left the domain standing still, because it can neither go on
    /// as it was nor as the checkpoint.
    ///
    /// Revert it once more; after the process has ended, another one can, with
    /// `XenDomain.Options.finishesRevert`.
    public var standsStill: Bool { taker.standsStill }

    /// Puts the domain back to a checkpoint, with its disks.
    ///
    /// Blocks. In place, the domain keeps its ID, devices and console, and this checkpointer goes
    /// on: the next checkpoint follows the one that the domain went back to. What can be prepared
    /// is prepared while the domain runs. A domain with disks or network interfaces connects them
    /// again, as after a restore; one that does not suspend itself in time, that has crashed or
    /// shut down, or that is paused, is reverted as well.
    ///
    /// If this throws before a page is written, the domain runs as it was. After that there is no
    /// way back: it is reverted once more, and then replaced. If that fails too, the message has
    /// the command that starts the checkpoint.
    ///
    /// After a replacement the domain has another ID, and this checkpointer can only be closed.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of this domain, in the repository of this checkpointer.
    ///   - options: how it goes back.
    ///   - cancellation: until the domain stands still, ends the revert with `cancelled`.
    ///   - progress: called as by `CaptureSession.revert`.
    @discardableResult
    public func revert(
        to checkpoint: Checkpoint, options: XenRevertOptions = XenRevertOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> XenRevertResult {
        try taker.revert(to: checkpoint, options, cancellation, progress)
    }

    /// `revert` without blocking a thread of the cooperative pool.
    @discardableResult
    public func revert(
        to checkpoint: Checkpoint, options: XenRevertOptions = XenRevertOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) async throws(CheckpointError) -> XenRevertResult {
        try await BlockingWork.run(cancellation) { (cancellation) throws(CheckpointError) in
            try self.revert(
                to: checkpoint, options: options, cancellation: cancellation, progress: progress)
        }
    }
}

/// One revert of a domain, in place or by a replacement.
struct DomainRevert {
    let repository: Repository
    let checkpoint: Checkpoint
    let options: XenRevertOptions
    let domainID: UInt32
    let host: XenHost

    /// Reverts a PVH domain.
    func run(
        _ domain: XenDomain, _ session: CaptureSession, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenRevertResult {
        var reason: String?
        domain.finishCommand = options.finishCommand.isEmpty ? nil : options.finishCommand
        if options.method != .replace {
            do throws(CheckpointError) {
                return inPlace(
                    try session.revert(
                        to: checkpoint, cancellation: cancellation, progress: progress))
            } catch {
                if domain.standsStill {
                    // Most failures are of one call.
                    if let result = try? session.revert(to: checkpoint) { return inPlace(result) }
                } else if !DomainRevert.isInability(error) {
                    throw error
                }
                guard options.method == .automatic else { throw error }
                reason = error.message
            }
        }
        do throws(CheckpointError) {
            var new: XenHost.Domain?
            try session.exchangeDisks(to: checkpoint, cancellation: cancellation) { exchange in
                new = try replace(exchange, cancellation, progress)
            }
            return replaced(new, reason)
        } catch {
            // Why it was not done in place is the first thing to know.
            guard let reason else { throw error }
            throw CheckpointError(.guest, "\(reason); and it was not replaced: \(error.message)")
        }
    }

    /// Replaces a domain that has no disks.
    func run(
        _ reason: String, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws(CheckpointError) -> XenRevertResult {
        do {
            let new = try replace({}, cancellation, progress)
            return replaced(new, options.method == .replace ? nil : reason)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    private func inPlace(_ result: RevertResult) -> XenRevertResult {
        XenRevertResult(domainID: domainID, inPlace: result, replacedBecause: nil)
    }

    private func replaced(_ domain: XenHost.Domain?, _ reason: String?) -> XenRevertResult {
        XenRevertResult(
            domainID: domain?.domainID ?? domainID, inPlace: nil, replacedBecause: reason)
    }

    /// True if another way than in place may succeed.
    private static func isInability(_ error: CheckpointError) -> Bool {
        guard let code = error.guestError?.code else { return false }
        return code == .unsupported || code == .sizeMismatch
    }

    // MARK: - Replacement

    private func replace(
        _ exchange: () throws -> Void, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws -> XenHost.Domain {
        try checkIdentity()
        // What is wrong with the checkpoint must be known before the domain is gone.
        var start = XenStartOptions()
        start.disks = .unchecked
        start.xl = options.xl
        try repository.checkStart(of: checkpoint, on: host, options: start)
        try destroy()
        do {
            try exchange()
            do {
                return try repository.startDomain(
                    from: checkpoint, on: host, options: start, progress: progress)
            } catch {
                return try repository.startDomain(
                    from: checkpoint, on: host, options: start, progress: progress)
            }
        } catch {
            throw CheckpointError(
                .guest,
                "the domain was destroyed, and could not be started from checkpoint "
                    + "\(checkpoint.id) (\(error)); its disks are the checkpoint's unless this "
                    + "says otherwise: varve xen restore STORE \(checkpoint.id)"
                    + (checkpoint.disks.isEmpty ? "" : " --force-disks"))
        }
    }

    /// Throws unless the checkpoint is of this very guest: a domain is not destroyed for another's.
    private func checkIdentity() throws {
        guard let domain = try host.domains().first(where: { $0.domainID == domainID }) else {
            throw GuestError(code: .gone, message: "there is no domain \(domainID) any more")
        }
        let identity = XenIdentity(
            kind: domain.kind, uuid: XenConfiguration.text(ofUUID: domain.uuid))
        guard identity.difference(from: try repository.state(of: checkpoint)) != nil else { return }
        throw GuestError(
            code: .stateRejected,
            message: "checkpoint \(checkpoint.id.short) is of another guest than domain "
                + "\(domain.name); restore it as a new domain")
    }

    private func destroy() throws(GuestError) {
        let process = try ChildProcess(
            [options.xl, "destroy", "\(domainID)"], collectsOutput: true)
        let status = process.wait()
        guard try host.domains().contains(where: { $0.domainID == domainID }) else { return }
        throw GuestError(
            code: .callFailed,
            message: "xl destroy failed with status \(status): "
                + (process.collectedLines.last ?? "no message"))
    }
}
