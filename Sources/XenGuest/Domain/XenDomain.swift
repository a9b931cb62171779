public import GuestModel
import Synchronization
public import XenStream

/// A running PVH domain of Xen as a guest.
///
/// Needs root in dom0. Memory is read through foreign mappings, so it is not copied twice; changes
/// come from the hypervisor's log-dirty mode; nothing is torn down, and devices are not affected.
/// All state other than memory that `xl restore` needs is included.
///
/// The domain runs again on every path out of a call, and with a guard (`Options.guardCommand`)
/// also when this process dies. Methods block and may be called from any thread, one at a time.
///
/// Sources: xenctrl.h and xenguest.h of Xen 4.17, xen/common/grant_table.c,
/// tools/libs/guest/xg_resume.c, tools/libs/light/libxl_dom_suspend.c.
public final class XenDomain: Sendable {
    /// How a domain is handled.
    public struct Options: Sendable {
        /// How it is paused; see `XenPauseMode`.
        public var pauseMode = XenPauseMode.suspend
        /// How long a guest may take to suspend itself: from the request to its acknowledgement,
        /// and from there to the suspension.
        ///
        /// 60 s each, as in libxl; zero to a day.
        public var suspendTimeout = Duration.seconds(60)
        /// The same for a revert of a domain with devices, if it is shorter: a guest that has not
        /// suspended itself by then is stopped by force.
        public var revertSuspendTimeout = Duration.seconds(10)
        /// How long back ends may take to let go of the domain's memory in a revert, and the guest
        /// to connect them again.
        public var deviceTimeout = Duration.seconds(10)
        /// Whether the domain's disks are reverted with it, as `XenCheckpointer` does; without that
        /// a domain that can write to a disk is not reverted.
        public var disksGoBack = false
        /// Whether a domain that has devices may be checkpointed by pause: such a checkpoint can be
        /// read, and neither restored nor reverted to.
        public var isForIntrospection = false
        /// Whether a revert begins with a domain that a revert has left standing still: the one of
        /// a process that died.
        public var finishesRevert = false
        /// If log-dirty mode is already on, it is turned off and on again: right if the tool that
        /// turned it on is dead, and fatal to a running migration.
        public var takesLogOver = false
        /// Works without the log: every checkpoint compares every page in the pause.
        public var comparesAll = false
        /// The program and arguments of the guard, for example `["/usr/bin/varve", "xen",
        /// "guard"]`; the domain ID follows.
        ///
        /// Such a program calls `XenGuard.run`. Without one, a domain whose checkpointer dies in
        /// the pause stays paused.
        public var guardCommand: [String]?
        /// The program and arguments of the monitor, for example `["/usr/bin/varve", "xen",
        /// "monitor", "--background"]`; the domain ID follows.
        ///
        /// Such a program calls `XenMonitor.run`. It is started if a process of xl's waits for the
        /// domain's end now, because that one ends at the first suspension; it stays when this
        /// process ends. Without one, the domain's `on_poweroff`, `on_reboot` and `on_crash` are
        /// not carried out from the first suspension on.
        public var monitorCommand: [String]?
        /// The directory for the locks of domains; nil: `/run/varve`.
        ///
        /// Created with mode 0700 if it is missing; its parent must exist. All checkpointers of a
        /// host must name the same one, or none: a lock elsewhere excludes no one.
        public var lockDirectory: String?

        /// The defaults: suspend, with the log, without a guard.
        public init() {}
    }

    /// The domain ID.
    public let domainID: UInt32
    /// Its uuid.
    public let uuid: [UInt8]
    /// Why every checkpoint compares every page; nil if the log is used.
    public let comparesAllBecause: String?
    /// What a guard has done to the domain after a checkpointer before this one died.
    ///
    /// Nil if nothing, or if it was told already.
    public let guardNote: String?
    let options: Options
    let calls: any XenCalls
    let pauser: DomainPauser
    let state = Mutex(State())
    /// What does not change while the domain runs, as records of its state.
    let constant: XenLiveState

    struct Mapping: @unchecked Sendable {
        let address: UnsafeMutableRawPointer
        let pageCount: Int
    }

