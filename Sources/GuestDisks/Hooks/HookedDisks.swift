public import GuestModel
import Synchronization
public import SystemPackage

// Lines of an entry in the journal: `disk NAME BYTES SECTOR`, as of the cut once it was made.

/// Disks that a command of the administrator cuts: for Ceph RBD, ZFS, a SAN.
///
/// The command is run with a verb and its arguments appended. It prints one JSON object to standard
/// output, at most 64 MiB, and ends with status 0; anything else is a failure, of which the last
/// lines of its standard error become the message. Unknown keys are ignored. It runs without a
/// shell, with this process's environment and user, in a process group that is killed when its time
/// is up.
///
/// - `disks`: the guest's disks. Prints
///   `{"disks": [{"name": "xvda", "bytes": 10737418240, "sector": 512}]}`.
/// - `cut TOKEN`: cuts all disks, at once or one after the other: the guest stands still. Prints
///   `{}` or `{"drain_milliseconds": 3}`, with `"disks"` again if their sizes may have changed.
/// - `open TOKEN NAME`: makes a disk of a cut readable. Prints `{"path": "/dev/rbd3"}`, a block
///   device or a file. It may be called again for an open disk, also by a later process.
/// - `changed TOKEN NAME EARLIER`: what may differ from the cut EARLIER. Prints
///   `{"changed": [{"offset": 0, "length": 4194304}]}` in bytes, or `{"changed": null}` for
///   unknown. A change that is not named is lost.
/// - `changed TOKEN NAME`: the same, of what may be anything but zeros.
/// - `release TOKEN`: drops a cut, and what `open` has opened. What it prints is ignored. `cut` may
///   have been killed half-way before; releasing a cut of which nothing is left succeeds.
///
/// TOKEN is `varve-` and 16 hexadecimal digits, a name that no other cut has. `cut` is killed after
/// the time that the pause allows. No verb may leave anything suspended when it ends, because no
/// guard would resume it.
///
/// `Examples/Hooks/rbd-disks.sh` in the source of this package is a command for Ceph RBD.
///
/// Thread-safe; calls block as long as the command takes.
public final class HookedDisks: JournaledDisks {
    /// How long each verb may take, except `cut`, which has `CaptureOptions.diskCutBudget`.
    public struct Deadlines: Hashable, Sendable {
        /// For `disks`.
        public var disks = Duration.seconds(30)
        /// For `open`.
        public var open = Duration.seconds(60)
        /// For `changed`.
        public var changed = Duration.seconds(300)
        /// For `release`.
        public var release = Duration.seconds(300)

        /// Creates the default deadlines.
        public init() {}
    }

    private let command: HookCommand
    private let journal: Journal
    private let deadlines: Deadlines

    /// Creates a group; nothing is run yet.
    ///
    /// - Parameters:
    ///   - command: a program, by its path or its name in PATH, and its first arguments; not empty.
    ///   - stateDirectory: notes cuts before they are made. One directory for each guest, which
    ///     only this user can write to, on storage that survives a reboot; created with mode 0700
    ///     if missing.
    ///   - deadlines: how long each verb may take.
    /// - Throws: `invalidOption` if the command is empty; `unavailable` if others may write to the
    ///   state directory; `callFailed`.
    public init(
        command: [String], stateDirectory: FilePath, deadlines: Deadlines = Deadlines()
    ) throws(GuestError) {
        self.command = try HookCommand(command)
        journal = try Journal(stateDirectory)
        self.deadlines = deadlines
    }

    /// The disks as the command names them.
    ///
    /// Throws `callFailed` if the command fails or prints something else.
    public func disks() throws(GuestError) -> [GuestDisk] {
        try command.disks(within: deadlines.disks)
    }

    /// Runs `disks`, and notes the cut in the journal; the command knows nothing of it yet.
    public func prepareCut() throws(GuestError) -> any DiskCut {
        let disks = try disks()
        let token = Journal.makeToken()
        let entry = try journal.add("cut-\(token)", HookedCut.record(disks))
        return HookedCut(self, entry, disks, isMade: false)
    }

    /// The cut with a name, if it was made, is not owned by another process, and can be opened.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        guard name.hasPrefix("cut-"), !name.contains("/"), let entry = try journal.take(name),
            entry.record.kind == .hooked, entry.record.isMade,
            let disks = HookedCut.disks(entry.record)
        else { return nil }
        let cut = HookedCut(self, entry, disks, isMade: true)
        for disk in disks {
            let end = try command.run(["open", cut.token, disk.name], within: deadlines.open)
            guard end.status == 0 else { return nil }
        }
        return cut
    }

    /// The entries of the state directory, whether a living process owns them or not.
    public func leftovers() throws(GuestError) -> [DiskLeftover] {
        try HookedDisks.leftovers(journal)
    }

    static func leftovers(_ journal: Journal) throws(GuestError) -> [DiskLeftover] {
        try Leftovers.list(journal, [.hooked]) { record in
            (HookedCut.disks(record) ?? []).map { "a cut of disk \($0.name)" }
        }
    }

    /// Releases the cuts that no living process owns, and returns them.
    ///
    /// Take the cut that is still needed with `standingCut` first, or create the session that does:
    /// this also drops cuts that were made.
    @discardableResult
    public func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        try Leftovers.drop(journal, [.hooked]) { (entry) throws(GuestError) in
            let token = HookedCut.token(entry.name)
            try release(token)
            return (HookedCut.disks(entry.record) ?? []).map { "a cut of disk \($0.name)" }
        }
    }

    // MARK: - The command

    func release(_ token: String) throws(GuestError) {
        _ = try command.succeed(["release", token], within: deadlines.release)
    }

    /// - Parameter lock: the open file that holds the entry's lock. As long as the command runs,
    ///   the cut is not dropped by another process: it would be made afterwards, and be in no
    ///   journal.
    func cut(
        _ token: String, within budget: Duration, lock: Int32
    ) throws(GuestError) -> HookAnswer {
        try command.succeed(["cut", token], within: budget, inherited: lock)
    }

    func open(_ token: String, _ name: String) throws(GuestError) -> FilePath {
        try command.succeed(["open", token, name], within: deadlines.open).path()
    }

    func changed(_ words: [String], _ blockCount: UInt64) throws(GuestError) -> [BlockRange]? {
        try command.succeed(["changed"] + words, within: deadlines.changed).changed(blockCount)
    }
}
