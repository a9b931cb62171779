import Glibc
import GuestModel
import Synchronization
import XenStream

/// How long one hold took.
public struct PauseTimes: Hashable, Sendable {
    /// From the request until the domain stood still: the guest's own way to its suspension.
    public var request = Duration.zero
    /// How long it stood still.
    public var downtime = Duration.zero
}

/// Holds a domain still and lets it run: by its own suspension, or by a pause.
///
/// Nobody else has one of the same domain meanwhile (`DomainLock`).
///
/// With a guard, whatever happens to this process in between is put right.
final class DomainPauser: Sendable {
    let domainID: UInt32
    let kind: XenPauseMode
    private let timeout: Duration
    private let calls: any XenCalls
    /// Makes the domain ours; the guard has it too.
    private let lock: DomainLock
    private let guardian: XenGuard?
    private let state = Mutex(State())

    private struct State {
        var isPaused = false
        /// A suspension that was asked for and did not come in time may come yet.
        var mayComeLate = false
        var pausedSince: ContinuousClock.Instant?
        var times = PauseTimes()
    }

    init(
        _ domainID: UInt32, _ calls: any XenCalls, _ options: XenDomain.Options
    ) throws(GuestError) {
        let times = Duration.zero...Duration.seconds(86_400)
        guard times.contains(options.suspendTimeout) else {
            throw GuestError(
                code: .invalidOption,
                message: "suspendTimeout is \(options.suspendTimeout), and must be from "
                    + "\(times.lowerBound) to \(times.upperBound)")
        }
        self.domainID = domainID
        self.calls = calls
        kind = options.pauseMode
        timeout = options.suspendTimeout
        let lock = try DomainLock(of: domainID, in: options.lockDirectory ?? calls.lockDirectory)
        self.lock = lock
        guardian = try options.guardCommand.map { (command) throws(GuestError) in
            try XenGuard(command: command, domain: domainID, lock: lock)
        }
    }

    deinit {
        try? resumeLateSuspension()
        guard let guardian else { return }
        // A guard whose pipe ends without a farewell looks after a suspension that comes late.
        if state.withLock({ $0.mayComeLate }) {
            lock.leaveToGuard()
        } else {
            guardian.dismiss()
        }
    }

    /// True between `hold` and `release`.
    var isPaused: Bool { state.withLock { $0.isPaused } }

    /// Tells the guard a step.
    func note(_ step: XenGuard.Step) { guardian?.note(step) }

    private var controlPath: String { "/local/domain/\(domainID)/control/shutdown" }

    /// Holds the domain still.
    func pause() throws(GuestError) {
        try resumeLateSuspension()
        try checkAlive()
        if let guardian {
            try guardian.checkAlive()
            guardian.note(kind == .suspend ? .suspending : .pausing)
        }
        let start = ContinuousClock.now
        do throws(GuestError) {
            switch kind {
            case .pause: try calls.pause(domainID)
            case .suspend:
                try suspend()
                note(.suspended)
            }
        } catch {
            if !state.withLock({ $0.mayComeLate }) { note(.running) }
            throw error
        }
        let now = ContinuousClock.now
        state.withLock { state in
            state.isPaused = true
            state.mayComeLate = false
            state.pausedSince = now
            state.times = PauseTimes(request: now - start)
        }
    }

    /// How long the last hold took.
    var times: PauseTimes { state.withLock { $0.times } }

