import CheckpointEngine
import GuestDisks
import GuestModel
import Synchronization
import SystemPackage
import XenGuest

/// The disks of a domain as they are at each capture: attached, detached and moved ones are found.
///
/// Thin volumes are cut before files. As long as the domain has no disk, nothing is noted anywhere.
final class DomainDisks: JournaledDisks, ExchangeableDisks {
    /// The groups of both kinds, which share a directory.
    private struct Groups: Sendable {
        let thin: ThinDisks
        let files: ReflinkDisks

        var both: DiskGroupSet { DiskGroupSet([thin, files]) }
    }

    private let domain: XenHost.Domain
    private let finder: XenDiskFinder
    /// Thrown as soon as the domain has a disk; nil: it may have some.
    private let refusal: GuestError?
    private let groups = Mutex<Groups?>(nil)

    init(_ domain: XenHost.Domain, _ finder: XenDiskFinder, refusal: GuestError? = nil) {
        self.domain = domain
        self.finder = finder
        self.refusal = refusal
    }

    /// The groups, made when they are first needed.
    private func made() throws(GuestError) -> Groups {
        try groups.withLock { (groups) throws(GuestError) in
            if let groups { return groups }
            let options = finder.options
            try StateDirectory.create(options.stateDirectory)
            let directory = finder.directory(of: domain)
            let new = Groups(
                thin: try ThinDisks(
                    volumes: [], stateDirectory: directory, guardCommand: options.guardCommand,
                    options: options.thin, calls: finder.mapper),
                files: try ReflinkDisks(files: [], stateDirectory: directory))
            groups = new
            return new
        }
    }

    /// The group that has all disks of now; nil if there are none.
    private func current() throws(GuestError) -> (any DiskGroup)? {
        let found = try finder.disks(of: domain)
        guard !found.thin.isEmpty || !found.files.isEmpty else { return nil }
        if let refusal { throw refusal }
        let groups = try made()
        groups.thin.volumes = found.thin
        groups.files.files = found.files
        if found.files.isEmpty { return groups.thin }
        return found.thin.isEmpty ? groups.files : groups.both
    }

    /// Throws if a disk of now cannot be cut, as far as xenstore tells.
    func check() throws(GuestError) { _ = try current() }

    func disks() throws(GuestError) -> [GuestDisk] {
        guard let current = try current() else { return [] }
        return try current.disks()
    }

    func prepareCut() throws(GuestError) -> any DiskCut {
        guard let current = try current() else { return try DiskGroupSet([]).prepareCut() }
        return try current.prepareCut()
    }

    /// Also a cut of disks that the domain does not have any more.
    func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        let groups = try made()
        if let cut = try groups.thin.standingCut(name) { return cut }
        if let cut = try groups.files.standingCut(name) { return cut }
        return try groups.both.standingCut(name)
    }

    func prepareExchange(
        from cut: (any DiskCut)?
    ) throws(GuestError) -> any DiskExchange {
        guard let current = try current() else {
            return try DiskGroupSet([]).prepareExchange(from: nil)
        }
        return try XenDiskFinder.exchangeable(current).prepareExchange(from: cut)
    }

    func leftovers() throws(GuestError) -> [DiskLeftover] {
        try DiskLeftover.found(in: finder.directory(of: domain))
    }

    @discardableResult
    func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        // Those of a guest that has no disks any more are dropped as well.
        guard try !leftovers().isEmpty else { return [] }
        return try made().both.dropLeftovers()
    }
}
