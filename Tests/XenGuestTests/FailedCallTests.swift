import CheckpointEngine
import CheckpointStore
import Glibc
import GuestModel
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// Every call to the hypervisor fails once: the domain runs, and no dirty page is lost.
@Suite struct FailedCallTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let pauseMode: XenPauseMode
        let errno: Int32
        var testDescription: String { "\(pauseMode) \(errno)" }
    }

    private static let cases = [XenPauseMode.suspend, .pause].flatMap { pauseMode in
        [EPERM, EBUSY, ENOMEM, EIO].map { Case(pauseMode: pauseMode, errno: $0) }
    }

    private static func report(_ what: String, _ failed: Case, _ tried: Int, _ thrown: Int) {
        print(
            "\(what), \(failed.pauseMode), errno \(failed.errno): \(tried) calls failed in turn, "
                + "\(thrown) of them ended it; seed \(TestSeed.value)")
    }

    /// Fails each call of a body in turn, and checks the state after each.
    ///
    /// - Returns: the number of calls that failed, and how many of them ended the body.
    private func failEach(
        _ scene: Scene, _ failed: Case, _ body: () throws -> Void,
        before: () throws -> Void, after: (_ call: String) throws -> Void
    ) throws -> (tried: Int, thrown: Int) {
        var thrown = 0
        for number in 0..<1000 {
            try before()
            let start = scene.xen.callCount
            scene.xen.failCall(number, errno: failed.errno)
            do {
                try body()
            } catch {
                thrown += 1
                let message =
                    (error as? CheckpointError)?.message ?? (error as? GuestError)?.message
                #expect(isSentence(message ?? ""), "\(error)")
            }
            let isOver = scene.xen.with { $0.fault != nil }
            scene.xen.failCall(nil)
            if isOver { return (number, thrown) }
            let name = scene.xen.with { $0.trace[start + number] }
            try after("call \(number), \(name)")
        }
        Issue.record("it makes more than 1,000 calls")
        return (0, 0)
    }

    @Test(arguments: cases)
    func aFailedCallOfACaptureLosesNoPage(failed: Case) throws {
        let scene = try Scene(8600, pauseMode: failed.pauseMode)
        scene.captureOptions.pauseBudget = .microseconds(2)
        _ = try scene.capture()
        let (tried, thrown) = try failEach(scene, failed) {
            scene.xen.with(Scene.number) { $0.writesPerCallMax = 1 }
            defer { scene.xen.with(Scene.number) { $0.writesPerCallMax = 0 } }
            _ = try scene.session?.capture()
        } before: {
            scene.write()
        } after: { call in
            scene.expectSound(isLogOn: nil, call)
            scene.write()
            _ = try scene.capture(call)
            scene.expectSound(isLogOn: true, call)
        }
        #expect(tried > 30 && (thrown > 15 || failed.errno == EBUSY))
        FailedCallTests.report("capture", failed, tried, thrown)
    }

    /// From the beginning: opening, the first capture, another one, and closing.
    @Test(arguments: cases)
    func aFailedCallOfASessionLeavesTheDomainAsItWas(failed: Case) throws {
        let scene = try Scene(8601, pauseMode: failed.pauseMode)
        let (tried, thrown) = try failEach(scene, failed) {
            defer { scene.close() }
            try scene.open()
            _ = try scene.session?.capture()
            scene.write()
            _ = try scene.session?.capture()
        } before: {
            scene.write()
        } after: { call in
            scene.expectSound(isLogOn: false, call)
            if Int.random(in: 0..<4, using: &scene.random) == 0 {
                _ = try scene.capture(call)
                scene.close()
                scene.expectSound(isLogOn: false, call)
            }
        }
        #expect(tried > 60 && thrown > 30)
        FailedCallTests.report("session", failed, tried, thrown)
    }

    @Test(arguments: cases)
    func aFailedCallOfARevertLosesNoPage(failed: Case) throws {
        let scene = try Scene(8602, pauseMode: failed.pauseMode)
        for _ in 0..<3 {
            _ = try scene.capture()
            scene.write()
        }
        let (tried, thrown) = try failEach(scene, failed) {
            try scene.session?.revert(to: scene.checkpoints[0])
        } before: {
            scene.write()
        } after: { call in
            scene.expectSound(isLogOn: nil, call)
            // The pages that the revert wrote before it failed are in the next checkpoint.
            _ = try scene.capture(call)
            scene.write()
            try scene.revert(to: scene.checkpoints[1], call)
            scene.expectSound(isLogOn: true, call)
        }
        #expect(tried > 20 && thrown > 10)
        FailedCallTests.report("revert", failed, tried, thrown)
    }

    /// The set is unknown when a restart of the log fails half-way: it is off, and reads as empty.
    @Test func aRestartOfTheLogThatFailsHalfwayLosesNoPage() throws {
        for call in 0..<40 {
            let scene = try Scene(8603)
            _ = try scene.capture()
            scene.write()
            scene.xen.with(Scene.number) { domain in
                domain.log.dirty = DirtyBitmap()
                domain.log.hasFailed = true
                domain.writesPerCallMax = 1
            }
            scene.xen.failCall(call, errno: EIO)
            _ = try? scene.session?.capture()
            scene.xen.failCall(nil)
            scene.expectSound()
            _ = try scene.capture("call \(call)")
            scene.expectSound(isLogOn: true)
        }
    }
}
