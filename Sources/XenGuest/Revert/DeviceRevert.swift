import Glibc
import GuestModel
import Synchronization

// A domain with disks or network interfaces goes back in place by these steps. What a checkpoint's
// memory knows of its devices, such as rings, grants and event channels, is of another time, so its
// guest has to connect them again, as it does after a restore: it returns from its suspend call
// with the answer that it is another domain now (0 in rax, as in the saved state).
//
//   running -> stopped -> closing -> closed -> reset -> writing -> attached -> running
//          stop      close      close     reset   beginWriting  attach       go
//
//   stop      The guest suspends itself; if it does not, its processors are stopped wherever they
//             are. Then a pause by the hypervisor, which the event channels' reset requires, and
//             which outlasts the soft reset.
//   close     Back ends end their requests and unmap the guest's memory (FrontEnds). The dirty log
//             names what they wrote, once it is unmapped.
//   reset     xc_domain_soft_reset: event channels, places of vcpu_info and shared_info are as in a
//             new domain. Without it the guest's own calls on its return fail, and Linux panics.
//             Back ends are asked to wait for a front end, which they begin to do meanwhile.
//   writing   Disks are exchanged and pages written, by the engine.
//   attach    The rings of xenstore and console are empty, the grant table is as in a new domain,
//             and so are the event channels of xenstore and console, in this order; both daemons
//             are told. Then the processors, and every back end waits for a front end.
//   go        The guest runs, and connects its devices.
//
// Going back (`resume` before `attached`):
//
//   stopped             the guest continues where it was
//   closing to reset    its rings are gone. If it has suspended itself, it takes its own state
//                       through the steps that are left, and connects its devices again. If it was
//                       stopped by force, it is in no suspend call, and only forward is left.
//   writing             only forward is left: the domain stands still until another revert, or
//                       until it is replaced
//
// If going back fails, too, the domain stands still. The next revert begins where this one ended.
//
// Decision 0028 has the reasons, and the sources in Xen and Linux.

/// The steps of one domain's revert in place with devices.
///
/// Used by one thread at a time, in the order of the steps: others are a fault of the caller.
final class DeviceRevert: Sendable {
    enum Step: Sendable {
        case running
        case stopped
        case closing
        case closed
        case reset
        case writing
        case attached
    }

    private struct State: Sendable {
        var step = Step.running
        var ends: FrontEnds
        /// It has suspended itself, so it can continue with its own state.
        var isSuspended = false
        /// It had shut down before: its processors are stopped for good.
        var hadEnded = false
        /// It cannot continue as it was.
        var mustGoForward = false
        /// Its rings are gone, since it ran the last time.
        var isDetached = false
        /// It was reset since it ran the last time.
        var wasReset = false
        /// Back ends were asked to wait for a front end since then.
        var isOpening = false
    }

    private let domainID: UInt32
    private let calls: any XenCalls
    /// Nil in the guard.
    private let pauser: DomainPauser?
    private let options: XenDomain.Options
    private let state: Mutex<State>

    init(
        _ domainID: UInt32, _ ends: FrontEnds, _ pauser: DomainPauser?, _ calls: any XenCalls,
        _ options: XenDomain.Options
    ) {
        self.domainID = domainID
        self.pauser = pauser
        self.calls = calls
        self.options = options
        state = Mutex(State(ends: ends))
    }

    var step: Step { state.withLock { $0.step } }
    /// The domain can only be reverted again or replaced.
    var mustGoForward: Bool { state.withLock { $0.mustGoForward } }
    /// The frame of `shared_info` counts as an ordinary page, until the guest has mapped it again.
    var wasReset: Bool { state.withLock { $0.wasReset } }

    private var ends: FrontEnds { state.withLock { $0.ends } }
    private var deadline: ContinuousClock.Instant { ContinuousClock.now + options.deviceTimeout }

    private func enter(_ step: Step) { state.withLock { $0.step = step } }

    // MARK: - Forward

    /// Stops the domain.
    ///
    /// When this throws, the domain runs as before.
    ///
    /// - Parameter finish: what the guard runs if this process dies when only forward is left.
    func stop(finish: [String]?) throws(GuestError) {
        if let finish { pauser?.note(finish: finish) }
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        if step != .running || options.finishesRevert { return try takeOver(facts) }
        guard facts.shutdown != .suspend else { throw DomainPauser.suspended(domainID) }
        var isSuspended = false
        if facts.shutdown == nil {
            isSuspended = facts.isPaused ? false : try suspend()
            if !isSuspended { try halt() }
        }
        pauser?.note(isSuspended ? .held : .halted)
        do throws(GuestError) {
            try calls.pause(domainID)
        } catch {
            if isSuspended { try? pauser?.release() } else { try? calls.resumeStopped(domainID) }
            throw error
        }
        state.withLock { [isSuspended] state in
            state.isSuspended = isSuspended
            state.hadEnded = facts.shutdown != nil
        }
        pauser?.stopped()
        enter(.stopped)
    }

