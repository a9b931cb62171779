public import GuestModel
import Synchronization
public import SystemPackage

// A cut of thin volumes is a snapshot of each in its pool, under a device ID that no one else uses.
// Documentation/admin-guide/device-mapper/thin-provisioning.rst.
//
//   prepared    the entry is in the journal, with the IDs; the guard runs; requests are allocated
//   suspended   the volumes hold new requests, and those under way have ended; the guard knows
//   cut         the pools have the snapshots, in committed metadata
//   running     the volumes are resumed; the guard knows
//   made        the entry says which snapshots there are: on the first call that reads
//   released    devices, snapshots and the entry are removed
//
// Lines of the entry, one for each volume: `volume NAME BYTES SECTOR ORIGIN ORIGINNAME POOLNAME
// POOLUUID DEVICE EXTERNAL ID...`. ORIGIN is MAJOR:MINOR, DEVICE the name under which the snapshot
// is read, EXTERNAL a `thin` target's third parameter or empty; there are several IDs until it is
// known which was free. In entries of kind `metadata`: `pool NAME`.

/// Disks that are thin volumes of device-mapper, raw or LVM's.
///
/// For guests whose disks are `/dev/mapper/NAME` or `/dev/VG/LV` on thin pools, as Xen's blkback
/// uses them. A cut suspends all volumes, which waits for the requests under way, makes a snapshot
/// of each, and resumes them: some milliseconds on fast storage, whatever the size. Snapshots exist
/// only in the pool: LVM does not list them.
///
/// Every call goes to the kernel through libdevmapper; no command of LVM or dmsetup is run. What
/// changed is found by `thin_delta` and `thin_dump` (package thin-provisioning-tools), which read a
/// metadata snapshot of the pool and take some tenths of a second. Without them every block is
/// compared.
///
/// The process must run as root, and the kernel must have `dm-thin-pool`. Calls block. All calls of
/// a process to libdevmapper are made one at a time, so a suspension that waits for slow storage
/// delays the cuts of other guests. Thread-safe.
public final class ThinDisks: JournaledDisks, ExchangeableDisks {
    /// A thin volume that is a disk.
    public struct Volume: Hashable, Sendable {
        /// The disk's name: 1 to 255 bytes.
        public var name: String
        /// A path, such as `/dev/mapper/x`, `/dev/VG/LV` or `/dev/dm-3`, or a device-mapper name.
        public var device: FilePath

        /// Describes a volume.
        public init(name: String, device: FilePath) {
            self.name = name
            self.device = device
        }
    }

    /// Limits and tools.
    public struct Options: Sendable {
        /// The percentage of data blocks in use above which a pool is refused; 0 to 100.
        ///
        /// Writes to a full pool wait, and then fail.
        public var dataFillLimit: Double = 85
        /// The percentage of metadata blocks in use above which a pool is refused; 0 to 100.
        ///
        /// A pool without metadata space becomes read-only for all of its volumes.
        public var metadataFillLimit: Double = 75
        /// The percentage of data blocks in use above which a notice is given; 0 to 100.
        public var dataFillWarning: Double = 75
        /// The percentage of metadata blocks in use above which a notice is given; 0 to 100.
        public var metadataFillWarning: Double = 65
        /// How often pools are looked at between captures, from the first `prepareCut` on; zero:
        /// never.
        ///
        /// Each level that is crossed is told to `notice`, once. Above a limit, and while the pool
        /// grows, a cut that is only compared with any more is given up: that frees what was kept
        /// for it, and the next capture compares every block.
        public var watchInterval = Duration.seconds(5)
        /// How long `thin_delta` or `thin_dump` may take.
        public var toolDeadline = Duration.seconds(300)
        /// How long to wait until another process gives back its metadata snapshot of the pool,
        /// which can have only one.
        public var metadataWait = Duration.seconds(10)
        /// Called with a sentence when something costs more than it should, for example if every
        /// block is compared because the changed ones are unknown, or when a pool becomes full; on
        /// the thread that found it.
        public var notice: (@Sendable (String) -> Void)?

        /// Creates options with the defaults.
        public init() {}
    }

    let calls: any DeviceMapperCalls
    let journal: Journal
    let options: Options
    let poolWatch: PoolWatch
    private let guardCommand: [String]
    private let current: Mutex<[Volume]>
    private let diskGuard = Mutex<DiskGuard?>(nil)

    /// The volumes that the next cut will contain; may be changed between captures.
    public var volumes: [Volume] {
        get { current.withLock { $0 } }
        set { current.withLock { $0 = newValue } }
    }

    /// Creates a group; device-mapper is not asked for anything yet.
    ///
    /// - Parameters:
    ///   - volumes: the disks.
    ///   - stateDirectory: notes what cuts create. One directory for each guest, which only this
    ///     user can write to, on storage that survives a reboot and is on none of the volumes;
    ///     created with mode 0700 if missing.
    ///   - guardCommand: a program that calls `DiskGuard.run`, and its arguments. It is started by
    ///     the first `prepareCut` and resumes the volumes if this process dies while they are
    ///     suspended. Empty: there is no guard, and they stay suspended until `dropLeftovers`.
    ///   - options: limits and tools.
    /// - Throws: `unavailable` if others may write to the state directory; `invalidOption` for a
    ///   limit that is no percentage; `callFailed`.
    public convenience init(
        volumes: [Volume], stateDirectory: FilePath, guardCommand: [String],
        options: Options = Options()
    ) throws(GuestError) {
        try self.init(
            volumes: volumes, stateDirectory: stateDirectory, guardCommand: guardCommand,
            options: options, calls: LibdevmapperCalls())
    }

