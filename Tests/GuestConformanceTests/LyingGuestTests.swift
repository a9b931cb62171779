import GuestConformance
import GuestModel
import Testing
import VarveTestSupport

/// Tests the checks: a guest that breaks one rule fails the checks for that rule, and no others.
@Suite struct LyingGuestTests {
    /// The check that must detect a lie, and others that may.
    private struct Expectation {
        let finders: Set<ConformanceCheck>
        let others: Set<ConformanceCheck>

        init(_ finders: Set<ConformanceCheck>, may others: Set<ConformanceCheck> = []) {
            self.finders = finders
            self.others = others
        }
    }

    /// Checks that rely on a log that sees writes.
    private static let logChecks: Set<ConformanceCheck> = [
        .nothingIsLostBetweenTakes, .takeOnlyAdds, .finalTakeIsComplete, .readLosesNothing,
        .peekClearsNothing, .endedLogTakesNothing, .endedLogStopsNoOther, .strangeLogIsUnknown,
        .logCanBeginAgain,
    ]

    private static func expectation(_ lie: LyingGuest.Lie) -> Expectation {
        switch lie {
        case .layoutChanges, .layoutDiffersInThePause:
            Expectation([.layoutIsStable], may: [.ownLayoutIsAdopted])
        case .copiesAStalePage:
            Expectation(
                [.copyEqualsMemory],
                may: [.writtenPagesAreRead, .mappedMemoryIsTheGuests, .changedPagesAreTheGuests])
        case .copiesWithGaps: Expectation([.copyFillsExactly])
        case .pauseHoldsNothing: Expectation([.pauseHoldsTheGuest])
        case .resumeIsForgotten: Expectation([.resumeLetsTheGuestGoOn])
        case .firstTakeIsEmpty: Expectation([.writesSinceStartAreLogged], may: logChecks)
        case .someWritesAreLost: Expectation([.nothingIsLostBetweenTakes])
        case .takeNeverClears: Expectation([.takeClearsTheLog])
        case .takeReplaces: Expectation([.takeOnlyAdds])
        case .finalTakeIsEmpty: Expectation([.finalTakeIsComplete])
        case .readIsEmpty: Expectation([.readLosesNothing])
        case .peekClears, .peekIsZero: Expectation([.peekClearsNothing])
        case .ownWritesAreUnlogged, .mappedWritesAreUnlogged: Expectation([.ownWritesAreLogged])
        case .stoppedLogIsComplete, .stoppedLogRuns: Expectation([.stoppedLogIsUnknown])
        case .oneLogForAll:
            Expectation(
                [.secondStartEndsTheFirst, .endedLogStopsNoOther], may: [.endedLogTakesNothing])
        case .endedLogIsComplete: Expectation([.secondStartEndsTheFirst])
        case .endedLogTakes: Expectation([.endedLogTakesNothing])
        case .endedLogStops: Expectation([.endedLogStopsNoOther, .strangeLogIsUnknown])
        case .strangeLogIsComplete: Expectation([.strangeLogIsUnknown])
        case .secondLogIsDeaf, .logComesAgain: Expectation([.logCanBeginAgain])
        case .outsideEndIsUnnoticed: Expectation([.logEndedFromOutsideIsFound])
        case .everybodyMayOwn, .ownerIsRefusedOddly:
            Expectation(
                [.secondOwnerIsRefused], may: [.oldReleaseFreesNoOther, .anotherObjectIsRefused])
        case .ownedForEver: Expectation([.releaseFreesTheGuest], may: [.oldReleaseFreesNoOther])
        case .oldClaimIsGiven: Expectation([.oldReleaseFreesNoOther])
        case .othersMayOwn: Expectation([.anotherObjectIsRefused])
        case .writesElsewhere, .writesTooMuch: Expectation([.writtenPagesAreRead])
        case .mapsACopy: Expectation([.mappedMemoryIsTheGuests])
        case .changesACopy, .changesTooFew: Expectation([.changedPagesAreTheGuests])
        case .adoptsByClearing: Expectation([.ownLayoutIsAdopted])
        case .stateIsForgotten, .stateFlickers: Expectation([.stateSurvivesARoundTrip])
        }
    }

