import Glibc
import GuestModel
import Synchronization
import XenStream

/// Pauses and resumes a domain: by its own suspension, or by the hypervisor.
///
/// It has the domain to itself (`DomainLock`).
///
/// With a guard, the domain is resumed if this process dies in between.
final class DomainPauser: Sendable {
    let domainID: UInt32
    let kind: XenPauseMode
    private let timeout: Duration
    private let calls: any XenCalls
    /// Makes this process the domain's owner; the guard has it too.
    private let lock: DomainLock
    private let guardian: XenGuard?
    private let state = Mutex(State())

    private struct State {
        var isPaused = false
        /// A suspension that was requested and timed out may still come.
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
        if let command = options.monitorCommand, kind == .suspend {
            try XenMonitor.takeOver(from: XLMonitor(), of: domainID, command, calls)
        }
    }

    deinit {
        try? resumeLateSuspension()
        guard let guardian else { return }
        // A guard whose pipe closes without a farewell byte waits for a late suspension.
        if state.withLock({ $0.mayComeLate }) {
            lock.leaveToGuard()
        } else {
            guardian.dismiss()
        }
    }

    /// True between `pause` and `release`.
    var isPaused: Bool { state.withLock { $0.isPaused } }

    /// Tells the guard how to complete a revert.
    func note(finish command: [String]) { guardian?.note(finish: command, lock) }

    /// Tells the guard a step.
    func note(_ step: XenGuard.Step) { guardian?.note(step) }

    private var controlPath: String { "/local/domain/\(domainID)/control/shutdown" }

    /// Pauses the domain.
    ///
    /// - Parameter limit: another `suspendTimeout` for this time.
    func pause(within limit: Duration? = nil) throws(GuestError) {
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
                try suspend(within: limit ?? timeout)
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

    /// The durations of the last pause.
    var times: PauseTimes { state.withLock { $0.times } }

    /// Resumes the domain; may be called again if it throws.
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
            // Resuming a domain that is not in its suspend call corrupts its eax.
            if facts.shutdown == .suspend { try calls.resumeSuspended(domainID) }
            stopClock()
            try calls.announceResumed(domainID)
        }
        forget()
    }

    /// Notes that the domain was stopped in another way than by `pause`, or in addition to it.
    func stopped() {
        let now = ContinuousClock.now
        state.withLock { state in
            if !state.isPaused {
                state.times = PauseTimes()
                state.pausedSince = now
            }
            state.isPaused = true
            // Nothing of it runs that could answer a request now.
            state.mayComeLate = false
        }
    }

    /// Notes that the domain runs, in another way than by `release`.
    func ran() { forget() }

    private func stopClock() {
        let now = ContinuousClock.now
        state.withLock { state in
            if let since = state.pausedSince { state.times.downtime = now - since }
            state.pausedSince = nil
        }
    }

    private func forget() {
        stopClock()
        note(.running)
        state.withLock { $0.isPaused = false }
    }

    /// Throws unless the domain is running and not suspended by another tool.
    private func checkAlive() throws(GuestError) {
        guard let facts = try calls.facts(domainID), !facts.isDying else {
            throw XenDomain.gone(domainID)
        }
        guard let reason = facts.shutdown else { return }
        guard reason == .suspend else { throw DomainPauser.ended(domainID, reason) }
        throw DomainPauser.suspended(domainID)
    }

    static func suspended(_ domainID: UInt32) -> GuestError {
        GuestError(
            code: .busy,
            message: "domain \(domainID) is already suspended by another tool (xl save?); wait "
                + "for it")
    }

    /// The cause of a failed call, if it is the domain's own end; else the failure itself.
    ///
    /// Calls on a domain that dies meanwhile fail with many errors (ESRCH, EINVAL, EFAULT).
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
    /// The guest acknowledges by emptying the node, stops its devices' front ends without
    /// disconnecting them, and calls SCHEDOP_shutdown(SUSPEND).
    private func suspend(within limit: Duration) throws(GuestError) {
        try calls.write(controlPath, "suspend")
        do throws(GuestError) {
            try awaitSuspension(limit)
        } catch {
            if error.code == .callFailed { giveUp() }
            throw error
        }
    }

    private func awaitSuspension(_ limit: Duration) throws(GuestError) {
        var deadline = ContinuousClock.now + limit
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
                    try withdraw(after: limit)
                    return
                }
                isAcknowledged = true
                deadline = ContinuousClock.now + limit
            }
            try calls.waitForRelease(milliseconds: 50)
        }
        state.withLock { $0.mayComeLate = true }
        throw GuestError(
            code: .timedOut,
            message: "domain \(domainID) took the request to suspend but did not suspend within "
                + "\(limit); it is resumed if it does so later; use pause instead")
    }

    /// Withdraws an unanswered request; returns if the guest has suspended after all.
    private func withdraw(after limit: Duration) throws(GuestError) {
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
                + "\(limit)"
                + (canSuspend ? "" : "; it does not announce support (no control/feature-suspend)")
                + "; use pause instead, which needs no cooperation")
    }

    /// Called when a call failed after the request: withdraws the request, or waits for the
    /// suspension of a guest that has read it, and resumes the guest.
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

    /// Resumes the domain if an earlier request was answered after its timeout.
    private func resumeLateSuspension() throws(GuestError) {
        guard state.withLock({ $0.mayComeLate }) else { return }
        guard let facts = try calls.facts(domainID), !facts.isDying,
            facts.shutdown == nil || facts.shutdown == .suspend
        else {
            // It ended for another reason.
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

    /// Retries a failed call once, as the engine does with `release`.
    private static func twice(_ body: () throws(GuestError) -> Void) throws(GuestError) {
        do throws(GuestError) { try body() } catch { try body() }
    }
}
