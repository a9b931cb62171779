import Glibc
import XenGuest

// The effects of a checkpointer's death on its domain: `XenCases death` and `XenCases ended`.

extension XenCases {
    /// Kills a checkpointer, or waits for its death, and watches until its guard has ended.
    ///
    /// Prints milliseconds: the longest continuous downtime of the domain after the death, and the
    /// time after it until the domain ran and the guard had ended. Fails if the domain is gone, or
    /// paused after the guard has ended.
    static func death(_ domain: UInt32, _ checkpointer: pid_t, kills: Bool) throws {
        let calls = try LibxenCalls()
        var guardian = Processes.guardian(of: domain)
        if kills {
            guard kill(checkpointer, SIGKILL) == 0 else { throw Failed("it had ended") }
        } else {
            while Processes.isAlive(checkpointer) {
                if guardian == nil { guardian = Processes.guardian(of: domain) }
                usleep(2000)
            }
        }
        let death = ContinuousClock.now
        guardian = guardian ?? Processes.guardian(of: domain)
        var still = Duration.zero
        var since: ContinuousClock.Instant?
        while true {
            // In this order: a guard's actions are visible after its end.
            let isGuarded = guardian.map { Processes.isAlive($0) } ?? false
            guard let facts = try calls.facts(domain), !facts.isDying else {
                throw Failed("the domain is gone")
            }
            let now = ContinuousClock.now
            if facts.shutdown != nil || facts.isPaused {
                let start = since ?? now
                since = start
                still = max(still, now - start)
                guard isGuarded || now - death < .seconds(1) else {
                    throw Failed("the domain stays paused without its guard: \(facts)")
                }
            } else {
                if let start = since { still = max(still, now - start) }
                since = nil
                if !isGuarded {
                    print(Int(still.milliseconds.rounded(.up)), Int((now - death).milliseconds))
                    return
                }
            }
            // A guard whose guest was asked to suspend waits a minute for it. One that reverts it
            // takes 5 s, and several times that on a busy host.
            guard now - death < .seconds(240) else { throw Failed("the guard does not end") }
            usleep(1000)
        }
    }

    /// Waits until the domain has ended, and prints how; fails if it does not end in time.
    static func ended(_ domain: UInt32, _ milliseconds: Int) throws {
        let calls = try LibxenCalls()
        let start = ContinuousClock.now
        while true {
            guard let facts = try calls.facts(domain), !facts.isDying else { return print("gone") }
            if let reason = facts.shutdown, reason != .suspend { return print(reason) }
            guard (ContinuousClock.now - start).milliseconds < Double(milliseconds) else {
                throw Failed("the domain has not ended after \(milliseconds) ms: \(facts)")
            }
            usleep(2000)
        }
    }
}

/// Other processes of dom0, from /proc.
enum Processes {
    /// True until it has ended; a zombie has ended too.
    static func isAlive(_ process: pid_t) -> Bool {
        guard let text = read("/proc/\(process)/stat") else { return false }
        // The state follows the name, which is in parentheses and may contain anything.
        guard let end = text.lastIndex(of: UInt8(ascii: ")")), end + 2 < text.count else {
            return false
        }
        return text[end + 2] != UInt8(ascii: "Z") && text[end + 2] != UInt8(ascii: "X")
    }

    /// The process that guards a domain.
    static func guardian(of domain: UInt32) -> pid_t? {
        guard let directory = opendir("/proc") else { return nil }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard let process = pid_t(name), let command = read("/proc/\(name)/cmdline") else {
                continue
            }
            let words = command.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            // The tool's, and the one of a program with libvarve.
            if words.suffix(2) == ["guard", "\(domain)"] { return process }
        }
        return nil
    }

    /// The first 4,096 bytes of a file; nil if it cannot be read.
    private static func read(_ path: String) -> [UInt8]? {
        let descriptor = Glibc.open(path, O_RDONLY)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        return count >= 0 ? Array(bytes[..<count]) : nil
    }
}