    /// Another object of the same guest.
    private final class Twin: Guest {
        let base: LyingGuest

        init(_ base: LyingGuest) { self.base = base }

        func layout() throws(GuestError) -> GuestLayout { try base.layout() }
        var dirtyTracking: (any DirtyTracking)? { base }
        func pause() throws(GuestError) { try base.pause() }
        func resume() throws(GuestError) { try base.resume() }
        func copyPages(
            _ runs: Span<PageRange>, into destination: inout MutableRawSpan
        ) throws(GuestError) {
            try base.copyPages(runs, into: &destination)
        }
        func captureState() throws(GuestError) -> GuestState { try base.captureState() }
        func claim() throws(GuestError) -> GuestClaim {
            base.lie == .othersMayOwn ? try GuestClaim(of: self) : try base.claim()
        }
    }

    private static func subject(_ lie: LyingGuest.Lie?) -> ConformanceSubject {
        let guest = LyingGuest(lie)
        var subject = ConformanceSubject(
            guest: guest, write: { guest.write($0, $1) }, read: { Array(guest.page($0)) })
        subject.work = { guest.work() }
        subject.another = { Twin(guest) }
        subject.endLog = { guest.endLog() }
        return subject
    }

    @Test func aGuestThatDoesNotLiePassesEveryCheck() {
        for salt in UInt64(0)..<(TestSeed.isLong ? 50 : 4) {
            var random = TestSeed.generator(9400 + salt)
            let report = ConformanceSuite.run(seed: random.next()) { LyingGuestTests.subject(nil) }
            #expect(report.isConforming && report.skipped.isEmpty, "\(report)")
            #expect(report.entries.count == ConformanceCheck.allCases.count)
        }
    }

    @Test(arguments: LyingGuest.Lie.allCases)
    func eachLieIsFoundByTheChecksThatAreAboutIt(lie: LyingGuest.Lie) {
        let expectation = LyingGuestTests.expectation(lie)
        for salt in UInt64(0)..<(TestSeed.isLong ? 20 : 2) {
            var random = TestSeed.generator(9500 + salt)
            let report = ConformanceSuite.run(seed: random.next()) { LyingGuestTests.subject(lie) }
            let failed = Set(report.failures.map(\.check))
            let missed = expectation.finders.subtracting(failed)
            #expect(missed.isEmpty, "\(lie) is not found: \(report)")
            let strange = failed.subtracting(expectation.finders).subtracting(expectation.others)
            #expect(strange.isEmpty, "\(lie) is found where it is not: \(report)")
        }
    }

    @Test func eachCheckFindsSomeLie() {
        let found = Set(
            LyingGuest.Lie.allCases.flatMap { LyingGuestTests.expectation($0).finders })
        #expect(found == Set(ConformanceCheck.allCases))
    }

    @Test func aReportSaysWhatWasFoundAndHowToRepeatIt() {
        let report = ConformanceSuite.run([.copyFillsExactly, .layoutIsStable], seed: 42) {
            LyingGuestTests.subject(.copiesWithGaps)
        }
        #expect(report.entries.map(\.check) == [.copyFillsExactly, .layoutIsStable])
        #expect(!report.isConforming)
        let text = report.description
        #expect(text.contains("3 copyFillsExactly failed: "))
        #expect(text.contains("1 passed, 1 failed, 0 skipped; seed 42"))
    }

    @Test func aSubjectThatCannotBeMadeFailsEachCheck() {
        struct Unmade: Error {}
        let report = ConformanceSuite.run { throw Unmade() }
        #expect(report.failures.count == ConformanceCheck.allCases.count)
    }
}
