public import GuestModel
import Synchronization
import XenStream

// A domain that has no devices but console and xenstore goes back without `DeviceRevert`: what is
// in its memory of these two is still true.

extension XenDomain {
    var revert: DeviceRevert? { state.withLock { $0.revert } }

    /// The command that the guard runs if this process dies in a revert when only forward is left:
    /// it reverts the domain with `Options.finishesRevert`.
    package var finishCommand: [String]? {
        get { state.withLock { $0.finishCommand } }
        set { state.withLock { $0.finishCommand = newValue } }
    }

    /// True if a revert has left the domain standing still: it must be reverted again or replaced.
    package var standsStill: Bool { revert.map { $0.step != .running } ?? false }

    /// Accepts checkpoints of this very domain that were taken with the same kind of pause.
    ///
    /// With devices, also those of a domain with the same uuid that this one took the place of;
    /// they must have been taken by suspension.
    public func checkState(_ state: GuestState) throws(GuestError) {
        guard let origin = XenOrigin(state), XenOrigin.hvmContext(state) != nil else {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint was not taken from a live domain, so nothing can be "
                    + "reverted to it in place; restore it as a new domain")
        }
        let ends = try FrontEnds(of: domainID, calls)
        let hasDevices = !ends.isEmpty
        guard !ends.hasWritableDisks || options.disksGoBack else {
            throw GuestError(
                code: .unsupported,
                message: "domain \(domainID) has disks, which would not go back with its memory; "
                    + "take checkpoints with the disks, or restore this one as a new domain")
        }
        guard origin.uuid == uuid, origin.domain == domainID || hasDevices else {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint is of another domain (ID \(origin.domain)) than domain "
                    + "\(domainID): event channels and grants differ; restore it as a new one")
        }
        if hasDevices, origin.pauseMode == .pause {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint was taken by pause, and domain \(domainID) has devices: "
                    + "its guest would not connect them again; take checkpoints by suspend")
        }
        guard origin.pauseMode == options.pauseMode else {
            throw GuestError(
                code: .stateRejected,
                message: "the checkpoint was taken by \(origin.pauseMode.rawValue), but the domain "
                    + "is paused by \(options.pauseMode.rawValue); "
                    + "use \(origin.pauseMode.rawValue)")
        }
        // The host may have been booted with an older Xen since.
        try XenVersion(major: constant.xenMajor, minor: constant.xenMinor).check(state)
        if hasDevices, try calls.grantVersion(domainID) != 1 {
            throw GuestError(
                code: .unsupported,
                message: "domain \(domainID) has a grant table of version 2, and devices: it "
                    + "cannot be reverted in place; replace it (--replace)")
        }
    }

    /// Refuses checkpoints of a domain with devices that could be neither restored nor reverted to.
    static func checkPause(
        _ domainID: UInt32, _ options: Options, _ calls: any XenCalls
    ) throws(GuestError) {
        guard options.pauseMode == .pause, !options.isForIntrospection else { return }
        let devices = try backends(of: domainID, calls).filter { $0 != "pci" }
        guard !devices.isEmpty else { return }
        throw GuestError(
            code: .unsupported,
            message: "domain \(domainID) has devices (\(devices.joined(separator: ", "))), so a "
                + "checkpoint by pause could be neither restored nor reverted to: its guest would "
                + "not connect them again; take it by suspend, or only to be read "
                + "(--introspection)")
    }

    /// Devices other than console and xenstore.
    static func backends(
        of domainID: UInt32, _ calls: any XenCalls
    ) throws(GuestError) -> [String] {
        let path = "/local/domain/\(domainID)/device"
        var found: [String] = []
        for kind in try calls.list(path) where !FrontEnds.builtIn.contains(kind) {
            if try !calls.list("\(path)/\(kind)").isEmpty { found.append(kind) }
        }
        return found
    }

    private var noteDirectory: String { options.lockDirectory ?? calls.lockDirectory }

    /// Leaves a note for the revert that the guard runs.
    public func noteRevert(_ found: NotedRevert) {
        guard finishCommand != nil else { return }
        state.withLock { $0.hasRevertNote = true }
        RevertNote.leave(found, uuid, in: noteDirectory)
    }

    /// In the revert that the guard runs: what its predecessor noted.
    ///
    /// The domain has not run since, so the frames need not be looked for.
    public func notedRevert() -> NotedRevert? {
        guard options.finishesRevert, let noted = RevertNote.read(uuid, in: noteDirectory),
            let facts = try? calls.facts(domainID),
            let frameCount = try? calls.frameCount(domainID)
        else { return nil }
        state.withLock {
            $0.scan = FrameScan(
                layout: noted.layout, pageCount: facts.pageCount, frameCount: frameCount)
        }
        return noted
    }

    /// Removes a note that is about an earlier stop.
    func removeRevertNote() {
        RevertNote.remove(uuid, in: noteDirectory)
        state.withLock { $0.hasRevertNote = false }
    }

    /// Pauses the domain; with devices, also one that does not answer, or has shut down.
    public func pauseForRevert() throws(GuestError) {
        removeRevertNote()
        if let revert, standsStill { return try revert.stop(finish: finishCommand) }
        let ends = try FrontEnds(of: domainID, calls)
        guard !ends.isEmpty || options.finishesRevert else {
            state.withLock { $0.revert = nil }
            return try pause()
        }
        let revert = DeviceRevert(domainID, ends, pauser, calls, options)
        state.withLock { $0.revert = revert }
        try revert.stop(finish: finishCommand)
    }

    /// Asks the back ends of the domain's devices to let go of its memory.
    public func beginStoppingDevices() throws(GuestError) -> Bool {
        guard let revert, revert.step != .running else { return false }
        try revert.beginClosing()
        return true
    }

    /// Closes the back ends of the domain's devices, and waits until they have let go.
    public func stopDevices() throws(GuestError) {
        if let revert, revert.step != .running { try revert.close() }
    }

    /// Asks for these frames only: after a revert with devices another number of pages belongs to
    /// the domain, so that the layout would have to be searched.
    public func existing(_ frames: DirtyBitmap) throws(GuestError) -> DirtyBitmap {
        try explaining { () throws(GuestError) in
            try FrameScan.existing(frames, domainID, calls)
        }
    }

    /// Waits until the guest has connected its devices again, `Options.deviceTimeout` at most.
    public func awaitDevices() -> [String] { revert?.awaitConnections() ?? [] }

    /// The layout must be the checkpoint's: no page is added or removed.
    public func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        let mine = try self.layout()
        guard mine != layout else { return }
        if revert?.wasReset == true {
            // After a soft reset, the frame of `shared_info` is one page more.
            let (live, then) = (DirtyBitmap(mine), DirtyBitmap(layout))
            var (more, less) = (live, then)
            more.subtract(then)
            less.subtract(live)
            if more.count <= 1 && less.isEmpty { return }
        }
        throw GuestError(
            code: .sizeMismatch,
            message: "the checkpoint has \(counted(layout.pageCount, "page")); domain "
                + "\(domainID) has \(mine.pageCount), or at other frames: it was ballooned "
                + "since; restore the checkpoint as a new domain")
    }
}
