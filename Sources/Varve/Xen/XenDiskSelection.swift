import CheckpointEngine
public import GuestDisks
public import GuestModel
public import SystemPackage
import XenGuest

/// Which disks of a domain are in its checkpoints.
public enum XenDiskSelection: Sendable {
    /// All that the domain can write to, found in xenstore.
    ///
    /// Of the disks that blkback serves, thin volumes of device-mapper, raw or LVM's, and raw files
    /// on XFS and btrfs, behind a loop device, can be cut, and whatever `XenDiskOptions.command`
    /// cuts. A domain with another disk is refused with `unsupported` and the remedy. A domain that
    /// has no disk is checkpointed by its memory.
    case automatic
    /// Those of a group that the caller provides, whatever disks the domain has.
    case group(any DiskGroup)
    /// None: each checkpoint of a domain that has disks says that they are omitted.
    case none
}

/// How the disks of a domain are cut.
public struct XenDiskOptions: Sendable {
    /// Which disks are in the checkpoints.
    public var selection = XenDiskSelection.automatic
    /// A command that cuts the disks which it names, and its first arguments, as `HookedDisks` runs
    /// it; empty for none.
    ///
    /// For disks on Ceph RBD, ZFS or a SAN. It is asked at each capture, and may name only disks
    /// that the domain can write to; the others are cut as without it. Used with `automatic`.
    public var command: [String] = []
    /// Where cuts of all domains are noted, so that what a crash leaves is found.
    ///
    /// Each domain has a directory of its own in it, named after its UUID in 32 hexadecimal digits.
    /// Created with mode 0700 if missing. Not used for a `group` of the caller's.
    public var stateDirectory: FilePath = "/var/lib/varve/disks"
    /// How long the suspended domain waits, before its disks are cut, until no request to them is
    /// under way.
    ///
    /// Zero by default: for the domain itself it makes no difference, because it issues such
    /// requests again when it is restored. Wait for those who read the disks alone. The cut is made
    /// when the time is over at the latest; `Volume.requestsUnderWay` tells what was left. The wait
    /// is in addition to `CaptureOptions.diskCutBudget`, and part of `DiskCutTimes.drain`.
    public var settleTime = Duration.zero
    /// A program that calls `DiskGuard.run`, and its arguments; empty for none.
    ///
    /// It resumes thin volumes if this process dies while they are suspended. Without it they stay
    /// suspended until another checkpointer of the domain begins.
    public var guardCommand: [String] = []
    /// Limits of thin pools, and the tools that read them.
    public var thin = ThinDisks.Options()

    /// Creates options with the defaults.
    public init() {}

    /// The directory in which the cuts of a domain are noted, which need not exist.
    ///
    /// - Parameter uuid: the domain's, 16 bytes.
    public func directory(ofDomain uuid: [UInt8]) -> FilePath {
        stateDirectory.appending(
            uuid.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined())
    }
}

/// Finds the disks of a domain, and how each is cut.
struct XenDiskFinder: Sendable {
    let host: XenHost
    let options: XenDiskOptions
    var mapper: any DeviceMapperCalls = LibdevmapperCalls()

    /// The disks that a domain can write to, by how they are cut.
    struct Found {
        var thin: [ThinDisks.Volume] = []
        var files: [ReflinkDisks.File] = []
        /// The command cuts some.
        var hasHooked = false

        var isEmpty: Bool { thin.isEmpty && files.isEmpty && !hasHooked }
    }

    /// The group that a domain is checkpointed with; nil if only its memory is.
    ///
    /// - Parameter options: told if disks are omitted.
    func choose(
        for domain: XenHost.Domain, _ options: inout XenCheckpointer.Options
    ) throws(GuestError) -> (any DiskGroup)? {
        let refusal = refusal(domain, options)
        switch self.options.selection {
        case .none:
            if try hasDisks(domain) { options.capture.omitsDisks = true }
            return nil
        case .group(let group):
            if let refusal { throw refusal }
            return watched(group, of: domain)
        case .automatic:
            if let refusal, try hasDisks(domain) { throw refusal }
            // A stream has no group, and its domain no disks.
            guard domain.kind != .pv else { return nil }
            let disks = DomainDisks(domain, self, refusal: refusal)
            // Refused now, not at the first capture.
            try disks.check()
            return watched(disks, of: domain)
        }
    }

    private func watched(_ group: any DiskGroup, of domain: XenHost.Domain) -> WatchedDisks {
        WatchedDisks(group, of: domain, host, settleTime: options.settleTime)
    }

