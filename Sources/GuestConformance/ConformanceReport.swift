/// What came of the checks.
public struct ConformanceReport: Sendable {
    /// What came of one check.
    public enum Outcome: Hashable, Sendable {
        /// The guest does what is asked.
        case passed
        /// It does not; a sentence that says in what.
        case failed(String)
        /// It was not looked at, and why: the guest or the subject lacks something.
        case skipped(String)
    }

    /// One check and what came of it.
    public struct Entry: Hashable, Sendable {
        /// The check.
        public let check: ConformanceCheck
        /// What came of it.
        public let outcome: Outcome
    }

    /// What repeats the run.
    public let seed: UInt64
    /// The checks in the order in which they ran.
    public let entries: [Entry]

    /// Those that failed.
    public var failures: [Entry] {
        entries.filter { if case .failed = $0.outcome { true } else { false } }
    }

    /// Those that were not looked at.
    public var skipped: [Entry] {
        entries.filter { if case .skipped = $0.outcome { true } else { false } }
    }

    /// True if no check failed; `skipped` has those that were not looked at.
    public var isConforming: Bool { failures.isEmpty }
}

extension ConformanceReport: CustomStringConvertible {
    /// One line a check that did not pass, and a line that counts them.
    public var description: String {
        var lines: [String] = []
        for entry in entries {
            switch entry.outcome {
            case .passed: continue
            case .failed(let reason): lines.append("\(entry.check.title) failed: \(reason)")
            case .skipped(let reason): lines.append("\(entry.check.title) skipped: \(reason)")
            }
        }
        let passed = entries.count - failures.count - skipped.count
        lines.append(
            "\(passed) passed, \(failures.count) failed, \(skipped.count) skipped; seed \(seed)")
        return lines.joined(separator: "\n")
    }
}