    /// Continues with a domain that a revert has left standing still, with its pause.
    private func takeOver(_ facts: DomainFacts) throws(GuestError) {
        if facts.shutdown == nil { try halt() }
        if !facts.isPaused { try calls.pause(domainID) }
        state.withLock { state in
            // Of another process: what the domain still has is not known.
            guard state.step == .running else { return }
            state.mustGoForward = true
            state.isDetached = true
            state.wasReset = true
        }
        pauser?.stopped()
        pauser?.note(isRecoverable ? .closing : .forward)
        enter(.stopped)
    }

    /// Asks the guest to suspend itself; false if it does not answer in time.
    private func suspend() throws(GuestError) -> Bool {
        do throws(GuestError) {
            guard let pauser else { return false }
            try pauser.pause(within: min(options.suspendTimeout, options.revertSuspendTimeout))
            return true
        } catch {
            guard error.code == .timedOut else { throw error }
            return false
        }
    }

    /// Stops the processors wherever they are.
    private func halt() throws(GuestError) {
        pauser?.note(.halted)
        try calls.shutDown(domainID, .suspend)
        let deadline = ContinuousClock.now + .seconds(2)
        while try calls.facts(domainID)?.shutdown == nil {
            guard ContinuousClock.now < deadline else {
                try? calls.resumeStopped(domainID)
                throw GuestError(
                    code: .timedOut, message: "the processors of domain \(domainID) do not stop")
            }
            system_sleep(microseconds: 1000)
        }
    }

    /// Asks the back ends to close.
    func beginClosing() throws(GuestError) {
        precondition(step == .stopped, "back ends are closed once the domain has stopped")
        pauser?.note(isRecoverable ? .closing : .forward)
        state.withLock { state in
            state.step = .closing
            state.isDetached = true
        }
        try ends.beginClosing(calls)
    }

    /// Waits until the back ends are closed.
    func close() throws(GuestError) {
        if step == .stopped { try beginClosing() }
        precondition(step == .closing, "back ends are closed once the domain has stopped")
        try closeEnds(by: deadline)
    }

    private func closeEnds(by deadline: ContinuousClock.Instant) throws(GuestError) {
        state.withLock { $0.isOpening = false }
        try ends.close(by: deadline, calls)
        enter(.closed)
    }

    /// Puts all that Xen holds for the guest beside its memory back to the beginning.
    func reset() throws(GuestError) {
        precondition(step == .closed, "the reset requires that no memory is mapped by others")
        try calls.softReset(domainID)
        state.withLock { state in
            state.step = .reset
            state.wasReset = true
        }
        // Disks are exchanged next.
        pauser?.note(.forward)
        try openEnds()
    }

    private func openEnds() throws(GuestError) {
        guard !state.withLock({ $0.isOpening }) else { return }
        try ends.open(calls)
        state.withLock { $0.isOpening = true }
    }

    /// Notes that pages are about to be written: the guest cannot continue as it was.
    func beginWriting() {
        guard step == .reset else { return }
        enter(.writing)
    }

    /// Connects the domain with xenstore, console and back ends, and sets its processors.
    func attach(_ context: [UInt8]) throws(GuestError) {
        precondition([.reset, .writing].contains(step), "only a domain that was reset is attached")
        let (calls, domainID) = (calls, domainID)
        func parameter(_ index: UInt32) throws(GuestError) -> UInt64 {
            try calls.hvmParameter(domainID, index)
        }
        let store = try parameter(DeviceRevert.storeFrame)
        let console = try parameter(DeviceRevert.consoleFrame)
        for frame in [store, console] { try clear(frame) }
        try calls.resetGrantTable(domainID, consoleFrame: console, storeFrame: store)
        let storePort = try calls.allocateChannel(domainID)
        let consolePort = try calls.allocateChannel(domainID)
        try calls.setHVMParameter(domainID, DeviceRevert.storeChannel, UInt64(storePort))
        try calls.setHVMParameter(domainID, DeviceRevert.consoleChannel, UInt64(consolePort))
        let root = "/local/domain/\(domainID)"
        try calls.write("\(root)/store/port", "\(storePort)")
        // xenconsoled watches this one.
        try calls.write("\(root)/console/port", "\(consolePort)")
        try calls.introduce(domainID, frame: store, port: storePort)
        try calls.setHVMContext(domainID, context)
        try openEnds()
        try ends.awaitOpen(by: deadline, calls)
        try calls.write("\(root)/control/shutdown", "")
        enter(.attached)
    }