    struct State: Sendable {
        var scan: FrameScan?
        /// The log that this object turned on; nil if it is off.
        var log: DirtyLog?
        /// The buffer for the log of this many frames, kept from one read to the next.
        var logBuffer: (frameCount: Int, buffer: any LogBuffer)?
        /// Mappings made in the pause, unmapped after it.
        var retired: [Mapping] = []
        /// The revert with devices that is in progress, or was the last one.
        var revert: DeviceRevert?
        var finishCommand: [String]?
        /// A note of the revert in progress exists.
        var hasRevertNote = false
    }

    /// Takes ownership of a domain, which runs unaffected until the first capture.
    ///
    /// This object owns the domain until it is released: no other one, in this process or another,
    /// can own it meanwhile (`Options.lockDirectory`).
    ///
    /// Throws a sentence with the remedy if it cannot be checkpointed: `busy` if it has another
    /// owner, `unavailable` if it cannot be locked.
    public convenience init(
        _ domainID: UInt32, options: Options = Options()
    ) throws(GuestError) {
        try self.init(domainID, calls: LibxenCalls(), options: options)
    }

    package init(
        _ domainID: UInt32, calls: any XenCalls, options: Options
    ) throws(GuestError) {
        self.domainID = domainID
        self.calls = calls
        self.options = options
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        try XenDomain.checkKind(facts, calls)
        uuid = facts.handle
        try XenDomain.checkPause(domainID, options, calls)
        if options.comparesAll {
            comparesAllBecause = "it was requested"
        } else if try !calls.list("/local/domain/\(domainID)/device/pci").isEmpty {
            comparesAllBecause = "a PCI device is assigned to it, and Xen logs no writes then"
        } else {
            comparesAllBecause = nil
        }
        var constant = XenLiveState(
            pauseMode: options.pauseMode, domain: domainID, uuid: facts.handle)
        (constant.xenMajor, constant.xenMinor) = try calls.version()
        (constant.cpuidPolicy, constant.msrPolicy) = try calls.policies(domainID)
        constant.configuration = try calls.configuration(domainID)
        self.constant = constant
        pauser = try DomainPauser(domainID, calls, options)
        guardNote = GuardNote.take(uuid, in: options.lockDirectory ?? calls.lockDirectory)
    }

    deinit {
        if let log = state.withLock({ $0.log }) { stop(log) }
        unmapRetired()
    }

    /// Refuses domains that cannot be checkpointed completely.
    private static func checkKind(
        _ facts: DomainFacts, _ calls: any XenCalls
    ) throws(GuestError) {
        let domainID = facts.domain
        guard domainID != 0 else {
            throw GuestError(code: .unsupported, message: "domain 0 cannot checkpoint itself")
        }
        guard facts.isHVM else {
            throw GuestError(
                code: .unsupported,
                message: "domain \(domainID) is a PV domain, whose page tables only libxenguest's "
                    + "stream makes canonical; use XenCheckpointer")
        }
        guard try calls.list("/local/domain/0/device-model/\(domainID)").isEmpty else {
            throw GuestError(
                code: .unsupported,
                message: "domain \(domainID) has a device model (QEMU), whose state and dirty "
                    + "pages are not captured; use PVH, or 'xl save -c' and 'varve import'")
        }
    }

    /// Runs `body`; a failure that comes from the domain's end is reported as that.
    func explaining<T: ~Copyable>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        do throws(GuestError) {
            return try body()
        } catch {
            throw pauser.cause(of: error)
        }
    }

    static func gone(_ domainID: UInt32) -> GuestError {
        GuestError(
            code: .gone, message: "there is no domain \(domainID); 'xl list' shows those that run")
    }
}

// MARK: - Guest

extension XenDomain: WritableGuest {
    /// The frames that exist.
    ///
    /// Scanned at first, about 1,000 hypercalls for 4 GiB of frame numbers, and again when the
    /// domain's page count changes or the log names an unknown frame. If a guest returns a page and
    /// gets another one, and writes to neither, that is not noticed before it writes.
    public func layout() throws(GuestError) -> GuestLayout {
        try explaining { () throws(GuestError) in try currentLayout() }
    }

