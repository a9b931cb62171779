import Glibc
import GuestModel

// If the checkpointer dies in a revert with devices (DeviceRevert), the guard
//
//   held       resumes the domain: it has only been suspended and paused
//   halted     lets its processors continue where they were stopped
//   closing    takes it on with its own state, by the steps that are left; whether it was already
//              reset makes no difference
//   forward    runs the command that the checkpointer has named: the same revert begins again, and
//              completes what was begun. The domain's lock is free for it

extension XenGuard {
    /// A command that completes a revert.
    struct Finish: Sendable {
        var command: [String]
        /// The lock's descriptor in this process.
        var lock: Int32

        /// After the byte `finish`: u32 descriptor, u32 length, and the words, each ended by a 0;
        /// little endian.
        var bytes: [UInt8] {
            let words = command.flatMap { (word: String) -> [UInt8] in Array(word.utf8) + [0] }
            func number(_ value: UInt32) -> [UInt8] {
                (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
            }
            return number(UInt32(bitPattern: lock)) + number(UInt32(words.count)) + words
        }

        init(command: [String], lock: Int32) {
            self.command = command
            self.lock = lock
        }

        /// Nil if the bytes end before.
        init?(_ next: () -> UInt8?) {
            func number() -> UInt32? {
                var value: UInt32 = 0
                for index in 0..<4 {
                    guard let byte = next() else { return nil }
                    value |= UInt32(byte) << (index * 8)
                }
                return value
            }
            guard let lock = number(), let count = number(), count < 1 << 20 else { return nil }
            var bytes: [UInt8] = []
            for _ in 0..<count {
                guard let byte = next() else { return nil }
                bytes.append(byte)
            }
            command = bytes.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            self.lock = Int32(bitPattern: lock)
        }

        /// Runs it to its end.
        func run() -> (status: Int32, words: String) {
            if lock >= 0 { system_unlock(lock) }
            do throws(GuestError) {
                let process = try ChildProcess(command, collectsOutput: true)
                let status = process.wait()
                return (status, process.collectedLines.joined(separator: "; "))
            } catch {
                return (127, error.message)
            }
        }
    }

    /// Brings a domain back from a step of a revert; nil if there was nothing to do.
    static func goBack(
        _ domain: UInt32, from hold: Step, _ calls: any XenCalls, finish: () -> String?
    ) throws(GuestError) -> String? {
        let facts = try persistently { () throws(GuestError) in try calls.facts(domain) }
        guard let facts, !facts.isDying else { return nil }
        switch hold {
        case .held:
            if facts.isPaused {
                try persistently { () throws(GuestError) in try calls.unpause(domain) }
            }
            if facts.shutdown == .suspend {
                try persistently { () throws(GuestError) in try calls.resumeSuspended(domain) }
            }
            try persistently { () throws(GuestError) in try calls.announceResumed(domain) }
            return "resumed"
        case .halted:
            if facts.isPaused {
                try persistently { () throws(GuestError) in try calls.unpause(domain) }
            }
            if facts.shutdown == .suspend {
                try persistently { () throws(GuestError) in try calls.resumeStopped(domain) }
            }
            return "resumed where it was stopped"
        case .closing:
            let revert = try persistently { () throws(GuestError) in
                DeviceRevert(domain, try FrontEnds(of: domain, calls), nil, calls, .init())
            }
            try persistently { () throws(GuestError) in try revert.bringBack() }
            return "brought back as it was, with its devices connected again"
        default: return finish()
        }
    }
}