    // xen/include/public/hvm/params.h.
    private static let storeFrame: UInt32 = 1
    private static let storeChannel: UInt32 = 2
    private static let consoleFrame: UInt32 = 17
    private static let consoleChannel: UInt32 = 18

    private func clear(_ frame: UInt64) throws(GuestError) {
        let page = try calls.mapForWriting(PageFrameNumber(frame), of: domainID)
        page.initializeMemory(as: UInt8.self, repeating: 0)
        calls.unmap(page.baseAddress.unsafelyUnwrapped, pageCount: 1)
    }

    private func go() throws(GuestError) {
        try calls.unpause(domainID)
        if options.finishesRevert {
            // The process that died may have added a pause of its own.
            while try calls.facts(domainID)?.isPaused == true { try calls.unpause(domainID) }
        }
        state.withLock { state in
            state.step = .running
            state.mustGoForward = false
            state.isDetached = false
            state.wasReset = false
        }
        pauser?.ran()
        // So that xenstored announces the next suspension.
        for _ in 0..<3 where (try? calls.announceResumed(domainID)) == nil {
            system_sleep(microseconds: 1000)
        }
    }

    /// Devices that are not connected again after a while.
    ///
    /// Called while the domain runs.
    func awaitConnections() -> [String] {
        ends.unconnected(by: deadline, all: options.finishesRevert, calls)
    }

    // MARK: - The end, either way

    private var isRecoverable: Bool { state.withLock { $0.isSuspended && !$0.mustGoForward } }

    /// Lets the domain run: as the checkpoint once it is attached, otherwise as it was.
    ///
    /// Throws if neither is possible: the domain then stands still (`mustGoForward`). May be called
    /// again if a call failed.
    func resume() throws(GuestError) {
        switch step {
        case .running: return
        case .attached: try go()
        case .stopped where state.withLock({ !$0.isDetached }): try goBackBeforeClosing()
        case .stopped, .closing, .closed, .reset:
            guard isRecoverable else { throw stuck() }
            try goBackWithOwnState()
        case .writing: throw stuck()
        }
    }

    private func goBackBeforeClosing() throws(GuestError) {
        try calls.unpause(domainID)
        // From here on a second call must not unpause it.
        let (isSuspended, hadEnded) = state.withLock { state in
            state.step = .running
            return (state.isSuspended, state.hadEnded)
        }
        if isSuspended {
            try pauser?.release()
        } else {
            if !hadEnded { try calls.resumeStopped(domainID) }
            pauser?.ran()
        }
    }

    private func goBackWithOwnState() throws(GuestError) {
        if step == .stopped || step == .closing {
            // It is patient: nothing else can be done as long as its memory is in use.
            try ends.beginClosing(calls)
            try closeEnds(by: ContinuousClock.now + options.deviceTimeout * 6)
        }
        pauser?.note(.closing)
        let own = try calls.hvmContext(domainID)
        if step == .closed { try reset() }
        try attach(own)
        try go()
    }

    /// In the guard: takes a domain on that has suspended itself, wherever its revert has got to
    /// before disks were exchanged.
    ///
    /// May be called again if a call failed.
    func bringBack() throws(GuestError) {
        if step == .attached { return try go() }
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        // A reset has cleared it, and so has the end of all this.
        if facts.shutdown == nil {
            guard facts.isPaused else { return }
            try halt()
        }
        state.withLock { state in
            state.step = .closing
            state.isSuspended = true
        }
        try goBackWithOwnState()
    }

    private func stuck() -> GuestError {
        state.withLock { $0.mustGoForward = true }
        return GuestError(
            code: .unavailable,
            message: "domain \(domainID) stands still, because its devices were closed and it "
                + "cannot continue as it was; revert it again, or replace it (--replace)")
    }
}

extension XenCalls {
    /// Maps one page of a domain for writing.
    func mapForWriting(
        _ frame: PageFrameNumber, of domainID: UInt32
    ) throws(GuestError) -> UnsafeMutableRawBufferPointer {
        let frames = [UInt(frame.rawValue)]
        var errors: [Int32] = [0]
        let address = try frames.withUnsafeBufferPointer { (frames) throws(GuestError) in
            try errors.withUnsafeMutableBufferPointer { (errors) throws(GuestError) in
                try map(domainID, frames, isWritable: true, errors: errors)
            }
        }
        guard errors[0] == 0 else {
            unmap(address, pageCount: 1)
            throw GuestError(
                code: .callFailed,
                message: "frame \(frame) of domain \(domainID) cannot be mapped for writing",
                errno: abs(errors[0]))
        }
        return UnsafeMutableRawBufferPointer(start: address, count: Page.byteCount)
    }
}