    private func currentLayout() throws(GuestError) -> GuestLayout {
        guard let facts = try calls.facts(domainID) else { throw XenDomain.gone(domainID) }
        let frameCount = try calls.frameCount(domainID)
        if let scan = state.withLock({ $0.scan }), scan.pageCount == facts.pageCount,
            scan.frameCount == frameCount
        {
            return scan.layout
        }
        let scan = try FrameScan(
            domainID, calls, pageCount: facts.pageCount, frameCount: frameCount)
        state.withLock { $0.scan = scan }
        return scan.layout
    }

    /// The hypervisor's log; nil where it is not available, see `comparesAllBecause`.
    public var dirtyTracking: (any DirtyTracking)? {
        comparesAllBecause == nil ? self : nil
    }

    /// Copies pages through foreign mappings, 1,024 pages each.
    ///
    /// In the pause mappings are only made; they are unmapped after it.
    public func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try destination.withUnsafeMutableBytes { (bytes) throws(GuestError) in
            do throws(GuestError) {
                try copyPages(runs, to: bytes)
            } catch {
                throw pauser.cause(of: error)
            }
        }
    }

    private func copyPages(
        _ runs: Span<PageRange>, to bytes: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        var offset = 0
        try forEachMapping(of: runs, isWritable: false) { pages, _, errors in
            for index in errors.indices {
                let target = bytes.baseAddress.unsafelyUnwrapped + offset
                if errors[index] == 0 {
                    target.copyMemory(
                        from: pages + index * Page.byteCount, byteCount: Page.byteCount)
                } else {
                    // Removed while the guest runs: the layout in the pause will lack it.
                    target.initializeMemory(
                        as: UInt8.self, repeating: 0, count: Page.byteCount)
                }
                offset += Page.byteCount
            }
        }
    }

    /// State other than memory, in the records of a stream.
    public func captureState() throws(GuestError) -> GuestState {
        try explaining { () throws(GuestError) in try currentState() }
    }

    private func currentState() throws(GuestError) -> GuestState {
        var live = constant
        let tsc = try calls.tsc(domainID)
        live.tsc = XenLiveState.tscInfo(
            mode: tsc.mode, kilohertz: tsc.kilohertz, nanoseconds: tsc.nanoseconds,
            incarnation: tsc.incarnation)
        live.hvmContext = try calls.hvmContext(domainID)
        for index in XenLiveState.parameterIndexes {
            let value = try calls.hvmParameter(domainID, index)
            if value != 0 { live.parameters.append((UInt64(index), value)) }
        }
        return live.guestState
    }

    /// Pauses the domain: it suspends itself, or the hypervisor pauses it.
    public func pause() throws(GuestError) { try pauser.pause() }

    /// The durations of the last pause.
    ///
    /// The clock stops when Xen has let the domain run: unmapping memory comes after that.
    public var pauseTimes: PauseTimes? { pauser.times }

    /// Resumes the domain.
    ///
    /// In a revert with devices that has failed, it continues as it was; if that is not possible
    /// any more, this throws, and it stands still (`standsStill`).
    public func resume() throws(GuestError) {
        if let revert, revert.step != .running {
            try revert.resume()
        } else {
            try pauser.release()
        }
        if state.withLock({ $0.hasRevertNote }) { removeRevertNote() }
        unmapRetired()
    }

    private func unmapRetired() {
        let retired = state.withLock { state in
            defer { state.retired = [] }
            return state.retired
        }
        for mapping in retired { calls.unmap(mapping.address, pageCount: mapping.pageCount) }
    }

    /// Histories of domains with another uuid, and of PV domains, belong to other guests.
    public func difference(fromHistory state: GuestState) -> String? {
        XenIdentity(kind: .hvm, uuid: XenConfiguration.text(ofUUID: uuid)).difference(from: state)
    }

    // MARK: WritableGuest

    /// False: pages have old contents.
    public var startsZeroed: Bool { false }

    /// Copies pages in through writable foreign mappings.
    public func writePages(
        _ runs: Span<PageRange>, from source: RawSpan
    ) throws(GuestError) {
        let domainID = domainID
        revert?.beginWriting()
        try source.withUnsafeBytes { (bytes) throws(GuestError) in
            var offset = 0
            try forEachMapping(of: runs, isWritable: true) {
                (pages, _, errors) throws(GuestError) in
                for index in errors.indices {
                    guard errors[index] == 0 else {
                        throw GuestError(
                            code: .callFailed,
                            message: "a page of domain \(domainID) cannot be mapped for writing",
                            errno: -errors[index])
                    }
                    (pages + index * Page.byteCount).copyMemory(
                        from: bytes.baseAddress.unsafelyUnwrapped + offset,
                        byteCount: Page.byteCount)
                    offset += Page.byteCount
                }
            }
        }
    }

    /// Maps the pages for writing, 1,024 each.
    public func changePages(
        _ runs: Span<PageRange>,
        _ body: (PageFrameNumber, UnsafeMutableRawBufferPointer) -> Void
    ) throws(GuestError) -> Bool {
        revert?.beginWriting()
        do throws(GuestError) {
            try forEachMapping(of: runs, isWritable: true) { pages, frames, _ in
                for (index, frame) in frames.enumerated() {
                    body(
                        PageFrameNumber(UInt64(frame)),
                        UnsafeMutableRawBufferPointer(
                            start: pages + index * Page.byteCount, count: Page.byteCount))
                }
            }
        } catch {
            throw pauser.cause(of: error)
        }
        return true
    }

    /// Calls `body` with mapped pages, their frames, and an error number for each, in the order of
    /// the runs.
    ///
    /// What is mapped in a pause to be read is unmapped after it. What is mapped for writing is
    /// unmapped at once: shadow paging cannot make a page table of a page that another domain can
    /// write, and searches all of the domain's shadows each time it tries (sh_remove_write_access
    /// of xen/arch/x86/mm/shadow/common.c).
    private func forEachMapping(
        of runs: Span<PageRange>, isWritable: Bool,
        _ body: (UnsafeMutableRawPointer, [UInt], [Int32]) throws(GuestError) -> Void
    ) throws(GuestError) {
        var frames: [UInt] = []
        frames.reserveCapacity(FrameScan.batchFrameCount)
        for index in runs.indices {
            for frame in runs[index].frames {
                frames.append(UInt(frame))
                if frames.count == FrameScan.batchFrameCount {
                    try withMapping(of: frames, isWritable: isWritable, body)
                    frames.removeAll(keepingCapacity: true)
                }
            }
        }
        if !frames.isEmpty { try withMapping(of: frames, isWritable: isWritable, body) }
    }

    private func withMapping(
        of frames: [UInt], isWritable: Bool,
        _ body: (UnsafeMutableRawPointer, [UInt], [Int32]) throws(GuestError) -> Void
    ) throws(GuestError) {
        var errors = [Int32](repeating: 0, count: frames.count)
        var address: UnsafeMutableRawPointer?
        try frames.withUnsafeBufferPointer { (frames) throws(GuestError) in
            try errors.withUnsafeMutableBufferPointer { (errors) throws(GuestError) in
                address = try calls.map(domainID, frames, isWritable: isWritable, errors: errors)
            }
        }
        guard let address else { return }
        let mapping = Mapping(address: address, pageCount: frames.count)
        let isPaused = pauser.isPaused
        state.withLock { state in
            if isPaused && !isWritable { state.retired.append(mapping) }
            if errors.contains(where: { $0 != 0 }) { state.scan = nil }
        }
        defer {
            if !isPaused || isWritable { calls.unmap(address, pageCount: frames.count) }
        }
        if isPaused, let position = errors.firstIndex(where: { $0 != 0 }) {
            throw GuestError(
                code: .callFailed,
                message: "frame \(PageFrameNumber(UInt64(frames[position]))) of domain \(domainID) "
                    + "cannot be mapped: the domain's memory layout changed; take the "
                    + "checkpoint again", errno: abs(errors[position]))
        }
        try body(address, frames, errors)
    }
}
