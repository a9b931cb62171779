public import CheckpointEngine
public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import VarveCore
public import XenGuest
import XenStream

/// How a checkpoint is started as a new domain.
public struct XenStartOptions: Sendable {
    /// The name of the new domain, which then has a new UUID; nil for the name and the UUID of the
    /// checkpoint.
    ///
    /// Required while the original domain runs.
    public var name: String?
    /// Whether the new domain stays paused until `xl unpause`.
    public var isPaused = false
    /// A configuration that replaces the checkpoint's: JSON as `xl save` writes it, or an xl.cfg.
    ///
    /// An xl.cfg cannot be combined with `name`, nor with disks that are made for the domain.
    public var configuration: [UInt8]?
    /// Where the disks come from; required if the checkpoint has some, otherwise ignored.
    public var disks: XenRestoreDisks?
    /// Whether a checkpoint that omits its guest's disks may be started, over the disks of its
    /// configuration.
    ///
    /// Right only if they still hold what they did at that instant, which is not checked.
    public var acceptsOmittedDisks = false
    /// The program `xl`, which is looked up in PATH.
    public var xl = "xl"

    /// Creates options with the defaults: the name of the checkpoint, and running.
    public init() {}
}

extension Repository {
    /// Starts a checkpoint as a new domain; each page is verified against its digest before it is
    /// passed on.
    ///
    /// Blocks until the disks are written and the domain is built. It is built by `xl restore`,
    /// which reads the checkpoint from a pipe, and whose process stays for the domain's reboots and
    /// end (decision 0007). When this throws, also because it was cancelled, xl has removed what it
    /// built, and the disks that were made for the domain are removed.
    ///
    /// Throws, before anything is done, the guest's `busy` if a domain has the name, and
    /// `stateRejected` if the checkpoint was taken by pause, or under a later version of Xen than
    /// this host's. It throws `stateRejected` as well if the checkpoint has disks and `disks` does
    /// not say which to use, or if it omits them and `acceptsOmittedDisks` is not set: memory that
    /// runs over disks of another instant destroys their file systems.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of this repository.
    ///   - options: the new domain's name, configuration and disks.
    ///   - cancellation: ends the start with `cancelled`, while disks are written and while pages
    ///     are passed on.
    ///   - progress: called for each disk in phase `writing`, on several threads at once, then in
    ///     phase `reading`, with pages.
    /// - Returns: the new domain.
    public func startDomain(
        from checkpoint: Checkpoint, options: XenStartOptions = XenStartOptions(),
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> XenHost.Domain {
        try startDomain(
            from: checkpoint, on: nil, options: options, cancellation: cancellation,
            progress: progress)
    }

    /// The same on a given host; nil: this one.
    package func startDomain(
        from checkpoint: Checkpoint, on host: XenHost?, options: XenStartOptions,
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil
    ) throws(CheckpointError) -> XenHost.Domain {
        do {
            return try XenStart(
                repository: self, checkpoint: checkpoint, options: options,
                host: host ?? XenHost()
            ).run(cancellation, progress)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    /// Throws what `startDomain` would throw before it does anything, but for a name that is in
    /// use.
    func checkStart(
        of checkpoint: Checkpoint, on host: XenHost, options: XenStartOptions
    ) throws {
        _ = try XenStart(
            repository: self, checkpoint: checkpoint, options: options, host: host
        ).check()
    }
}

/// One start.
private struct XenStart {
    let repository: Repository
    let checkpoint: Checkpoint
    let options: XenStartOptions
    let host: XenHost

    func run(
        _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws -> XenHost.Domain {
        let (plain, name) = try check()
        if let name, try host.domains().contains(where: { $0.name == name }) {
            throw GuestError(
                code: .busy,
                message: "a domain '\(name)' exists already; give the new one another name "
                    + "(--name)")
        }
        let disks = try makeDisks(named: name, cancellation, progress)
        let before: Set<UInt32>
        do {
            before = Set(try host.domains().map(\.domainID))
            let configuration = try plain.map { try DiskPaths.set(disks, in: $0) }
            try start(configuration, cancellation, progress)
        } catch {
            for disk in disks { disk.remove() }
            throw error
        }
        // The domain has run: from here on its disks are its own, whatever fails.
        let new = try host.domains().filter { !before.contains($0.domainID) }
        guard let domain = new.first(where: { name == nil || $0.name == name }) ?? new.first else {
            throw GuestError(
                code: .gone,
                message: "xl restored the domain, but it has already ended"
                    + (disks.isEmpty
                        ? ""
                        : "; its disks are left: "
                            + disks.map { $0.path.string }.joined(separator: ", ")))
        }
        try host.renewGeneration(of: domain)
        return domain
    }

    /// The configuration and the name of the new domain.
    func check() throws -> (configuration: [UInt8]?, name: String?) {
        let state = try repository.state(of: checkpoint)
        try checkDisks()
        let (plain, name) = try configuration(of: state)
        if target != nil { try DiskPaths.check(checkpoint.disks.map(\.name), in: plain) }
        try host.checkVersion(of: state)
        return (plain, name)
    }

    /// Where disks are to be made; nil if none are.
    private var target: XenRestoreDisks? {
        guard let target = options.disks, !checkpoint.disks.isEmpty else { return nil }
        if case .unchecked = target { return nil }
        return target
    }

    /// Throws unless the checkpoint's disks are taken care of.
    private func checkDisks() throws(GuestError) {
        if checkpoint.omitsDisks, !options.acceptsOmittedDisks {
            throw GuestError(
                code: .stateRejected,
                message: "checkpoint \(checkpoint.id.short) was taken without the guest's disks, "
                    + "and they have moved on since; start one that has them, or force it "
                    + "(--without-disks)")
        }
        guard !checkpoint.disks.isEmpty, options.disks == nil else { return }
        throw GuestError(
            code: .stateRejected,
            message: "checkpoint \(checkpoint.id.short) has disks, and the domain must not run "
                + "with others; say where its own are to be written (--disks), or force the "
                + "configuration's (--force-disks)")
    }

    private func makeDisks(
        named name: String?, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws -> [RestoredDisks.Made] {
        guard let target else { return [] }
        return try RestoredDisks(
            repository: repository, checkpoint: checkpoint,
            domain: name ?? checkpoint.lineage.text
        ).make(target, cancellation, progress)
    }

    private func start(
        _ configuration: [UInt8]?, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws {
        let command = [options.xl, "restore"] + (options.isPaused ? ["-p"] : []) + ["/dev/stdin"]
        let process = try ChildProcess(command, collectsOutput: true)
        var failure: (any Error)?
        do {
            try repository.export(
                checkpoint, as: .xl(configuration: configuration), cancellation: cancellation,
                progress: progress
            ) { bytes in try bytes.withUnsafeBytes { try process.write($0) } }
        } catch {
            failure = error
        }
        let status = process.wait()
        // xl's messages explain a pipe that it closed.
        if let failure, !((failure as? CheckpointError)?.cause is GuestError) { throw failure }
        guard status == 0, failure == nil else {
            let lines = process.collectedLines.filter { $0.contains("rror") }
            throw GuestError(
                code: .callFailed,
                message: "xl restore failed with status \(status): "
                    + (lines.last ?? "no message"))
        }
    }

    private func configuration(
        of state: GuestState
    ) throws -> (configuration: [UInt8]?, name: String?) {
        if let origin = XenOrigin(state), origin.pauseMode == .pause {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint was taken by pause: the guest did not prepare itself to "
                    + "be started again; revert its domain in place, or take checkpoints by "
                    + "suspend")
        }
        let own = state.bytes(ofKind: XenStateKind.configuration)
        let given = try options.configuration.map { try XenConfigurationText($0) }
        guard let text = given?.bytes ?? own else { return (nil, options.name) }
        guard given?.isJSON ?? true else {
            if options.name == nil { return (text, nil) }
            throw GuestError(
                code: .unsupported,
                message: "a name requires JSON; write it into the xl.cfg")
        }
        var configuration = XenConfiguration(text)
        if let name = options.name {
            var generator = SystemRandomNumberGenerator()
            var uuid = (0..<16).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
            // RFC 9562: version 4, variant 10.
            uuid[6] = uuid[6] & 0x0f | 0x40
            uuid[8] = uuid[8] & 0x3f | 0x80
            try configuration.rename(name, uuid: uuid)
        }
        return (configuration.json, options.name ?? configuration.name)
    }
}
