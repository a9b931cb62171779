import Glibc
public import GuestModel
import Synchronization

// The guard is a small process that outlives the checkpointer. It reads one byte for each step:
//
//   L  log-dirty mode goes on          l  it is off
//   S  the guest is asked to suspend   P  the domain is paused
//   R  the domain runs                 Q  farewell
//   H  the guest has suspended itself
//
// and in a revert with devices (XenGuard+Revert):
//
//   T  it has suspended itself, and is paused
//   F  its processors were stopped by force
//   C  the back ends of its devices are being closed
//   N  only forward is left
//   A  the command that completes a revert follows
//
// It writes one byte, '+', when it is ready. Each byte is written before the step that can leave
// the domain paused, and after the step that resumes it, so the guard never assumes a better state
// than the real one.

/// A process that resumes a domain and turns its log off if the checkpointer dies.
///
/// It holds the reading end of a pipe from the checkpointer, which closes when the checkpointer
/// ends, even by SIGKILL. It is in a session of its own, so a signal to the checkpointer's group
/// does not reach it. It has the domain's lock too: no other checkpointer begins before the guard
/// is done.
public final class XenGuard: Sendable {
    enum Step: UInt8, Sendable {
        case logging = 0x4c
        case notLogging = 0x6c
        /// The guest has been asked to suspend, or is about to be.
        case suspending = 0x53
        /// It has suspended: no suspension is pending.
        case suspended = 0x48
        /// It has suspended, and is paused as well.
        case held = 0x54
        /// Its processors were stopped by force.
        case halted = 0x46
        /// It has suspended, and the back ends of its devices are being closed.
        case closing = 0x43
        /// It cannot continue as it was.
        case forward = 0x4e
        /// A command follows that completes a revert.
        case finish = 0x41
        case pausing = 0x50
        case running = 0x52
        case farewell = 0x51
    }

    private let process: ChildProcess

    /// Starts the guard and waits until it is ready.
    ///
    /// It keeps the domain's lock as long as it lives.
    init(command: [String], domain: UInt32, lock: DomainLock) throws(GuestError) {
        process = try ChildProcess(
            command + ["\(domain)"], readsOutput: true, inNewSession: true,
            inherited: lock.descriptor)
        guard process.readByte() == UInt8(ascii: "+") else {
            throw GuestError(
                code: .unavailable,
                message: "the guard (\(command.joined(separator: " "))) did not start; without it "
                    + "a checkpointer that dies could leave the domain paused")
        }
    }

    /// Throws if the guard has died: the domain must not be paused without it.
    func checkAlive() throws(GuestError) {
        guard process.isRunning else {
            throw GuestError(
                code: .unavailable,
                message: "the guard has died, so the domain was not paused; begin again")
        }
    }

    /// Tells the guard a step.
    ///
    /// A dead guard is detected by `checkAlive`, before the next pause.
    func note(_ step: Step) {
        process.write(step.rawValue)
    }

    /// Tells the guard how to complete the revert that begins.
    func note(finish command: [String], _ lock: DomainLock) {
        let bytes = [Step.finish.rawValue] + Finish(command: command, lock: lock.descriptor).bytes
        bytes.withUnsafeBytes { try? process.write($0) }
    }

    /// Ends the guard: nothing is left to do.
    func dismiss() {
        note(.farewell)
        process.wait()
    }

    // MARK: - The guard's own process

    /// Runs as the guard: reads standard input to its end, then resumes the domain.
    ///
    /// Called only by the program that `XenDomain.Options.guardCommand` names. Within a second the
    /// domain runs without log-dirty mode. Then this returns, unless the domain may still suspend:
    /// it waits for that, at most 60 s.
    ///
    /// - Returns: what was done, one sentence; nil if nothing was left to do.
    public static func run(domain: UInt32) throws(GuestError) -> String? {
        try run(
            domain: domain, calls: LibxenCalls(), ready: { ChildProcess.announceReady() },
            next: { ChildProcess.nextByte() })
    }

    /// How often a revert is tried to be completed.
    private static let finishTries = 3

    /// How long to wait for a requested suspension.
    package struct Patience {
        /// If the request was not read, and was withdrawn.
        package var withdrawn = Duration.seconds(5)
        /// If the request was read.
        package var acknowledged = Duration.seconds(60)

        package init() {}
    }

    package static func run(
        domain: UInt32, calls: any XenCalls, patience: Patience = Patience(), ready: () -> Void,
        next: () -> UInt8?
    ) throws(GuestError) -> String? {
        try run(
            domain: domain, calls: calls, patience: patience, ready: ready, next: next,
            complete: { $0.run() })
    }

