import Glibc
import GuestModel
import Synchronization
import XenStream

/// How long one hold took.
public struct HoldTimes: Hashable, Sendable {
    /// From the request until the domain stood still: the guest's own way to its suspension.
    public var request = Duration.zero
    /// How long it stood still.
    public var still = Duration.zero
}

/// Holds a domain still and lets it run: by its own suspension, or by a pause.
///
/// Nobody else has one of the same domain meanwhile (`DomainLock`).
///
/// With a guard, whatever happens to this process in between is put right.
final class DomainHold: Sendable {
    let number: UInt32
    let kind: XenHold
    private let timeout: Duration
    private let calls: any XenCalls
    /// Makes the domain ours; the guard has it too.
    private let lock: DomainLock
    private let guardian: XenGuard?
    private let state = Mutex(State())

    private struct State {
        var isHeld = false
        /// A suspension that was asked for and did not come in time may come yet.
        var mayComeLate = false
        var heldSince: ContinuousClock.Instant?
        var times = HoldTimes()
    }

    init(
        _ number: UInt32, _ calls: any XenCalls, _ options: XenDomain.Options
    ) throws(GuestError) {
        let times = Duration.zero...Duration.seconds(86_400)
        guard times.contains(options.suspendTimeout) else {
            throw GuestError(
                code: .invalidOption,
                message: "suspendTimeout is \(options.suspendTimeout), and must be from "
                    + "\(times.lowerBound) to \(times.upperBound)")
        }
        self.number = number
        self.calls = calls
        kind = options.hold
        timeout = options.suspendTimeout
        let lock = try DomainLock(of: number, in: options.lockDirectory ?? calls.lockDirectory)
        self.lock = lock
        guardian = try options.guardCommand.map { (command) throws(GuestError) in
            try XenGuard(command: command, domain: number, lock: lock)
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
    var isHeld: Bool { state.withLock { $0.isHeld } }

    /// Tells the guard a step.
    func note(_ step: XenGuard.Step) { guardian?.note(step) }

    private var controlPath: String { "/local/domain/\(number)/control/shutdown" }

    /// Holds the domain still.
    func hold() throws(GuestError) {
        try resumeLateSuspension()
        try checkAlive()
        if let guardian {
            try guardian.checkAlive()
            guardian.note(kind == .suspend ? .suspending : .pausing)
        }
        let start = ContinuousClock.now
        do throws(GuestError) {
            switch kind {
            case .pause: try calls.pause(number)
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
            state.isHeld = true
            state.mayComeLate = false
            state.heldSince = now
            state.times = HoldTimes(request: now - start)
        }
    }

    /// How long the last hold took.
    var times: HoldTimes { state.withLock { $0.times } }

    /// Lets the domain run on; may be called again if it throws.
    func release() throws(GuestError) {
        // Xen 4.17 panics when a vCPU's context is set in a domain that is being destroyed
        // (hvmemul_cancel), as the fast resume does: seen in the rig.
        guard let facts = try calls.facts(number), !facts.isDying else {
            forget()
            throw XenDomain.gone(number)
        }
        switch kind {
        case .pause:
            try calls.unpause(number)
            stopClock()
        case .suspend:
            // Resuming a domain that does not stand in its suspend call corrupts its eax.
            if facts.shutdown == .suspend { try calls.resumeSuspended(number) }
            stopClock()
            try calls.announceResumed(number)
        }
        forget()
    }

    private func stopClock() {
        let now = ContinuousClock.now
        state.withLock { state in
            if let since = state.heldSince { state.times.still = now - since }
            state.heldSince = nil
        }
    }

    private func forget() {
        note(.running)
        stopClock()
        state.withLock { $0.isHeld = false }
    }

    /// Throws unless the domain lives and is nobody else's.
    private func checkAlive() throws(GuestError) {
        guard let facts = try calls.facts(number), !facts.isDying else {
            throw XenDomain.gone(number)
        }
        guard let reason = facts.shutdown else { return }
        guard reason == .suspend else { throw DomainHold.ended(number, reason) }
        throw GuestError(
            code: .busy,
            message: "domain \(number) is suspended already, by somebody else (xl save?); wait "
                + "for it")
    }

    /// What a failed call comes from, if it is the domain's own end; else the failure itself.
    ///
    /// The errors of calls on a domain that dies meanwhile are many (ESRCH, EINVAL, EFAULT).
    func cause(of error: GuestError) -> GuestError {
        guard error.code == .callFailed else { return error }
        do throws(GuestError) {
            guard let facts = try calls.facts(number), !facts.isDying else {
                return XenDomain.gone(number)
            }
            guard let reason = facts.shutdown, reason != .suspend else { return error }
            return DomainHold.ended(number, reason)
        } catch {
            return error
        }
    }

    private static func ended(_ number: UInt32, _ reason: ShutdownReason) -> GuestError {
        switch reason {
        case .crash:
            GuestError(code: .crashed, message: "domain \(number) has crashed")
        case .powerOff:
            GuestError(code: .shutDown, message: "domain \(number) has shut down")
        case .reboot:
            GuestError(code: .shutDown, message: "domain \(number) reboots")
        default:
            GuestError(code: .shutDown, message: "domain \(number) has ended (\(reason))")
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
            guard let facts = try calls.facts(number), !facts.isDying else {
                throw XenDomain.gone(number)
            }
            if let reason = facts.shutdown {
                if reason == .suspend { return }
                throw DomainHold.ended(number, reason)
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
            message: "domain \(number) took the request to suspend and did not suspend within "
                + "\(timeout); it is resumed if it does so later; hold it by pause")
    }

    /// Takes an unanswered request back; returns if the guest had just suspended after all.
    private func withdraw() throws(GuestError) {
        try calls.write(controlPath, "")
        let facts = try calls.facts(number)
        if facts?.shutdown == .suspend { return }
        let canSuspend =
            try calls.read(
                "/local/domain/\(number)/control/feature-suspend") == "1"
        state.withLock { $0.mayComeLate = true }
        throw GuestError(
            code: .timedOut,
            message: "domain \(number) did not answer the request to suspend within "
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
        guard let facts = try calls.facts(number), !facts.isDying,
            facts.shutdown == nil || facts.shutdown == .suspend
        else {
            // It ended otherwise.
            state.withLock { $0.mayComeLate = false }
            return
        }
        guard facts.shutdown == .suspend else { return }
        let number = number
        let calls = calls
        try DomainHold.twice { () throws(GuestError) in try calls.resumeSuspended(number) }
        state.withLock { $0.mayComeLate = false }
        note(.running)
        try DomainHold.twice { () throws(GuestError) in try calls.announceResumed(number) }
    }

    /// Tries once more what failed, as the engine does with `release`.
    private static func twice(_ body: () throws(GuestError) -> Void) throws(GuestError) {
        do throws(GuestError) { try body() } catch { try body() }
    }
}
