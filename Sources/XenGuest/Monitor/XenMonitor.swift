import Glibc
public import GuestModel
import XenStream

// xl's process that waits for a domain's end itself ends when the domain suspends, so each
// checkpoint by suspension takes it away, and with it on_poweroff, on_reboot, on_watchdog and
// on_crash. The monitor takes its place. It does as xl does (handle_domain_death in
// tools/xl/xl_vmcontrol.c), except that it stays after a suspension, and after `preserve`, because
// a domain that is preserved can be reverted.
//
//   it has ended, by itself       what happens
//   xl's process is there, too    nothing: xl does it
//   suspended                     nothing: a checkpoint
//   anything else                 as its configuration says at that moment
//   destroyed                     the monitor ends
//
// A domain that is started again has another ID; the monitor goes on with that one.

/// A process that carries out what a domain's configuration says of its end.
public enum XenMonitor {
    /// How a monitor has ended.
    public enum End: Hashable, Sendable {
        /// The domain is gone.
        case gone
        /// Another process monitors the domain.
        case alreadyMonitored
    }

    /// Waits for the end of a domain and carries out what its configuration says of it, until the
    /// domain is gone.
    ///
    /// Blocks. Called by the program that `XenDomain.Options.monitorCommand` names, or by hand for
    /// a domain that has no monitor. One process monitors a domain.
    ///
    /// - Parameters:
    ///   - domain: its ID.
    ///   - announcesReady: writes '+' to standard output when it waits for the end, as a program
    ///     that `monitorCommand` names must.
    ///   - report: called with a sentence for everything that was done, or that failed.
    /// - Throws: `unavailable` if it cannot be locked; `callFailed` if it cannot be started again.
    public static func run(
        domain: UInt32, announcesReady: Bool = false, report: @escaping (String) -> Void
    ) throws(GuestError) -> End {
        let monitor = DomainMonitor(
            calls: try LibxenCalls(), lifecycle: try LibxlLifecycleCalls(), report: report)
        return try monitor.run(domain) { if announcesReady { ChildProcess.announceReady() } }
    }

    /// Starts a monitor if a process of xl's waits for the domain's end, which the first suspension
    /// ends.
    static func takeOver(
        from xl: XLMonitor, of domain: UInt32, _ command: [String], _ calls: any XenCalls
    ) throws(GuestError) {
        guard let name = try calls.read("/local/domain/\(domain)/name"), !name.isEmpty,
            xl.process(ofDomainNamed: name) != nil
        else { return }
        let process = try ChildProcess(
            command + ["\(domain)"], readsOutput: true, inNewSession: true)
        guard let answer = process.readByte(), answer == UInt8(ascii: "+") else {
            // One that is there already has ended this one.
            guard process.wait() == 0 else {
                throw GuestError(
                    code: .unavailable,
                    message: "the monitor (\(command.joined(separator: " "))) did not start; "
                        + "without it on_poweroff, on_reboot and on_crash of domain \(domain) "
                        + "would not be carried out from its first suspension on")
            }
            return
        }
    }
}

/// One monitor.
struct DomainMonitor {
    /// Where xl writes a core dump: `XEN_DUMP_DIR`.
    static let coreDirectory = "/var/lib/xen/dump"
    /// A domain that is reverted or restored runs again without an event.
    private static let pollMilliseconds = 10_000
    /// How often a call that fails is tried.
    private static let tryCount = 5

    let calls: any XenCalls
    let lifecycle: any LifecycleCalls
    var xl = XLMonitor()
    /// Time between two tries.
    var patience = Duration.seconds(1)
    let report: (String) -> Void

    /// An end that was dealt with; the domain may run again afterwards, and end again.
    private struct Dealt: Equatable {
        let reason: ShutdownReason
        let cpuTime: UInt64
    }

    func run(_ first: UInt32, ready: () -> Void) throws(GuestError) -> XenMonitor.End {
        var domain = first
        while true {
            let lock: DomainLock
            do throws(GuestError) {
                lock = try DomainLock(of: domain, as: .monitor, in: calls.lockDirectory)
            } catch {
                guard error.code == .busy else { throw error }
                return .alreadyMonitored
            }
            defer { withExtendedLifetime(lock) {} }
            let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
            guard let facts else {
                if domain == first { throw XenDomain.gone(domain) }
                return .gone
            }
            if domain == first { ready() }
            guard let next = try awaitEnd(of: domain, facts.handle) else { return .gone }
            domain = next
        }
    }

