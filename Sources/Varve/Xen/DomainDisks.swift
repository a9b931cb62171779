import CheckpointEngine
import GuestDisks
import GuestModel
import Synchronization
import SystemPackage
import XenGuest

/// The disks of a domain as they are at each capture: attached, detached and moved ones are found.
///
/// Thin volumes are cut first, then files, then what the command cuts. As long as the domain has no
/// disk, nothing is noted anywhere.
final class DomainDisks: JournaledDisks, ExchangeableDisks {
    /// The groups of all kinds, which share a directory.
    private struct Groups: Sendable {
        let thin: ThinDisks
        let files: ReflinkDisks
        /// Nil if there is no command.
        let hooked: HookedDisks?

        var all: [any JournaledDisks] {
            let found: [any JournaledDisks] = [thin, files]
            return hooked.map { found + [$0] } ?? found
        }

        /// Groups as one.
        ///
        /// A single one is itself, so that a restore finds its cuts by their names.
        static func joined(_ groups: [any JournaledDisks]) -> any JournaledDisks {
            groups.count == 1 ? groups[0] : DiskGroupSet(groups)
        }

        /// Every selection of groups, in their order.
        var selections: [any JournaledDisks] {
            let all = all
            return (1..<1 << all.count).map { bits in
                Groups.joined(all.indices.filter { bits >> $0 & 1 == 1 }.map { all[$0] })
            }
        }
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
                files: try ReflinkDisks(files: [], stateDirectory: directory),
                hooked: options.command.isEmpty
                    ? nil
                    : try HookedDisks(command: options.command, stateDirectory: directory))
            groups = new
            return new
        }
    }

    /// The group that has all disks of now; nil if there are none.
    private func current() throws(GuestError) -> (any DiskGroup)? {
        let found = try finder.disks(of: domain)
        guard !found.isEmpty else { return nil }
        if let refusal { throw refusal }
        let groups = try made()
        groups.thin.volumes = found.thin
        groups.files.files = found.files
        var selected: [any JournaledDisks] = []
        if !found.thin.isEmpty { selected.append(groups.thin) }
        if !found.files.isEmpty { selected.append(groups.files) }
        if found.hasHooked, let hooked = groups.hooked { selected.append(hooked) }
        return Groups.joined(selected)
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
        for group in try made().selections {
            if let cut = try group.standingCut(name) { return cut }
        }
        return nil
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
        return try DiskGroupSet(made().all).dropLeftovers()
    }
}