    static func run(
        domain: UInt32, calls: any XenCalls, patience: Patience, ready: () -> Void,
        next: () -> UInt8?, complete: (Finish) -> (status: Int32, words: String)
    ) throws(GuestError) -> String? {
        ready()
        var hold = Step.running
        var isLogging = false
        var finish: Finish?
        while let byte = next() {
            switch Step(rawValue: byte) {
            case .logging: isLogging = true
            case .notLogging: isLogging = false
            case .farewell: return nil
            case .finish: finish = Finish(next)
            case .some(let step): hold = step
            case nil:
                throw GuestError(
                    code: .callFailed, message: "the guard was sent a byte \(byte)")
            }
        }
        // The domain may be gone at the end.
        let uuid = try? calls.facts(domain)?.handle
        var done: [String] = []
        var failure: GuestError?
        func endLog() throws(GuestError) {
            guard isLogging else { return }
            isLogging = false
            let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
            guard facts != nil else { return }
            try persistently { () throws(GuestError) in try calls.disableLog(domain) }
            done.append("taken out of log-dirty mode")
        }
        // The one that completes the revert turns the log on, and off, itself.
        if hold == .forward { try? endLog() }
        do throws(GuestError) {
            if [.held, .halted, .closing, .forward].contains(hold) {
                let text = try goBack(domain, from: hold, calls) {
                    guard let finish else { return "left standing still: revert it again" }
                    // It has no guard of its own.
                    var (status, words) = complete(finish)
                    for _ in 1..<finishTries where status != 0 {
                        try? calls.disableLog(domain)
                        (status, words) = complete(finish)
                    }
                    guard status != 0 else { return "reverted by the guard (\(words))" }
                    try? calls.disableLog(domain)
                    return "left standing still, because the guard's revert failed (\(words))"
                }
                if let text { done.append(text) }
            } else if try release(domain, from: hold, patience, calls, meanwhile: endLog) {
                done.append("resumed")
            }
        } catch {
            failure = error
        }
        try endLog()
        if let failure { throw failure }
        guard !done.isEmpty else { return nil }
        let text =
            "the checkpointer of domain \(domain) died; the domain was "
            + done.joined(separator: " and ")
        if let uuid { GuardNote.leave(text, uuid, in: calls.lockDirectory) }
        return text
    }

    /// Resumes the domain; false if it was already running, or is gone.
    ///
    /// - Parameter meanwhile: called if it is still running, before its suspension is waited for.
    private static func release(
        _ domain: UInt32, from hold: Step, _ patience: Patience, _ calls: any XenCalls,
        meanwhile: () throws(GuestError) -> Void
    ) throws(GuestError) -> Bool {
        switch hold {
        case .pausing:
            let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
            guard let facts, facts.isPaused else { return false }
            try persistently { () throws(GuestError) in try calls.unpause(domain) }
            return true
        case .suspending:
            let path = "/local/domain/\(domain)/control/shutdown"
            let isUnanswered = try persistently { () throws(GuestError) in
                try calls.read(path) == "suspend"
            }
            if isUnanswered {
                try persistently { () throws(GuestError) in try calls.write(path, "") }
            }
            // A guest that has read the request will suspend, even if it was withdrawn.
            let deadline =
                ContinuousClock.now
                + (isUnanswered ? patience.withdrawn : patience.acknowledged)
            while ContinuousClock.now < deadline {
                let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
                guard let facts, !facts.isDying else { return false }
                if let reason = facts.shutdown {
                    guard reason == .suspend else { return false }
                    try persistently { () throws(GuestError) in
                        try calls.resumeSuspended(domain)
                    }
                    try persistently { () throws(GuestError) in
                        try calls.announceResumed(domain)
                    }
                    return true
                }
                try meanwhile()
                try persistently { () throws(GuestError) in
                    try calls.waitForRelease(milliseconds: 50)
                }
            }
            return false
        case .suspended:
            let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
            guard let facts, !facts.isDying, facts.shutdown == nil || facts.shutdown == .suspend
            else { return false }
            if facts.shutdown != nil {
                try persistently { () throws(GuestError) in try calls.resumeSuspended(domain) }
            }
            // The checkpointer may have died between the two.
            try persistently { () throws(GuestError) in try calls.announceResumed(domain) }
            return facts.shutdown != nil
        default: return false
        }
    }

    /// Retries a failing call for a second: no other process takes over from the guard.
    static func persistently<T>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        for _ in 1..<100 {
            do throws(GuestError) { return try body() } catch { usleep(10_000) }
        }
        return try body()
    }
}
