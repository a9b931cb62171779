import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// The guard's actions when the checkpointer dies, at every step.
@Suite struct XenGuardTests {
    /// A checkpointer's actions on a domain, byte by byte and call by call.
    private enum Move: Sendable {
        case say(XenGuard.Step)
        case act(@Sendable (FakeXen) throws -> Void)
        /// Time passes for the guest.
        case tick
    }

    private static let number = Scene.number
    private static let request: Move = .act { xen in
        try xen.write("/local/domain/7/control/shutdown", "suspend")
    }
    private static let resume: Move = .act { xen in
        try xen.resumeSuspended(number)
        try xen.announceResumed(number)
    }
    private static let suspended: [Move] = [
        .say(.suspending), request, .tick, .tick, .tick, .tick, .say(.suspended), resume,
        .say(.running),
    ]
    private static let paused: [Move] = [
        .say(.pausing), .act { try $0.pause(number) }, .act { try $0.unpause(number) },
        .say(.running),
    ]
    private static let begin: [Move] = [.say(.logging), .act { try $0.enableLog(number) }]
    private static let end: [Move] = [.act { try $0.disableLog(number) }, .say(.notLogging)]

    private static func session(_ pauseMode: XenPauseMode) -> [Move] {
        let held = pauseMode == .suspend ? suspended : paused
        return begin + held + held + end + [.say(.farewell)]
    }

    private func makeXen(_ answer: FakeDomain.Answer) -> FakeXen {
        let xen = FakeXen()
        var domain = FakeDomain(Scene.number, frames: [0..<8], seed: 1)
        domain.answer = answer
        xen.add(domain)
        return xen
    }

    private static var patience: XenGuard.Patience {
        var patience = XenGuard.Patience()
        patience.withdrawn = .milliseconds(50)
        patience.acknowledged = .milliseconds(300)
        return patience
    }

    /// Runs the guard on some bytes.
    private func guardian(
        _ xen: FakeXen, _ bytes: [UInt8]
    ) throws(GuestError) -> String? {
        var rest = bytes[...]
        return try XenGuard.run(
            domain: Scene.number, calls: xen, patience: XenGuardTests.patience, ready: {},
            next: { rest.popFirst() })
    }

    /// Makes the moves, and returns the steps that were reported.
    private func make(_ moves: some Sequence<Move>, _ xen: FakeXen) throws -> [UInt8] {
        var bytes: [UInt8] = []
        for move in moves {
            switch move {
            case .say(let step): bytes.append(step.rawValue)
            case .act(let body): try body(xen)
            case .tick: xen.with { $0.tick(isScan: false) }
            }
        }
        return bytes
    }

    @Test(arguments: [XenPauseMode.suspend, .pause])
    func whereverTheCheckpointerDiesTheDomainRunsAndItsLogIsOff(pauseMode: XenPauseMode) throws {
        let session = XenGuardTests.session(pauseMode)
        for cut in 0...session.count {
            let xen = makeXen(.suspends(acknowledgedAfter: 1, stillAfter: 3))
            let bytes = try make(session[..<cut], xen)
            let text = try guardian(xen, bytes)
            #expect(xen.complaints(Scene.number, isLogOn: false) == [], "after move \(cut)")
            #expect(text.map(isSentence) ?? true)
        }
    }

    @Test func aGuardWhoseCallsFailOnceDoesItsWorkAllTheSame() throws {
        let session = XenGuardTests.session(.suspend)
        for cut in [3, 4, 6, 8, 9, 10] {
            for call in 0..<12 {
                let xen = makeXen(.suspends(acknowledgedAfter: 1, stillAfter: 3))
                let bytes = try make(session[..<cut], xen)
                xen.failCall(call, errno: EBUSY)
                _ = try guardian(xen, bytes)
                xen.failCall(nil)
                #expect(xen.complaints(Scene.number, isLogOn: false) == [], "\(cut), call \(call)")
            }
        }
    }

    @Test(arguments: [1, 5, 12])
    func aSuspensionThatComesLateIsResumed(after ticks: Int) throws {
        let xen = makeXen(.suspends(acknowledgedAfter: 0, stillAfter: ticks))
        let bytes = try make(XenGuardTests.suspended[..<3], xen)
        let text = try guardian(xen, bytes)
        #expect(text?.contains("resumed") == true)
        #expect(xen.complaints(Scene.number) == [])
    }

    @Test(arguments: [FakeDomain.Answer.never, .acknowledgesOnly, .whenWithdrawn])
    func aRequestThatIsNeverAnsweredIsTakenBack(answer: FakeDomain.Answer) throws {
        let xen = makeXen(answer)
        let bytes = try make(XenGuardTests.suspended[..<2], xen)
        _ = try guardian(xen, bytes)
        #expect(xen.complaints(Scene.number) == [])
        #expect(try xen.read("/local/domain/7/control/shutdown") != "suspend")
    }