    package init(
        volumes: [Volume], stateDirectory: FilePath, guardCommand: [String],
        options: Options = Options(), calls: any DeviceMapperCalls
    ) throws(GuestError) {
        let fills = [
            options.dataFillLimit, options.metadataFillLimit, options.dataFillWarning,
            options.metadataFillWarning,
        ]
        guard fills.allSatisfy({ 0...100 ~= $0 }) else {
            throw GuestError(
                code: .invalidOption,
                message: "the limits of a pool's fill are percentages, 0 to 100")
        }
        guard .zero ... .seconds(86_400) ~= options.watchInterval else {
            throw GuestError(
                code: .invalidOption,
                message: "watchInterval must be 0 to 86,400 seconds")
        }
        journal = try Journal(stateDirectory)
        current = Mutex(volumes)
        self.guardCommand = guardCommand
        self.options = options
        self.calls = calls
        poolWatch = PoolWatch(calls, options)
    }

    /// The disks with their sizes as they are now.
    ///
    /// - Throws: `unsupported` for what is no thin volume, with the remedy; `unavailable` for a
    ///   device or pool that does not exist; `invalidOption` if a volume or a name is given twice.
    public func disks() throws(GuestError) -> [GuestDisk] {
        try resolve().map(\.disk)
    }

    /// How full the pools of the volumes are, each once; cheap enough to be called each second.
    public func poolFills() throws(GuestError) -> [ThinPoolFill] {
        var seen: Set<DeviceNumber> = []
        var fills: [ThinPoolFill] = []
        for volume in try resolve() where seen.insert(volume.pool.device.number).inserted {
            let status = try volume.pool.status(calls)
            fills.append(
                ThinPoolFill(
                    pool: volume.pool.device.name, dataPercent: status.dataPercent,
                    metadataPercent: status.metadataPercent))
        }
        return fills
    }

    /// Checks the pools, notes the snapshots, starts the guard and allocates what the cut needs.
    ///
    /// - Throws: `unsupported` for what is no thin volume; `unavailable` if a pool is too full, or
    ///   has failed; `busy` if a volume is suspended.
    public func prepareCut() throws(GuestError) -> any DiskCut {
        let volumes = try resolve()
        poolWatch.watch(ThinDisks.pools(of: volumes))
        try checkPools(volumes)
        let token = Journal.makeToken()
        var record = JournalRecord(.thin)
        var parts: [ThinPart] = []
        for (index, volume) in volumes.enumerated() {
            let part = ThinPart(volume, device: "\(ThinPart.mark)\(token)-\(index)")
            parts.append(part)
            record.lines.append(part.line)
        }
        let runningGuard = try aliveGuard()
        let entry = try journal.add("cut-\(token)", record)
        do throws(GuestError) {
            return try ThinCut(self, entry, parts, runningGuard)
        } catch {
            try? entry.remove()
            throw error
        }
    }

    /// The cut with a name, if it was made, is not owned by another process, and its snapshots
    /// exist.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        guard name.hasPrefix("cut-"), !name.contains("/"), let entry = try journal.take(name),
            entry.record.kind == .thin, entry.record.isMade
        else { return nil }
        return try ThinCut(standing: self, entry)
    }

    /// The volumes of a cut that was made, even if another process owns it; nil if there is none.
    func parts(ofCut name: String) throws(GuestError) -> [ThinPart]? {
        guard name.hasPrefix("cut-"), !name.contains("/"), let record = try journal.read(name),
            record.kind == .thin, record.isMade
        else { return nil }
        return ThinPart.parts(record)
    }

    func notice(_ text: String) { options.notice?(text) }

    // MARK: - Volumes and pools

    func resolve() throws(GuestError) -> [ThinVolume] {
        let volumes = volumes
        try DiskNames.check(volumes.map(\.name))
        var resolved: [ThinVolume] = []
        for volume in volumes {
            let next = try ThinVolume(volume, calls, journal.directory)
            if let twin = resolved.first(where: { $0.device.number == next.device.number }) {
                throw GuestError(
                    code: .invalidOption,
                    message: "disks \(twin.disk.name) and \(next.disk.name) are one volume, "
                        + "\(next.device.name); name it once")
            }
            resolved.append(next)
        }
        return resolved
    }

    static func pools(of volumes: [ThinVolume]) -> [ThinPool] {
        var pools: [ThinPool] = []
        for volume in volumes where !pools.contains(where: { $0 == volume.pool }) {
            pools.append(volume.pool)
        }
        return pools
    }

    func checkPools(_ volumes: [ThinVolume]) throws(GuestError) {
        var seen: Set<DeviceNumber> = []
        for volume in volumes {
            guard !volume.device.isSuspended else { throw ThinDisks.suspended(volume.device) }
            guard seen.insert(volume.pool.device.number).inserted else { continue }
            try volume.pool.check(calls, options)
        }
    }

    static func suspended(_ device: MappedDevice) -> GuestError {
        GuestError(
            code: .busy,
            message: "\(device.name) is suspended by someone else; resume it first "
                + "(dmsetup resume \(device.name))")
    }

    /// The guard, started if there is none that lives.
    func aliveGuard() throws(GuestError) -> DiskGuard? {
        guard !guardCommand.isEmpty else { return nil }
        return try diskGuard.withLock { (current) throws(GuestError) in
            if let running = current, running.isAlive { return running }
            let started = try DiskGuard(guardCommand)
            current = started
            return started
        }
    }
}