    /// Lets the domain run on; may be called again if it throws.
    func release() throws(GuestError) {
        // Xen 4.17 panics when a vCPU's context is set in a domain that is being destroyed
        // (hvmemul_cancel), as the fast resume does: seen in the rig.
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            forget()
            throw XenDomain.gone(domainID)
        }
        switch kind {
        case .pause:
            try calls.unpause(domainID)
            stopClock()
        case .suspend:
            // Resuming a domain that does not stand in its suspend call corrupts its eax.
            if facts.shutdown == .suspend { try calls.resumeSuspended(domainID) }
            stopClock()
            try calls.announceResumed(domainID)
        }
        forget()
    }

    private func stopClock() {
        let now = ContinuousClock.now
        state.withLock { state in
            if let since = state.pausedSince { state.times.downtime = now - since }
            state.pausedSince = nil
        }
    }

    private func forget() {
        note(.running)
        stopClock()
        state.withLock { $0.isPaused = false }
    }

    /// Throws unless the domain lives and is nobody else's.
    private func checkAlive() throws(GuestError) {
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        guard let reason = facts.shutdown else { return }
        guard reason == .suspend else { throw DomainPauser.ended(domainID, reason) }
        throw GuestError(
            code: .busy,
            message: "domain \(domainID) is suspended already, by somebody else (xl save?); wait "
                + "for it")
    }

    /// What a failed call comes from, if it is the domain's own end; else the failure itself.
    ///
    /// The errors of calls on a domain that dies meanwhile are many (ESRCH, EINVAL, EFAULT).
    func cause(of error: GuestError) -> GuestError {
        guard error.code == .callFailed else { return error }
        do throws(GuestError) {
            guard let facts = try calls.facts(domainID), !facts.isDying else {
                return XenDomain.gone(domainID)
            }
            guard let reason = facts.shutdown, reason != .suspend else { return error }
            return DomainPauser.ended(domainID, reason)
        } catch {
            return error
        }
    }

    private static func ended(_ domainID: UInt32, _ reason: ShutdownReason) -> GuestError {
        switch reason {
        case .crash:
            GuestError(code: .crashed, message: "domain \(domainID) has crashed")
        case .powerOff:
            GuestError(code: .shutDown, message: "domain \(domainID) has shut down")
        case .reboot:
            GuestError(code: .shutDown, message: "domain \(domainID) reboots")
        default:
            GuestError(code: .shutDown, message: "domain \(domainID) has ended (\(reason))")
        }
    }

    // MARK: - Suspending

    /// Asks the guest to suspend itself, and waits.
    ///
    /// The guest acknowledges by emptying the node, stops its devices' front ends without taking
    /// them down, and calls SCHEDOP_shutdown(SUSPEND).
    private func suspend() throws(GuestError) {
        try calls.write(controlPath, "suspend")
        do throws(GuestError) {
            try awaitSuspension()
        } catch {
            if error.code == .callFailed { giveUp() }
            throw error
        }
    }

    private func awaitSuspension() throws(GuestError) {
        var deadline = ContinuousClock.now + timeout
        var isAcknowledged = false
        while true {
            guard let facts = try calls.facts(domainID), !facts.isDying else {
                throw XenDomain.gone(domainID)
            }
            if let reason = facts.shutdown {
                if reason == .suspend { return }
                throw DomainPauser.ended(domainID, reason)
            }
            if ContinuousClock.now >= deadline {
                guard !isAcknowledged else { break }
                guard try calls.read(controlPath) != "suspend" else {
                    try withdraw()
                    return
                }
                isAcknowledged = true
                deadline = ContinuousClock.now + timeout
            }
            try calls.waitForRelease(milliseconds: 50)
        }
        state.withLock { $0.mayComeLate = true }
        throw GuestError(
            code: .timedOut,
            message: "domain \(domainID) took the request to suspend and did not suspend within "
                + "\(timeout); it is resumed if it does so later; hold it by pause")
    }

    /// Takes an unanswered request back; returns if the guest had just suspended after all.
    private func withdraw() throws(GuestError) {
        try calls.write(controlPath, "")
        let facts = try calls.facts(domainID)
        if facts?.shutdown == .suspend { return }
        let canSuspend =
            try calls.read(
                "/local/domain/\(domainID)/control/feature-suspend") == "1"
        state.withLock { $0.mayComeLate = true }
        throw GuestError(
            code: .timedOut,
            message: "domain \(domainID) did not answer the request to suspend within "
                + "\(timeout)"
                + (canSuspend ? "" : ", and does not say that it can (no control/feature-suspend)")
                + "; hold it by pause, which needs no cooperation")
    }

    /// A call failed after the guest was asked: takes the request back, or waits for the suspension
    /// of a guest that has read it, and resumes it.
    private func giveUp() {
        state.withLock { $0.mayComeLate = true }
        let deadline = ContinuousClock.now + timeout
        var isWithdrawn = false
        var failureCount = 0
        while ContinuousClock.now < deadline, failureCount < 10 {
            do throws(GuestError) {
                if !isWithdrawn, try calls.read(controlPath) == "suspend" {
                    try calls.write(controlPath, "")
                    isWithdrawn = true
                }
                try resumeLateSuspension()
                if isWithdrawn || !state.withLock({ $0.mayComeLate }) { return }
                try calls.waitForRelease(milliseconds: 50)
            } catch {
                failureCount += 1
                usleep(10_000)
            }
        }
    }

    /// Resumes the domain if an earlier request was answered after its time.
    private func resumeLateSuspension() throws(GuestError) {
        guard state.withLock({ $0.mayComeLate }) else { return }
        guard let facts = try calls.facts(domainID), !facts.isDying,
            facts.shutdown == nil || facts.shutdown == .suspend
        else {
            // It ended otherwise.
            state.withLock { $0.mayComeLate = false }
            return
        }
        guard facts.shutdown == .suspend else { return }
        let domainID = domainID
        let calls = calls
        try DomainPauser.twice { () throws(GuestError) in try calls.resumeSuspended(domainID) }
        state.withLock { $0.mayComeLate = false }
        note(.running)
        try DomainPauser.twice { () throws(GuestError) in try calls.announceResumed(domainID) }
    }

    /// Tries once more what failed, as the engine does with `release`.
    private static func twice(_ body: () throws(GuestError) -> Void) throws(GuestError) {
        do throws(GuestError) { try body() } catch { try body() }
    }
}