    /// A request that was read may be followed by a suspension much later; the log does not wait.
    @Test func theLogIsOffBeforeASuspensionIsWaitedFor() throws {
        let xen = makeXen(.acknowledgesOnly)
        let bytes = try make(XenGuardTests.begin + XenGuardTests.suspended[..<2], xen)
        _ = try guardian(xen, bytes)
        let trace = xen.with { $0.trace }
        let off = try #require(trace.firstIndex(of: "disableLog"))
        let wait = try #require(trace.firstIndex(of: "waitForRelease"))
        #expect(off < wait)
    }

    /// The requested suspension came and is over: no other one is pending.
    @Test func aDomainThatWasResumedIsNotWaitedFor() throws {
        let onlyResumed: Move = .act { try $0.resumeSuspended(XenGuardTests.number) }
        for last in [XenGuardTests.resume, onlyResumed] {
            let xen = makeXen(.suspends(acknowledgedAfter: 1, stillAfter: 3))
            let bytes = try make(XenGuardTests.suspended[..<7] + [last], xen)
            #expect(try guardian(xen, bytes) == nil)
            #expect(xen.complaints(Scene.number) == [])
            let trace = xen.with { $0.trace }
            #expect(trace.last == "announceResumed" && !trace.contains("waitForRelease"))
        }
    }

    @Test func aDomainThatEndedIsLeftAlone() throws {
        for answer in [FakeDomain.Answer.ends(.crash), .ends(.powerOff), .vanishes] {
            let xen = makeXen(answer)
            let bytes = try make(
                XenGuardTests.begin + XenGuardTests.suspended[..<6], xen)
            _ = try guardian(xen, bytes)
            #expect(xen.with { $0.violations } == [])
            #expect(!xen.with { $0.trace }.contains("resumeSuspended"))
        }
    }

    @Test func aFarewellLeavesThingsAsTheyAre() throws {
        let xen = makeXen(.never)
        xen.with(Scene.number) { domain in
            domain.pauseCount = 1
            domain.log.isOn = true
        }
        #expect(try guardian(xen, Array("LPQ".utf8)) == nil)
        #expect(xen.callCount == 0)
    }

    @Test func aByteThatIsNoStepIsAnError() throws {
        let xen = makeXen(.never)
        let error = failure { _ = try guardian(xen, Array("L?".utf8)) }
        #expect(error?.message.contains("\(UInt8(ascii: "?"))") == true)
    }

    // MARK: - The process

    /// A session reports to a guard exactly the steps that these tests assume.
    @Test(arguments: [XenPauseMode.suspend, .pause])
    func aSessionTellsTheGuardEachStep(pauseMode: XenPauseMode) throws {
        let directory = TemporaryDirectory()
        let file = directory.path.appending("steps").string
        let scene = try Scene(8700, pauseMode: pauseMode)
        scene.options.guardCommand = ["/bin/sh", "-c", "printf +; exec cat > \(file)"]
        _ = try scene.capture()
        _ = try scene.capture()
        scene.close()
        let expected = XenGuardTests.session(pauseMode).compactMap { move -> UInt8? in
            if case .say(let step) = move { step.rawValue } else { nil }
        }
        let steps = try ChildProcess(["cat", file], collectsOutput: true)
        #expect(steps.wait() == 0)
        #expect(steps.collectedLines == [String(decoding: expected, as: UTF8.self)])
    }

    @Test func aGuardThatDoesNotStartIsAnError() throws {
        let scene = try Scene(8701)
        scene.options.guardCommand = ["/bin/sh", "-c", "exit 1"]
        let error = failure { try scene.open() }
        #expect(error?.code == .unavailable)
        #expect(error?.message.contains("did not start") == true)
        scene.options.guardCommand = ["/nonexistent/guard"]
        #expect(failure { try scene.open() }?.message.contains("/nonexistent/guard") == true)
        scene.expectSound(isLogOn: false)
    }

    @Test func aDomainIsNotHeldWithoutItsGuard() throws {
        let scene = try Scene(8702)
        scene.options.guardCommand = ["/bin/sh", "-c", "printf +; read -r line"]
        _ = try scene.capture()
        // The first guard's `read` ends only with its input; this one's exit looks the same to the
        // session.
        scene.options.guardCommand = ["/bin/sh", "-c", "printf +; exit 0"]
        try scene.open()
        usleep(100_000)
        let error = failure { _ = try scene.capture() }
        #expect(error?.code == .unavailable)
        #expect(error?.message.contains("guard has died") == true)
        #expect(scene.xen.with { $0.trace }.filter { $0 == "resumeSuspended" }.count == 1)
        scene.expectSound()
    }
}
