public import GuestModel

/// What `DiskGroup` and `DiskCut` require of a guest's disks, one check each.
///
/// Numbers never change; new checks get new ones.
public enum DiskConformanceCheck: Int, CaseIterable, Sendable {
    /// Each disk has a name of its own and a size of whole sectors, and the cut has the same disks.
    case disksAreDescribed = 1
    /// A cut has what was written before it, and nothing that is written later.
    case cutKeepsItsContent = 2
    /// `read` fills its destination exactly, and with zeros past the end of a disk.
    case readFillsExactly = 3
    /// Every written block is in `changedBlocks`, and blocks outside of it are equal.
    case changedBlocksAreComplete = 4
    /// Blocks outside of `storedBlocks` read as zeros.
    case storedBlocksAreComplete = 5
    /// Several threads read one cut.
    case cutIsReadByThreads = 6
    /// A cut that was prepared and not made is released, and the next one works.
    case unusedCutIsReleased = 7
    /// A cut stands when the one before it is released.
    case releaseLeavesOthers = 8
    /// `standingCut` finds nothing under a name that no cut has, or that a released one had.
    case releasedCutIsGone = 9
    /// A cut that was read is found again by its name after its owner is gone.
    case standingCutIsFound = 10
    /// What `RevertibleDisks.write` wrote is in the next cut and among its changed blocks, and
    /// `resize` cuts off, or adds zeros. Not run for another group.
    case revertedDisksAreWritten = 11
}

extension DiskConformanceCheck {
    /// Its number and name, for a report.
    public var title: String { "\(rawValue) \(self)" }
}

/// A group of disks to be checked, and what the checks need to write to them as the guest would.
///
/// Each check gets a new one, and overwrites parts of its disks. Closures are called on the thread
/// that runs the checks.
public struct DiskConformanceSubject {
    /// Makes the group: more than once, for the same disks.
    ///
    /// The former one is dropped before, as if its process had ended.
    public var makeGroup: () throws -> any DiskGroup
    /// Writes bytes to a disk as the guest would, by its number in the group and a byte offset.
    ///
    /// The write is completed when this returns. Offsets and counts are multiples of 4096.
    public var write: (_ disk: Int, _ offset: UInt64, _ bytes: [UInt8]) throws -> Void

    /// Makes a subject.
    public init(
        makeGroup: @escaping () throws -> any DiskGroup,
        write: @escaping (_ disk: Int, _ offset: UInt64, _ bytes: [UInt8]) throws -> Void
    ) {
        self.makeGroup = makeGroup
        self.write = write
    }
}

/// The results of the checks.
public struct DiskConformanceReport: Sendable, CustomStringConvertible {
    /// One check and its result.
    public struct Entry: Hashable, Sendable {
        /// The check.
        public let check: DiskConformanceCheck
        /// The result.
        public let outcome: ConformanceReport.Outcome
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

extension ConformanceSuite {
    /// Checks a group of disks against what the engine relies on.
    ///
    ///     let report = ConformanceSuite.runDisks {
    ///         DiskConformanceSubject(makeGroup: { ... }, write: { ... })
    ///     }
    ///     precondition(report.isConforming, "\(report)")
    ///
    /// Blocks as long as the group's calls take: some tens of cuts. At most 256 blocks of each disk
    /// are compared, drawn at random.
    ///
    /// - Parameters:
    ///   - checks: the checks to run.
    ///   - seed: repeats a run.
    ///   - make: makes the subject of one check. It is dropped before the next one is requested.
    public static func runDisks(
        _ checks: [DiskConformanceCheck] = DiskConformanceCheck.allCases,
        seed: UInt64 = .random(in: 1...999_999_999),
        _ make: () throws -> DiskConformanceSubject
    ) -> DiskConformanceReport {
        let entries = checks.map { check in
            DiskConformanceReport.Entry(check: check, outcome: outcome(of: check, seed, make))
        }
        return DiskConformanceReport(seed: seed, entries: entries)
    }

    private static func outcome(
        of check: DiskConformanceCheck, _ seed: UInt64,
        _ make: () throws -> DiskConformanceSubject
    ) -> ConformanceReport.Outcome {
        do {
            var examination = try DiskExamination(
                make(), seed: seed &+ UInt64(check.rawValue) << 32)
            try examination.perform(check)
            return .passed
        } catch let finding as Finding {
            return .failed(finding.text)
        } catch let skip as Skip {
            return .skipped(skip.reason)
        } catch {
            return .failed("a call failed that must not fail: \(error)")
        }
    }
}