    /// Why the disks of a domain cannot be in its checkpoints, whatever they are; nil if they can.
    private func refusal(
        _ domain: XenHost.Domain, _ options: XenCheckpointer.Options
    ) -> GuestError? {
        if domain.kind == .pv {
            return GuestError(
                code: .unsupported,
                message: "domain \(domain.name) is a PV domain, whose disks cannot be in a "
                    + "checkpoint; take its memory only (--no-disks), or use PVH")
        }
        guard options.domain.pauseMode != .suspend else { return nil }
        return GuestError(
            code: .unsupported,
            message: "domain \(domain.name) has disks, and a checkpoint by pause could not be "
                + "restored with them: the guest would not issue again what was under way; take "
                + "it by suspend, or its memory only (--no-disks)")
    }

    /// The disks that a domain can write to; throws if one cannot be cut.
    func disks(of domain: XenHost.Domain) throws(GuestError) -> Found {
        var found = Found()
        guard try !host.hasForeignDisks(domain) else {
            throw inability(domain, XenDiskFinder.foreign, XenDiskFinder.foreignRemedy)
        }
        let disks = try writable(domain)
        let hooked = disks.isEmpty ? [] : try hooked(disks, of: domain)
        found.hasHooked = !hooked.isEmpty
        for disk in disks where !hooked.contains(Array(disk.name.utf8)) {
            switch disk.backend {
            case .blockDevice:
                let path = FilePath(disk.path)
                if let file = try LoopDevice.file(of: path, named: disk.name) {
                    found.files.append(file)
                } else {
                    found.thin.append(.init(name: disk.name, device: path))
                }
            case .file: found.files.append(.init(name: disk.name, path: .init(disk.path)))
            case .rawInQEMU, .other:
                throw inability(domain, "its disk \(disk.name) \(XenDiskFinder.obstacle(disk))")
            }
        }
        return found
    }

    /// The names of the disks that the command cuts, in bytes: `==` of strings takes different ones
    /// for one name if they look equal.
    func hooked(
        _ disks: [XenDisk], of domain: XenHost.Domain
    ) throws(GuestError) -> Set<[UInt8]> {
        guard !options.command.isEmpty else { return [] }
        let known = Set(disks.map { Array($0.name.utf8) })
        let names = try DiskCheck.hooked(options.command).map(\.name)
        for name in names where !known.contains(Array(name.utf8)) {
            throw GuestError(
                code: .invalidOption,
                message: "the command \(PrintableText.escape(options.command[0])) cuts a disk "
                    + "'\(PrintableText.escape(name))', and domain \(domain.name) can write to no "
                    + "disk of that name; name disks as the domain's configuration does")
        }
        return Set(names.map { Array($0.utf8) })
    }

    /// The group as one that can go back with its domain.
    static func exchangeable(
        _ group: any DiskGroup
    ) throws(GuestError) -> any ExchangeableDisks {
        if let group = group as? any ExchangeableDisks { return group }
        throw GuestError(
            code: .unsupported,
            message: "the domain's disks cannot be put back under it; restore the checkpoint as a "
                + "new domain with its disks")
    }

    static let foreign = "a disk of it is provided by another domain than dom0, or not by blkback"

    /// Why a disk of a kind that no group has cannot be cut.
    static func obstacle(_ disk: XenDisk) -> String {
        switch disk.backend {
        case .rawInQEMU:
            "is written by a QEMU process of dom0, which keeps requests that a cut would miss"
        case .other(let kind): "is of type '\(PrintableText.escape(kind))'"
        case .blockDevice, .file: "can be cut"
        }
    }

    /// Drops what cuts of dead processes left, and resumes what they left suspended.
    ///
    /// Called after a session has taken over the cut that it continues from.
    static func dropLeftovers(of group: any DiskGroup) throws(GuestError) {
        try (group as? any JournaledDisks)?.dropLeftovers()
    }

    /// True if a domain has disks that it can write to.
    func hasDisks(_ domain: XenHost.Domain) throws(GuestError) -> Bool {
        if try host.hasForeignDisks(domain) { return true }
        return try !writable(domain).isEmpty
    }

    func writable(_ domain: XenHost.Domain) throws(GuestError) -> [XenDisk] {
        try host.disks(of: domain).filter { !$0.isReadOnly && !$0.isCDROM }
    }

    /// The directory of a domain's cuts, which need not exist.
    func directory(of domain: XenHost.Domain) -> FilePath {
        options.directory(ofDomain: domain.uuid)
    }

    private func inability(
        _ domain: XenHost.Domain, _ reason: String, _ remedy: String = XenDiskFinder.remedy
    ) -> GuestError {
        GuestError(
            code: .unsupported,
            message: "domain \(domain.name) cannot be checkpointed with its disks: \(reason); "
                + remedy + ", or take its memory only (--no-disks)")
    }

    static let foreignRemedy = "let blkback in dom0 serve its disks"
    static let remedy =
        "use thin volumes or raw files on XFS or btrfs, or name a command that cuts it "
        + "(--disk-command)"
}
