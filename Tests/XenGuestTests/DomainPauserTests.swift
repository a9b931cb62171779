import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import GuestModel
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// The answers of a domain to a request to suspend, and their results.
@Suite struct DomainPauserTests {
    /// A guest that answers at once is not too late, however busy the machine is.
    private static let promptly = FakeDomain.Answer.suspends(acknowledgedAfter: 0, stillAfter: 0)

    private func make(_ salt: UInt64, pauseMode: XenPauseMode = .suspend) throws -> Scene {
        let scene = try Scene(salt, pauseMode: pauseMode)
        scene.options.suspendTimeout = .milliseconds(40)
        scene.xen.with(Scene.number) { $0.answer = DomainPauserTests.promptly }
        return scene
    }

    /// A capture that must fail, and its code.
    private func code(
        _ scene: Scene, _ answer: FakeDomain.Answer
    ) throws -> GuestError? {
        _ = try scene.capture()
        scene.write()
        scene.xen.with(Scene.number) { $0.answer = answer }
        return failure { _ = try scene.capture() }
    }

    private func expectGoesOn(_ scene: Scene) throws {
        scene.xen.with(Scene.number) { $0.answer = DomainPauserTests.promptly }
        let result = try scene.capture()
        #expect(!result.checkpoint.comparedAll, "the failed capture's pages were kept")
        scene.expectSound(isLogOn: true)
    }

    @Test func aGuestThatNeverAnswersIsLeftAlone() throws {
        let scene = try make(8400)
        let error = try code(scene, .never)
        #expect(error?.code == .timedOut)
        #expect(error?.message.contains("did not answer") == true)
        #expect(error?.message.contains("feature-suspend") == false)
        scene.expectSound(isLogOn: true)
        try expectGoesOn(scene)
    }

    @Test func aGuestThatCannotSuspendIsToldOf() throws {
        let scene = try make(8401)
        scene.xen.with { $0.store["/local/domain/7/control/feature-suspend"] = nil }
        let error = try code(scene, .never)
        #expect(error?.code == .timedOut)
        #expect(error?.message.contains("no control/feature-suspend") == true)
        try expectGoesOn(scene)
    }

    @Test func aGuestThatAcknowledgesAndNeverSuspendsTimesOut() throws {
        let scene = try make(8402)
        let error = try code(scene, .acknowledgesOnly)
        #expect(error?.code == .timedOut)
        #expect(error?.message.contains("took the request") == true)
        scene.expectSound(isLogOn: true)
        try expectGoesOn(scene)
    }

    @Test func aSuspensionThatComesLateIsResumedByTheNextCapture() throws {
        let scene = try make(8403)
        #expect(try code(scene, .acknowledgesOnly)?.code == .timedOut)
        scene.xen.suspendNow(Scene.number)
        try expectGoesOn(scene)
        #expect(scene.xen.with { $0.trace }.filter { $0 == "resumeSuspended" }.count == 3)
    }

    @Test(arguments: [XenPauseMode.suspend, .pause])
    func aDomainThatIsDestroyedInTheHoldIsNotResumed(pauseMode: XenPauseMode) throws {
        let scene = try make(8413, pauseMode: pauseMode)
        try scene.open()
        let domain = try #require(scene.domain)
        try domain.pause()
        scene.xen.with(Scene.number) { $0.facts.isDying = true }
        #expect(failure { try domain.resume() }?.code == .gone)
        #expect(!scene.xen.with { $0.trace }.contains("resumeSuspended"))
    }

    @Test func aSuspensionThatComesLateIsResumedWhenTheDomainIsLeft() throws {
        let scene = try make(8404)
        #expect(try code(scene, .acknowledgesOnly)?.code == .timedOut)
        scene.xen.suspendNow(Scene.number)
        scene.close()
        scene.expectSound(isLogOn: false)
    }

    @Test func aRequestAnsweredAtTheMomentItIsTakenBackIsAHold() throws {
        let scene = try make(8405)
        _ = try scene.capture()
        scene.write()
        scene.xen.with(Scene.number) { $0.answer = .whenWithdrawn }
        _ = try scene.capture()
        scene.expectSound(isLogOn: true)
    }

    @Test(arguments: [
        (ShutdownReason.crash, GuestError.Code.crashed), (.powerOff, .shutDown),
        (.reboot, .shutDown), (.watchdog, .shutDown),
    ])
    func aGuestThatEndsInsteadIsNamedAndNeverResumed(
        reason: ShutdownReason, expected: GuestError.Code
    ) throws {
        let scene = try make(8406)
        #expect(try code(scene, .ends(reason))?.code == expected)
        #expect(scene.xen.with(Scene.number) { $0.facts.shutdown } == reason)
        #expect(failure { _ = try scene.capture() }?.code == expected, "again")
        scene.close()
        #expect(scene.xen.with { $0.violations }.isEmpty && scene.xen.with { $0.mappings }.isEmpty)
    }

    @Test func aGuestThatIsDestroyedMeanwhileIsGone() throws {
        let scene = try make(8407)
        #expect(try code(scene, .vanishes)?.code == .gone)
        #expect(failure { _ = try scene.capture() }?.code == .gone, "again")
        scene.close()
        #expect(scene.xen.with { $0.mappings }.isEmpty)
    }

    @Test(arguments: [XenPauseMode.suspend, .pause])
    func aDomainDestroyedWhileItIsHeldIsGone(pauseMode: XenPauseMode) throws {
        let scene = try make(8408, pauseMode: pauseMode)
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        try domain.pause()
        scene.xen.with { $0.domains[Scene.number] = nil }
        #expect(failure { try domain.resume() }?.code == .gone)
        #expect(!domain.pauser.isPaused)
    }

    @Test(arguments: [XenPauseMode.suspend, .pause])
    func aDomainSuspendedBySomebodyElseIsBusyAndStaysSo(pauseMode: XenPauseMode) throws {
        let scene = try make(8409, pauseMode: pauseMode)
        _ = try scene.capture()
        scene.write()
        scene.xen.suspendNow(Scene.number)
        let error = failure { _ = try scene.capture() }
        #expect(error?.code == .busy)
        #expect(scene.xen.with(Scene.number) { $0.facts.shutdown } == .suspend)
        try scene.xen.resumeSuspended(Scene.number)
        try scene.xen.announceResumed(Scene.number)
        try expectGoesOn(scene)
    }

    @Test func aLateSuspensionIsNotExpectedForEver() throws {
        let scene = try make(8410)
        #expect(try code(scene, .acknowledgesOnly)?.code == .timedOut)
        try expectGoesOn(scene)
        // This one belongs to another tool.
        scene.xen.suspendNow(Scene.number)
        #expect(failure { _ = try scene.capture() }?.code == .busy)
        #expect(scene.xen.with(Scene.number) { $0.facts.shutdown } == .suspend)
    }

    @Test func aDomainThatIsPausedStaysPaused() throws {
        let scene = try make(8411, pauseMode: .pause)
        scene.xen.with(Scene.number) { $0.pauseCount = 1 }
        _ = try scene.capture()
        #expect(scene.xen.with(Scene.number) { $0.pauseCount } == 1)
        #expect(scene.xen.with { $0.violations }.isEmpty)
    }

    @Test func aHoldTellsHowLongItTook() throws {
        let scene = try make(8412)
        _ = try scene.capture()
        let times = try #require(scene.domain?.pauseTimes)
        #expect(times.request > .zero && times.downtime > .zero)
    }
}
