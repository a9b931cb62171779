/// The results of the checks.
public struct ConformanceReport: Sendable {
    /// The result of one check.
    public enum Outcome: Hashable, Sendable {
        /// The guest meets the requirement.
        case passed
        /// It does not; a sentence that says how.
        case failed(String)
        /// It was not run, and why: the guest or the subject lacks something.
        case skipped(String)
    }

    /// One check and its result.
    public struct Entry: Hashable, Sendable {
        /// The check.
        public let check: ConformanceCheck
        /// The result.
        public let outcome: Outcome
    }

    /// The seed that repeats the run.
    public let seed: UInt64
    /// The checks in the order in which they ran.
    public let entries: [Entry]

    /// The checks that failed.
    public var failures: [Entry] {
        entries.filter { if case .failed = $0.outcome { true } else { false } }
    }

    /// The checks that were not run.
    public var skipped: [Entry] {
        entries.filter { if case .skipped = $0.outcome { true } else { false } }
    }

    /// True if no check failed; `skipped` has those that were not run.
    public var isConforming: Bool { failures.isEmpty }
}

extension ConformanceReport: CustomStringConvertible {
    /// One line for each check that did not pass, and a line with the totals.
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
