// Each check is a function on an `Examination`, which throws its finding. Nothing here traps
// whatever a guest returns; a guest that traps or never returns cannot be handled.

/// Checks a guest against what the engine relies on.
///
///     let report = ConformanceSuite.run { ConformanceSubject(guest: ..., write: ..., read: ...) }
///     precondition(report.isConforming, "\(report)")
public enum ConformanceSuite {
    /// Runs checks, each on a guest of its own.
    ///
    /// Blocks as long as the guest's calls take: a few hundred for each check. Memory is compared
    /// in at most 4096 frames, drawn at random.
    ///
    /// - Parameters:
    ///   - checks: the checks to run.
    ///   - seed: repeats a run.
    ///   - make: makes the guest for one check. It is released before the next one is requested.
    public static func run(
        _ checks: [ConformanceCheck] = ConformanceCheck.allCases,
        seed: UInt64 = .random(in: 1...999_999_999),
        _ make: () throws -> ConformanceSubject
    ) -> ConformanceReport {
        let entries = checks.map { check in
            ConformanceReport.Entry(check: check, outcome: outcome(of: check, seed, make))
        }
        return ConformanceReport(seed: seed, entries: entries)
    }

    private static func outcome(
        of check: ConformanceCheck, _ seed: UInt64, _ make: () throws -> ConformanceSubject
    ) -> ConformanceReport.Outcome {
        do {
            let subject = try make()
            var examination = try Examination(subject, seed: seed &+ UInt64(check.rawValue) << 32)
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

/// A requirement that the guest does not meet.
struct Finding: Error {
    let text: String

    init(_ text: String) { self.text = text }
}

/// Why a check cannot be run.
struct Skip: Error {
    let reason: String

    init(_ reason: String) { self.reason = reason }
}

extension Examination {
    mutating func perform(_ check: ConformanceCheck) throws {
        switch check {
        case .layoutIsStable: try layoutIsStable()
        case .copyEqualsMemory: try copyEqualsMemory()
        case .copyFillsExactly: try copyFillsExactly()
        case .pauseHoldsTheGuest: try pauseHoldsTheGuest()
        case .resumeLetsTheGuestGoOn: try resumeLetsTheGuestGoOn()
        case .writesSinceStartAreLogged: try writesSinceStartAreLogged()
        case .nothingIsLostBetweenTakes: try nothingIsLostBetweenTakes()
        case .takeClearsTheLog: try takeClearsTheLog()
        case .takeOnlyAdds: try takeOnlyAdds()
        case .finalTakeIsComplete: try finalTakeIsComplete()
        case .readLosesNothing: try readLosesNothing()
        case .peekClearsNothing: try peekClearsNothing()
        case .ownWritesAreLogged: try ownWritesAreLogged()
        case .stoppedLogIsUnknown: try stoppedLogIsUnknown()
        case .secondStartEndsTheFirst: try secondStartEndsTheFirst()
        case .endedLogTakesNothing: try endedLogTakesNothing()
        case .endedLogStopsNoOther: try endedLogStopsNoOther()
        case .strangeLogIsUnknown: try strangeLogIsUnknown()
        case .logCanBeginAgain: try logCanBeginAgain()
        case .logEndedFromOutsideIsFound: try logEndedFromOutsideIsFound()
        case .secondOwnerIsRefused: try secondOwnerIsRefused()
        case .releaseFreesTheGuest: try releaseFreesTheGuest()
        case .oldReleaseFreesNoOther: try oldReleaseFreesNoOther()
        case .anotherObjectIsRefused: try anotherObjectIsRefused()
        case .writtenPagesAreRead: try writtenPagesAreRead()
        case .mappedMemoryIsTheGuests: try mappedMemoryIsTheGuests()
        case .ownLayoutIsAdopted: try ownLayoutIsAdopted()
        case .stateSurvivesARoundTrip: try stateSurvivesARoundTrip()
        case .changedPagesAreTheGuests: try changedPagesAreTheGuests()
        }
    }
}