    /// Deals with every end of a domain until it is gone (nil) or was started again under an ID.
    private func awaitEnd(of domain: UInt32, _ uuid: [UInt8]) throws(GuestError) -> UInt32? {
        var dealt: Dealt?
        while true {
            let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
            guard let facts, facts.handle == uuid else { return nil }
            if let reason = facts.shutdown, !facts.isDying, reason != .suspend {
                let end = Dealt(reason: reason, cpuTime: facts.cpuTime)
                if end != dealt, let name = try name(domain), xl.process(ofDomainNamed: name) == nil
                {
                    dealt = end
                    if let next = try carryOut(reason, domain, name) { return next }
                    continue
                }
            }
            try persistently { () throws(GuestError) in
                try calls.waitForRelease(milliseconds: DomainMonitor.pollMilliseconds)
            }
        }
    }

    private func name(_ domain: UInt32) throws(GuestError) -> String? {
        try persistently { () throws(GuestError) in
            try calls.read("/local/domain/\(domain)/name")
        }
    }

    /// Does what the configuration says; returns the ID of the domain that was started, if any.
    private func carryOut(
        _ reason: ShutdownReason, _ domain: UInt32, _ name: String
    ) throws(GuestError) -> UInt32? {
        let json = try persistently { () throws(GuestError) in try calls.configuration(domain) }
        let who = "domain \(name.isEmpty ? "\(domain)" : "\(name) (\(domain))") \(words(reason))"
        guard let action = EndAction(for: reason, in: XenConfiguration(json)) else {
            report("\(who); what its configuration says of that is not known here: it is preserved")
            return nil
        }
        if action.dumpsCore {
            let path = "\(DomainMonitor.coreDirectory)/\(name.isEmpty ? "\(domain)" : name)"
            do throws(GuestError) {
                try lifecycle.dumpCore(of: domain, to: path)
                report("\(who); its memory is in \(path)")
            } catch {
                // As xl does: the guest's end does not depend on its dump.
                report("\(who); its memory could not be dumped to \(path): \(error.message)")
            }
        }
        switch action {
        case .preserve:
            report("\(who); it is preserved")
            return nil
        case .softReset:
            try persistently { () throws(GuestError) in try lifecycle.softReset(domain, json) }
            report("\(who); it was reset, and runs again")
            return nil
        case .renameRestart:
            let suffix = DomainMonitor.suffix()
            try persistently { () throws(GuestError) in
                try lifecycle.preserve(domain, json, suffix: suffix)
            }
            report("\(who); it is preserved as \(name)\(suffix)")
        case .destroy, .restart, .coredumpDestroy, .coredumpRestart:
            try persistently { () throws(GuestError) in try lifecycle.destroy(domain) }
        }
        guard action.startsAgain else {
            report("\(who); it was destroyed")
            return nil
        }
        let next = try persistently { () throws(GuestError) in try lifecycle.start(json) }
        report("\(who); it was started again as domain \(next)")
        return next
    }

    private func words(_ reason: ShutdownReason) -> String {
        switch reason {
        case .powerOff: "has shut down"
        case .reboot: "has asked to be started again"
        case .crash: "has crashed"
        case .watchdog: "was ended by its watchdog"
        case .softReset: "has asked for a soft reset"
        case .suspend: "has suspended"
        case .other: "has ended for an unknown reason"
        }
    }

    /// What xl appends to the name of a domain that it preserves: the time.
    private static func suffix() -> String {
        var now = time(nil)
        var parts = tm()
        gmtime_r(&now, &parts)
        var text = [CChar](repeating: 0, count: 24)
        let count = strftime(&text, text.count, "-%Y%m%dT%H%MZ", &parts)
        return String(decoding: text[..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    /// Tries a failing call again: no other process takes over from the monitor.
    private func persistently<T>(
        _ body: () throws(GuestError) -> T
    ) throws(GuestError) -> T {
        for _ in 1..<DomainMonitor.tryCount {
            do throws(GuestError) {
                return try body()
            } catch {
                report("\(error.message); tried again")
                let (seconds, attoseconds) = patience.components
                system_sleep(
                    microseconds: UInt32(seconds) * 1_000_000
                        + UInt32(attoseconds / 1_000_000_000_000))
            }
        }
        return try body()
    }
}
